"""Answers that were given before. A version never changes and answers greedily: what it said once, it says again.

Looked up by what the engine would be asked: the version's digest, the prompt's tokens, how they are to be answered.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import blake2b

from cachetools import LRUCache

from adapters.tasks import Sampling
from service.engine.base import Chunk
from service.metrics import Metrics

# What an entry takes, and each log-probability in it, measured with tracemalloc.
ENTRY_BYTES, LOGPROB_BYTES = 520, 100


class AnswerCache:
    """The answers used last, as many as fit into so many bytes. Of what was asked only hashes are kept."""

    def __init__(self, most_bytes: int, metrics: Metrics) -> None:
        self._answers: LRUCache[bytes, Chunk] = LRUCache(most_bytes, getsizeof=_size)
        self._metrics = metrics
        metrics.answer_cache_bytes.set_function(lambda: self._answers.currsize)

    def of(self, digest: str, name: str, version: int) -> Recall | None:
        """Return the answers of one version, for one request; None where nothing is kept."""
        return Recall(self, digest, (name, str(version))) if self._answers.maxsize else None

    def find(self, key: bytes, version: tuple[str, str]) -> Chunk | None:
        found = self._answers.get(key)
        outcome = "miss" if found is None else "hit"
        self._metrics.series(*version).of(self._metrics.answer_cache_lookups, outcome=outcome).inc()
        return found

    def keep(self, key: bytes, answer: Chunk) -> None:
        with suppress(ValueError):  # larger than all that may be kept
            self._answers[key] = answer


@dataclass
class Recall:
    """One version's answers, as one request sees them. ``missed``: how many of its questions were new."""

    _cache: AnswerCache
    _digest: str
    _version: tuple[str, str]
    missed: int = 0

    def find(self, prompt: Sequence[int], sampling: Sampling) -> Chunk | None:
        """Return the whole answer, if it was given before."""
        found = self._cache.find(self._key(prompt, sampling), self._version)
        self.missed += found is None
        return found

    def keep(self, prompt: Sequence[int], sampling: Sampling, answer: Chunk) -> None:
        """Remember a whole answer; what was measured of it is not said again."""
        self._cache.keep(self._key(prompt, sampling), replace(answer, timing=None))

    def _key(self, prompt: Sequence[int], sampling: Sampling) -> bytes:
        asked = blake2b(f"{self._digest}{sampling}".encode(), digest_size=32)
        asked.update(array("Q", prompt))
        return asked.digest()


def _size(answer: Chunk) -> int:
    return ENTRY_BYTES + LOGPROB_BYTES * len(answer.logprobs) + sys.getsizeof(answer.text)
