"""From what users said of answers to rows that can be trained on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from adapters.tasks import KINDS, SummarizationTask

# What was said of one answer: adapter, task, text, answer, whether it was good, and a better one or none.
Record = dict[str, Any]


def latest(records: Iterable[Record]) -> list[Record]:
    """Return, of the same answer to the same text, what was said last."""
    found: dict[tuple[str, str], Record] = {}
    for record in records:
        key = record["text"], record["answer"]
        found.pop(key, None)
        found[key] = record
    return list(found.values())


def rows_for(objective: str, records: Iterable[Record]) -> Iterator[Record]:
    """Yield rows for a recipe's ``objective``, with the columns that it looks for: right answers for ``supervised``,
    pairs for ``dpo`` and ``reward``, everything for ``kto``."""
    for record in records:
        answer = KINDS.get(record["task"], SummarizationTask).answer_key
        text, said, better = record["text"], record["answer"], record.get("better")
        right = better or (said if record["good"] else None)
        if objective == "kto":
            yield {"text": text, answer: said, "good": record["good"]}
            if better and not record["good"]:
                yield {"text": text, answer: better, "good": True}
        elif objective == "supervised":
            if right:
                yield {"text": text, answer: right}
        elif better and better != said:
            yield {"text": text, "chosen": better, "rejected": said}
