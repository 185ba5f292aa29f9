"""How rows look to a version: held-out rows when it was made, live ones as they come, counted in the same bins."""

from __future__ import annotations

import base64
import re
import zlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

from pydantic import Field

from adapters.tasks.base import BaseTask, Prompt
from adapters.tokens import Tokenizer
from adapters.validation import Strict

LABEL, FEEDBACK = "label", "feedback"
RIGHT, WRONG = "right", "wrong"
CONFIDENCE_BOUNDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
TOKEN_BOUNDS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# Upper bounds of a feature's bins; what is above the last one is in +Inf.
BOUNDS: Mapping[str, tuple[float, ...]] = {
    "confidence": CONFIDENCE_BOUNDS,
    "input_tokens": TOKEN_BOUNDS,
    "answer_tokens": TOKEN_BOUNDS,
    "unknown_tokens": (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0),
    "coverage": (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0),
    "compression": (1, 2, 4, 6, 8, 12, 16, 24, 32, 64),
}
# Of a text so much is looked at for its words: a caller must not choose how long that takes.
WORDS_CHARS = 20_000
WORD = re.compile(r"\w+")
Values = dict[str, str | float]


class Profile(Strict):
    """How the held-out rows looked to this version: what live traffic is compared with to see drift.

    ``accuracy`` is the share of the predictions that are right, ``labels`` their shares by label. The others are the
    shares at or below each of ``BOUNDS``, and empty where a version has no such feature, or was made before there was
    one. ``known_tokens`` are the token ids of the training rows' prompts, as a compressed bit map in base64.
    """

    rows: int = Field(ge=1)
    accuracy: float | None = Field(default=None, ge=0, le=1)
    labels: dict[str, float] = Field(default_factory=dict)
    confidence: dict[float, float] = Field(default_factory=dict)
    input_tokens: dict[int, float] = Field(default_factory=dict)
    answer_tokens: dict[int, float] = Field(default_factory=dict)
    unknown_tokens: dict[float, float] = Field(default_factory=dict)
    coverage: dict[float, float] = Field(default_factory=dict)
    compression: dict[int, float] = Field(default_factory=dict)
    known_tokens: str = Field(default="", max_length=200_000)

    @classmethod
    def of(cls, rows: Sequence[Values], known: Iterable[int], accuracy: float | None = None) -> Profile:
        """Return how rows looked, each as :func:`values_of` gives it."""
        count, content = len(rows), {}
        for feature, bounds in BOUNDS.items():
            if values := [float(row[feature]) for row in rows if feature in row]:
                content[feature] = {bound: sum(value <= bound for value in values) / len(values) for bound in bounds}
        labels = Counter(str(row[LABEL]) for row in rows if LABEL in row)
        shares = {label: many / count for label, many in sorted(labels.items())}
        told = {"rows": count, "accuracy": accuracy, "labels": shares, "known_tokens": packed(known)}
        return cls.model_validate({**told, **content})

    def shares(self, feature: str) -> dict[str, float]:
        """Return bin → share of the held-out rows in it; nothing where the profile lacks the feature, or was counted
        in other bins than these."""
        if feature == LABEL:
            return dict(self.labels)
        if feature == FEEDBACK:
            return {} if self.accuracy is None else {RIGHT: self.accuracy, WRONG: 1 - self.accuracy}
        below = getattr(self, feature)
        if tuple(map(float, below)) != tuple(map(float, BOUNDS[feature])):
            return {}
        edges = [0.0, *below.values(), 1.0]
        return {name: max(0.0, high - low) for name, (low, high) in zip(bins_of(feature), pairwise(edges), strict=True)}


def values_of(
    task: BaseTask,
    text: str,
    prompt: Prompt,
    output: Mapping[str, Any],
    tokenizer: Tokenizer,
    known: Collection[int],
) -> Values:
    """Return feature → value of one answered text, for the features that its kind of task has.

    ``output`` is what the task read from the completion. ``unknown_tokens`` is the share of the prompt's tokens that
    no training row had; ``coverage`` the share of the answer's words that its text has, and ``compression`` how many
    words of the text there are for one of the answer (after Grusky et al. 2018, arXiv:1804.11283).
    """
    values: Values = {"input_tokens": prompt.input_tokens}
    if known:
        values["unknown_tokens"] = 1 - sum(map(known.__contains__, prompt.ids)) / len(prompt.ids)
    answer = str(output[task.answer_key])
    if task.closed:
        return {**values, LABEL: answer, "confidence": output["score"]}
    there, given = WORD.findall(text[:WORDS_CHARS].lower()), WORD.findall(answer.lower())
    words = set(there)
    values["answer_tokens"] = len(tokenizer.encode(answer))
    values["coverage"] = sum(word in words for word in given) / len(given) if given else 0.0
    values["compression"] = len(there) / max(1, len(given))
    return values


@cache
def bins_of(feature: str) -> tuple[str, ...]:
    """Return the names of a feature's bins; those of ``label`` are the version's own."""
    return (*(f"{bound:g}" for bound in BOUNDS[feature]), "+Inf")


def bin_of(feature: str, value: str | float) -> str:
    """Return the name of the bin that a value is in."""
    if isinstance(value, str):
        return value
    return bins_of(feature)[bisect_left(BOUNDS[feature], value)]


def packed(ids: Iterable[int]) -> str:
    """Return a set of token ids as text: a bit each, compressed."""
    every = set(ids)
    bits = bytearray(max(every) // 8 + 1 if every else 0)
    for each in every:
        bits[each // 8] |= 1 << each % 8
    return base64.b64encode(zlib.compress(bytes(bits), 9)).decode()


def unpacked(text: str) -> frozenset[int]:
    """Return what :func:`packed` was given; nothing where it is damaged, or would unpack to more than a vocabulary."""
    try:
        bits = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), 1 << 20)
    except (ValueError, zlib.error):
        return frozenset()
    return frozenset(8 * at + bit for at, byte in enumerate(bits) if byte for bit in range(8) if byte >> bit & 1)
