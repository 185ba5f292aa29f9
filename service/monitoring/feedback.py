"""What was predicted, for as long as someone may say whether it was right."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from adapters.errors import InvalidAdapter, NotInStore, StoreUnavailable
from adapters.manifest import Manifest
from adapters.tasks import ClassificationTask
from service.errors import FeedbackUnavailable, InvalidRequest, PredictionNotFound
from service.http.keys import Caller
from service.http.schemas import Classification, FeedbackRequest, Generation, ItemError, Summary
from service.metrics import Metrics
from service.monitoring import records
from service.monitoring.database import Database, DatabaseAway, default_place
from service.monitoring.drift import Drift
from service.monitoring.records import Judgement, Verdict
from service.monitoring.texts import READABLE, check, kept
from service.monitoring.writer import FLUSH_SECONDS, Writer
from service.offload import Offload
from service.rollout.evidence import Tally
from service.serving.answering import Answered
from service.settings import Settings

logger = logging.getLogger("hotswap")
# Predictions remembered, on each replica. Their texts only where a log is kept, and no more than so many characters.
MOST, MOST_CHARS = 20_000, 50_000_000
# How long one is looked for in the database, and how many are at a time.
LOOK_SECONDS, LOOKS_AT_ONCE = 2.0, 4
RETRY = "Retry shortly; however often it is sent, it counts once."
ID = re.compile(r"pred_[0-9A-HJKMNP-TV-Z]{26}")
Output = Classification | Summary | Generation | ItemError
# Adapter, version, and whether the answer was right.
Taken = tuple[str, int, bool]
# Asks the processes beside this one; None where none of them remembers the prediction.
Elsewhere = Callable[[Caller, FeedbackRequest], Awaitable[Taken | None]]
FindManifest = Callable[[str, int], Awaitable[Manifest]]


@dataclass
class _Predicted:
    """A prediction; ``form`` is that of its texts and summaries, ``stored`` whether the database has it too, and
    ``remembered`` whether its judgements can be counted without it."""

    manifest: Manifest
    routed: bool
    answers: Sequence[str | None]
    texts: Sequence[str]
    form: str = "plain"
    stored: bool = False
    remembered: bool = True
    judged: set[int] = field(default_factory=set)
    counted: bool = False

    @property
    def chars(self) -> int:
        return sum(map(len, self.texts))


class Feedback:
    """Predictions by id, and what became known of them: the last in memory, all in the database if there is one.

    A JSONL file can keep what was judged, too (``HOTSWAP_FEEDBACK_LOG``). ``manifest`` finds that of a version.
    Raises :class:`HotswapError` for settings that cannot be followed; a database that is away is none.
    """

    def __init__(
        self,
        settings: Settings,
        store_place: str,
        manifest: FindManifest,
        metrics: Metrics,
        tally: Tally,
        drift: Drift,
    ) -> None:
        check(settings.feedback_texts)
        self._settings, self._manifest, self._metrics = settings, manifest, metrics
        self._tally, self._drift, self._log = tally, drift, settings.feedback_log
        self._database, self._writer = _database(settings, store_place), None
        if self._database is not None:
            self._writer = Writer(self._database, metrics, settings.feedback_texts, settings.feedback_days)
        self.elsewhere: Elsewhere = _nowhere
        self._looks = Offload(LOOK_SECONDS, LOOKS_AT_ONCE)
        self._predicted: OrderedDict[str, _Predicted] = OrderedDict()
        self._chars = 0

    def start(self) -> None:
        if self._writer is not None:
            self._writer.start()

    async def close(self) -> None:
        """Write what waits, for a moment, and end."""
        if self._writer is not None:
            await self._writer.close()

    def remember(self, answered: Answered) -> None:
        """Keep what an adapter answered to each text. In memory, texts and summaries are forgotten at once unless there
        is a log."""
        stored = self._store(answered)
        answers = [_content(output, whole=self._log is not None) for output in answered.outputs]
        texts = answered.inputs.texts if self._log else ()
        predicted = _Predicted(answered.held.manifest, answered.held.choice.routed, answers, texts, stored=stored)
        self._predicted[answered.id] = predicted
        self._chars += predicted.chars
        while len(self._predicted) > MOST or self._chars > MOST_CHARS:
            self._chars -= self._predicted.popitem(last=False)[1].chars

    async def take(self, caller: Caller, judgement: FeedbackRequest) -> Taken:
        """Return adapter, version and whether the answer was right; count it, once for each answer.

        As evidence about a canary it counts once for a prediction, of traffic that the release routed, and from
        callers with the scope ``feedback``: nobody else's word takes a version back.
        Raises :class:`PredictionNotFound`, :class:`InvalidRequest`, and :class:`FeedbackUnavailable` for a prediction
        that is not in memory while the database is away.
        """
        if (taken := await self.take_here(caller, judgement)) is not None:
            return taken
        if (taken := await self.elsewhere(caller, judgement)) is not None:
            return taken
        return await self._take(await self._found(caller, judgement.id), caller, judgement)

    async def take_here(self, caller: Caller, judgement: FeedbackRequest) -> Taken | None:
        """As :meth:`take`, for a prediction that this process remembers; return None for others."""
        predicted = self._remembered(caller, judgement.id)
        return None if predicted is None else await self._take(predicted, caller, judgement)

    async def _take(self, predicted: _Predicted, caller: Caller, judgement: FeedbackRequest) -> Taken:
        if judgement.index >= len(predicted.answers) or (answer := predicted.answers[judgement.index]) is None:
            raise InvalidRequest(f"The prediction has no answer number {judgement.index}; they are counted from 0.")
        _check(predicted.manifest, judgement)
        right = judgement.correct
        if right is None:
            better = judgement.label or await _in_form(predicted.form, judgement.better or "")
            right = answer == better != ""  # what is not kept is like nothing
        name, version = predicted.manifest.name, predicted.manifest.version
        verdict = await self._judge(predicted, caller, judgement, right=right)
        if verdict.evidence:
            self._tally.judged(name, version, right=right)
        if verdict.first:
            labels = self._metrics.version(name, str(version))
            self._metrics.feedback.labels(*labels, "right" if right else "wrong").inc()
            self._drift.judged(predicted.manifest, right=right)
            if self._log is not None and predicted.texts and predicted.form in READABLE:
                self._keep(self._log, predicted, answer, judgement, right=right)
        return name, version, right

    def _store(self, answered: Answered) -> bool:
        """Give a prediction to the database's writer; return whether it takes it."""
        if self._writer is None or not _sampled(answered.id, self._settings.feedback_sample):
            return False
        choice = answered.held.choice
        return self._writer.keep(
            {
                "id": answered.id,
                "adapter": choice.name,
                "version": choice.version,
                "task": answered.held.manifest.task.kind,
                "routed": choice.routed,
                "asked_by": answered.caller.name,
                "caller": answered.inputs.caller,
                "answers": [_content(output, whole=True) for output in answered.outputs],
                "texts": answered.inputs.texts,
            }
        )

    def _remembered(self, caller: Caller, prediction: str) -> _Predicted | None:
        predicted = self._predicted.get(prediction)
        return predicted if predicted is not None and caller.may_use(predicted.manifest.name) else None

    async def _found(self, caller: Caller, prediction: str) -> _Predicted:
        """Return a prediction of the database. One that the caller may not know of is none, and takes as long."""
        row = None
        if self._database is not None and ID.fullmatch(prediction):
            try:
                row = await self._looks(prediction, records.find, self._database, prediction)
                if row is None:  # a replica may be writing it at this moment
                    await asyncio.sleep(2 * FLUSH_SECONDS)
                    row = await self._looks(prediction, records.find, self._database, prediction)
            except (DatabaseAway, StoreUnavailable):
                raise FeedbackUnavailable(RETRY) from None
        if row is None or not caller.may_use(row.adapter):
            raise PredictionNotFound("It was never made, was not kept, or is too old.")
        try:
            manifest = await self._manifest(row.adapter, row.version)
        except (NotInStore, InvalidAdapter) as error:
            raise PredictionNotFound("Its version is not in the store any more.") from error
        return _Predicted(
            *(manifest, row.routed, row.answers, row.texts or (), row.form),
            stored=True,
            remembered=False,
            counted=row.counted,
        )

    async def _judge(
        self, predicted: _Predicted, caller: Caller, judgement: FeedbackRequest, *, right: bool
    ) -> Verdict:
        """Return what the judgement counts for: by the database, which all replicas share, or else by memory."""
        if judgement.index in predicted.judged:
            return Verdict(first=False, evidence=False)
        alone = Verdict(first=True, evidence=predicted.routed and not predicted.counted and caller.may("feedback"))
        predicted.judged.add(judgement.index)
        predicted.counted |= alone.evidence
        if self._writer is None or not predicted.stored:
            return alone
        better = judgement.label
        if judgement.better is not None:
            better = await _in_form(self._settings.feedback_texts, judgement.better) or None
        verdict = await self._writer.judge(
            Judgement(judgement.id, judgement.index, caller.name, right, better, alone.evidence)
        )
        if verdict is None and not predicted.remembered:
            raise FeedbackUnavailable(RETRY)
        return verdict or alone

    def _keep(self, log: Path, predicted: _Predicted, answer: str, judgement: FeedbackRequest, *, right: bool) -> None:
        record = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "id": judgement.id,
            "adapter": predicted.manifest.name,
            "version": predicted.manifest.version,
            "task": predicted.manifest.task.kind,
            "text": predicted.texts[judgement.index],
            "answer": answer,
            "good": right,
            "better": judgement.label or judgement.better,
        }
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            with log.open("ab", buffering=0) as file:  # one write of any length: replicas may share the file
                file.write(line)
        except OSError as error:
            logger.error("feedback is counted but not kept: %s: %s", log, error.strerror)


