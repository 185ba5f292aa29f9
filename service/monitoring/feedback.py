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
from service.rollout.evidence import Tally
from service.serving.registry import Lease

logger = logging.getLogger("hotswap")
# Predictions remembered, on each replica. Their texts only where a log is kept, and no more than so many characters.
MOST, MOST_CHARS = 20_000, 50_000_000
Output = Classification | Summary | ItemError


@dataclass
class _Predicted:
    manifest: Manifest
    said: list[str | None]
    texts: Sequence[str]
    judged: set[int] = field(default_factory=set)

    @property
    def chars(self) -> int:
        return sum(map(len, self.texts))


class Feedback:
    """Predictions by id, and what became known of them; ``log`` is the file that keeps it, to be trained on."""

    def __init__(self, metrics: Metrics, tally: Tally, log: Path | None = None) -> None:
        self._metrics, self._tally, self._log = metrics, tally, log
        self._predicted: OrderedDict[str, _Predicted] = OrderedDict()
        self._chars = 0

    def remember(self, prediction_id: str, lease: Lease, texts: Sequence[str], outputs: Sequence[Output]) -> None:
        """Keep what an adapter said to each text. Texts and summaries are forgotten at once unless there is a log."""
        said = [_said(output, whole=self._log is not None) for output in outputs]
        made = _Predicted(lease.manifest, said, texts if self._log else ())
        self._predicted[prediction_id] = made
        self._chars += made.chars
        while len(self._predicted) > MOST or self._chars > MOST_CHARS:
            self._chars -= self._predicted.popitem(last=False)[1].chars

    def take(self, caller: Caller, told: FeedbackRequest) -> tuple[str, int, bool]:
        """Return adapter, version and whether the answer was right; count it, once for each answer.

        Raises :class:`PredictionNotFound`, :class:`InvalidRequest`.
        """
        found = self._predicted.get(told.id)
        if found is None or not caller.may_use(found.manifest.name):
            raise PredictionNotFound("This replica does not know the prediction: it was made elsewhere, or long ago.")
        if told.index >= len(found.said) or (said := found.said[told.index]) is None:
            raise InvalidRequest(f"The prediction has no answer number {told.index}; they are counted from 0.")
        _check(found.manifest, told)
        right = bool(told.correct) if told.correct is not None else said == (told.label or told.better)
        if told.index not in found.judged:
            found.judged.add(told.index)
            name, version = found.manifest.name, found.manifest.version
            outcome = "right" if right else "wrong"
            self._metrics.feedback.labels(*self._metrics.bounded("version", name, str(version)), outcome).inc()
            self._tally.judged(name, version, right=right)
            if self._log is not None:
                self._keep(self._log, found, said, told, right=right)
        return found.manifest.name, found.manifest.version, right

    def _keep(self, log: Path, found: _Predicted, said: str, told: FeedbackRequest, *, right: bool) -> None:
        record = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "id": told.id,
            "adapter": found.manifest.name,
            "version": found.manifest.version,
            "task": found.manifest.task.kind,
            "text": found.texts[told.index],
            "answer": said,
            "good": right,
            "better": told.label or told.better,
        }
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file:  # one write: replicas may share the file
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        except OSError as error:
            logger.error("feedback is counted but not kept: %s: %s", log, error.strerror)


def _said(output: Output, *, whole: bool) -> str | None:
    if isinstance(output, Summary):
        return output.summary if whole else ""
    return output.label if isinstance(output, Classification) else None


def _check(manifest: Manifest, told: FeedbackRequest) -> None:
    if not isinstance(manifest.task, ClassificationTask):
        if told.label is not None:
            raise InvalidRequest("A summary has no label; send 'correct' or 'better'.")
        return
    if told.better is not None:
        raise InvalidRequest("Of a classification, send the right 'label'.")
    labels = [label.name for label in manifest.task.labels]
    if told.label is not None and told.label not in labels:
        raise InvalidRequest(f"'label' is one of {', '.join(labels)}.")
