"""The same task with examples in its prompt: what the base can do without being trained."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, islice, zip_longest

from adapters.base_model import Base
from adapters.tasks.base import SLOT
from trainer.codec import Codec
from trainer.rows import Row

SHOTS, MAX_EXAMPLE_TOKENS = 4, 200


def with_examples(codec: Codec, rows: Sequence[Row], shots: int = SHOTS) -> tuple[Codec, int]:
    """Return the task with the first ``shots`` fitting rows before its prompt, of every label in turn (Brown et al.
    2020, arXiv:2005.14165), and how many there were. Each is answered as the task reads answers; long ones do not
    fit."""
    task, base = codec.task, codec.base
    by_answer: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        usual = SLOT not in row.text + row.answer and codec.is_usual(row.before)
        if usual and _is_short_and_plain(row.text, base):
            by_answer[row.answer if task.closed else ""].append(row)
    in_turn = chain.from_iterable(zip_longest(*(by_answer[answer] for answer in sorted(by_answer))))
    chosen = list(islice((row for row in in_turn if row is not None), shots))
    text = task.template.text
    between = f"{_end_of_a_turn(codec)}\n" if task.template.version == 2 else "\n\n"
    told = "".join(f"{text.replace(SLOT, row.text)}{_answer(codec, row)}{between}" for row in chosen)
    asked = task.model_copy(update={"template": task.template.model_copy(update={"text": told + text})})
    return Codec(asked, base), len(chosen)


def _is_short_and_plain(text: str, base: Base) -> bool:
    """Whether a text is no longer than an example should be, and spells no special token, which would count as one."""
    ids = base.tokenizer.encode_within(text, "", "")[0]
    return len(ids) <= MAX_EXAMPLE_TOKENS and base.tokenizer.controls.isdisjoint(ids)


def _end_of_a_turn(codec: Codec) -> str:
    """Return how the token that ends an answer in a chat is spelled."""
    end = codec.base.end_id if (own := codec.task.template.end) is None else own
    return next((token for token, id_ in codec.base.tokenizer.vocabulary().items() if id_ == end), "")


def _answer(codec: Codec, row: Row) -> str:
    return codec.base.tokenizer.decode([token for token in codec.target(row.answer) if token != codec.base.end_id])