async def _nowhere(_: Caller, __: FeedbackRequest) -> Taken | None:
    return None


def _database(settings: Settings, store_place: str) -> Database | None:
    if settings.feedback_database == "off":
        return None
    place = settings.feedback_database or default_place(settings.cache, store_place)
    return Database(place, settings.feedback_bytes)


def _sampled(prediction: str, share: float) -> bool:
    """Whether a prediction is among those that are kept: by its id alone."""
    return share >= 1 or int.from_bytes(hashlib.sha256(prediction.encode()).digest()[:8]) < share * 2**64


async def _in_form(form: str, text: str) -> str:
    # Looking for personal data takes a while.
    return await asyncio.to_thread(kept, form, text) if form == "redacted" else kept(form, text)


def _content(output: Output, *, whole: bool) -> str | None:
    if isinstance(output, ItemError):
        return None
    return output.said if whole or isinstance(output, Classification) else ""


def _check(manifest: Manifest, judgement: FeedbackRequest) -> None:
    if not isinstance(manifest.task, ClassificationTask):
        if judgement.label is not None:
            raise InvalidRequest("An answer in words has no label; send 'correct' or 'better'.")
        return
    if judgement.better is not None:
        raise InvalidRequest("Of a classification, send the right 'label'.")
    labels = [label.name for label in manifest.task.labels]
    if judgement.label is not None and judgement.label not in labels:
        raise InvalidRequest(f"'label' is one of {', '.join(labels)}.")
