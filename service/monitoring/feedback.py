"""What was predicted, for as long as someone may say whether it was right."""

from __future__ import annotations

import json
import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from adapters.manifest import Manifest
from adapters.tasks import ClassificationTask
from service.errors import InvalidRequest, PredictionNotFound
from service.http.keys import Caller
from service.http.schemas import Classification, FeedbackRequest, ItemError, Summary
from service.metrics import Metrics
from service.monitoring.drift import Drift
from service.rollout.evidence import Tally
from service.serving.answering import Answered

logger = logging.getLogger("hotswap")
# Predictions remembered, on each replica. Their texts only where a log is kept, and no more than so many characters.
MOST, MOST_CHARS = 20_000, 50_000_000
Output = Classification | Summary | ItemError


@dataclass
class _Predicted:
    manifest: Manifest
    routed: bool
    answers: list[str | None]
    texts: Sequence[str]
    judged: set[int] = field(default_factory=set)
    counted: bool = False

    @property
    def chars(self) -> int:
        return sum(map(len, self.texts))


class Feedback:
    """Predictions by id, and what became known of them; ``log`` is the file that keeps it, to be trained on."""

    def __init__(self, metrics: Metrics, tally: Tally, drift: Drift, log: Path | None = None) -> None:
        self._metrics, self._tally, self._drift, self._log = metrics, tally, drift, log
        self._predicted: OrderedDict[str, _Predicted] = OrderedDict()
        self._chars = 0

    def remember(self, answered: Answered) -> None:
        """Keep what an adapter answered to each text. Texts and summaries are forgotten at once unless there is a
        log."""
        answers = [_content(output, whole=self._log is not None) for output in answered.outputs]
        texts = answered.inputs.texts if self._log else ()
        predicted = _Predicted(answered.held.manifest, answered.held.choice.routed, answers, texts)
        self._predicted[answered.id] = predicted
        self._chars += predicted.chars
        while len(self._predicted) > MOST or self._chars > MOST_CHARS:
            self._chars -= self._predicted.popitem(last=False)[1].chars

    def take(self, caller: Caller, judgement: FeedbackRequest) -> tuple[str, int, bool]:
        """Return adapter, version and whether the answer was right; count it, once for each answer.

        As evidence about a canary it counts once for a prediction, of traffic that the release routed, and from
        callers with the scope ``feedback``: nobody else's word takes a version back.
        Raises :class:`PredictionNotFound`, :class:`InvalidRequest`.
        """
        predicted = self._predicted.get(judgement.id)
        if predicted is None or not caller.may_use(predicted.manifest.name):
            raise PredictionNotFound("This replica does not know the prediction: it was made elsewhere, or long ago.")
        if judgement.index >= len(predicted.answers) or (answer := predicted.answers[judgement.index]) is None:
            raise InvalidRequest(f"The prediction has no answer number {judgement.index}; they are counted from 0.")
        _check(predicted.manifest, judgement)
        right = answer == (judgement.label or judgement.better)
        if judgement.correct is not None:
            right = judgement.correct
        name, version = predicted.manifest.name, predicted.manifest.version
        if judgement.index not in predicted.judged:
            predicted.judged.add(judgement.index)
            labels = self._metrics.version(name, str(version))
            self._metrics.feedback.labels(*labels, "right" if right else "wrong").inc()
            self._drift.judged(predicted.manifest, right=right)
            if predicted.routed and not predicted.counted and caller.may("feedback"):
                predicted.counted = True
                self._tally.judged(name, version, right=right)
            if self._log is not None:
                self._keep(self._log, predicted, answer, judgement, right=right)
        return name, version, right

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


def _content(output: Output, *, whole: bool) -> str | None:
    if isinstance(output, Summary):
        return output.summary if whole else ""
    return output.label if isinstance(output, Classification) else None


def _check(manifest: Manifest, judgement: FeedbackRequest) -> None:
    if not isinstance(manifest.task, ClassificationTask):
        if judgement.label is not None:
            raise InvalidRequest("A summary has no label; send 'correct' or 'better'.")
        return
    if judgement.better is not None:
        raise InvalidRequest("Of a classification, send the right 'label'.")
    labels = [label.name for label in manifest.task.labels]
    if judgement.label is not None and judgement.label not in labels:
        raise InvalidRequest(f"'label' is one of {', '.join(labels)}.")
