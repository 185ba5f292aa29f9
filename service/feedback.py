"""What was predicted, for as long as someone may say whether it was right."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from adapters.tasks import ClassificationTask
from service.errors import InvalidRequest, PredictionNotFound
from service.evidence import Tally
from service.keys import Caller
from service.metrics import Metrics
from service.registry import Lease

# Predictions remembered, on each replica; labels only, never texts.
MOST = 20_000


@dataclass
class _Predicted:
    name: str
    version: int
    labels: tuple[str, ...] | None
    said: list[str | None]
    judged: set[int] = field(default_factory=set)


class Feedback:
    """Predictions by id, and what became known of them."""

    def __init__(self, metrics: Metrics, tally: Tally) -> None:
        self._metrics, self._tally = metrics, tally
        self._predicted: OrderedDict[str, _Predicted] = OrderedDict()

    def remember(self, prediction_id: str, lease: Lease, said: list[str | None]) -> None:
        """Keep what an adapter said to each text: a label, ``""`` for a summary, none where there is no answer."""
        manifest, task = lease.manifest, lease.manifest.task
        labels = tuple(label.name for label in task.labels) if isinstance(task, ClassificationTask) else None
        self._predicted[prediction_id] = _Predicted(manifest.name, manifest.version, labels, said)
        if len(self._predicted) > MOST:
            self._predicted.popitem(last=False)

    def take(
        self, caller: Caller, prediction_id: str, index: int, label: str | None, correct: bool | None
    ) -> tuple[str, int, bool]:
        """Return adapter, version and whether the answer was right; count it, once for each answer.

        Raises :class:`PredictionNotFound`, :class:`InvalidRequest`.
        """
        found = self._predicted.get(prediction_id)
        if found is None or not caller.may_use(found.name):
            raise PredictionNotFound("This replica does not know the prediction: it was made elsewhere, or long ago.")
        if index >= len(found.said) or found.said[index] is None:
            raise InvalidRequest(f"The prediction has no answer number {index}; they are counted from 0.")
        if label is not None:
            if found.labels is None:
                raise InvalidRequest("A summary has no label; send 'correct'.")
            if label not in found.labels:
                raise InvalidRequest(f"'label' is one of {', '.join(found.labels)}.")
        right = found.said[index] == label if label is not None else bool(correct)
        if index not in found.judged:
            found.judged.add(index)
            named = self._metrics.bounded("version", found.name, str(found.version))
            self._metrics.feedback.labels(*named, "right" if right else "wrong").inc()
            self._tally.judged(found.name, found.version, right=right)
        return found.name, found.version, right
