"""How much the engine is given at once, how much may wait, and what is turned away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from service.errors import Overloaded
from service.metrics import Metrics

# English has about four characters to a token; the instructions and the answer come on top.
CHARS_PER_TOKEN, TOKENS_AROUND = 4, 16
# What fewer get done says little of what many would; more are never there where only short waits are allowed.
BUSY_TEXTS = 4
# What was measured so long ago counts half, or not at all: the mix of texts changes.
HALF_LIFE_SECONDS, FORGOTTEN_SECONDS = 10.0, 60.0


class Throughput:
    """Estimated tokens a second of a busy engine: a mean over the busy time, the recent counting more.

    Only what is measured with enough work in the engine says what it can do; a text alone takes as long as it takes
    (as with the samples that are limited by their sender in BBR, Cardwell et al. 2016).
    """

    def __init__(self) -> None:
        self._tokens = self._seconds = 0.0
        self._last = self._measured = time.monotonic()

    def resume(self) -> None:
        """Begin to count time: there is enough work."""
        self._last = time.monotonic()

    def done(self, tokens: float) -> None:
        """Count finished work."""
        now = time.monotonic()
        passed, self._last, self._measured = now - self._last, now, now
        kept = 0.5 ** (passed / HALF_LIFE_SECONDS)
        self._tokens, self._seconds = self._tokens * kept + tokens, self._seconds * kept + passed

    @property
    def rate(self) -> float:
        """Tokens a second; infinite while nothing is known, or not any more."""
        if time.monotonic() - self._measured > FORGOTTEN_SECONDS:
            self._tokens = self._seconds = 0.0
        return self._tokens / self._seconds if self._seconds > 0 and self._tokens > 0 else math.inf


class Admission:
    """``concurrency`` texts in the engine and ``queue`` more waiting, for no longer than about ``max_wait`` seconds.

    A request beyond either is refused as a whole; one that finds nothing before it is always taken.
    """

    def __init__(self, concurrency: int, queue: int, max_wait: float, metrics: Metrics) -> None:
        self._concurrency, self._capacity, self._max_wait = concurrency, concurrency + queue, max_wait
        self._metrics, self._turns = metrics, asyncio.Semaphore(concurrency)
        self._throughput = Throughput()
        self._texts, self._tokens = 0, 0.0

    @property
    def has_time(self) -> bool:
        """Whether the engine is less than half full: time for what nobody waits for."""
        return 2 * self._texts < self._concurrency

    @property
    def _busy(self) -> bool:
        """Whether there is enough in the engine for its rate to say what it can do."""
        return self._texts >= min(BUSY_TEXTS, self._concurrency)

    @asynccontextmanager
    async def admit(self, texts: Sequence[str]) -> AsyncIterator[None]:
        """Count ``texts`` in, or raise :class:`Overloaded` saying when there should be room for them."""
        tokens, rate = estimated_tokens(texts), self._throughput.rate
        if not self._texts:
            self._tokens = 0.0
        if not self._busy:
            self._throughput.resume()
        crowd = self._texts + len(texts) - self._capacity
        excess = self._tokens + tokens - self._max_wait * rate
        if crowd > 0 or (excess > 0 and self._texts):
            self._metrics.refused_tokens.inc(tokens)
            # Whatever is over must be done first; beyond an empty queue there is nothing to wait for.
            share = min(1.0, max(crowd / max(self._texts, 1), excess / max(self._tokens, 1.0)))
            wait = max(1, min(60, math.ceil(share * self._tokens / rate)))
            raise Overloaded(self._why(crowd, rate), retry_after=wait)
        self._texts += len(texts)
        self._tokens += tokens
        try:
            yield
        finally:
            self._texts -= len(texts)
            self._tokens -= tokens

    def _why(self, crowd: int, rate: float) -> str:
        if crowd > 0:
            return f"{self._texts} texts are being answered or wait, and {self._capacity} may; send fewer."
        return f"What was sent before takes about {self._tokens / rate:.1f} s to answer; send fewer, or come back."

    @asynccontextmanager
    async def turn(self, text: str) -> AsyncIterator[None]:
        """Wait for the engine to take one more text."""
        started = time.monotonic()
        self._metrics.waiting.inc()
        try:
            await self._turns.acquire()
        finally:
            self._metrics.waiting.dec()
        self._metrics.queue_seconds.observe(time.monotonic() - started)
        self._metrics.in_flight.inc()
        try:
            yield
            if self._busy:
                self._throughput.done(estimated_tokens([text]))
            else:
                self._throughput.resume()
        finally:
            self._metrics.in_flight.dec()
            self._turns.release()


def estimated_tokens(texts: Sequence[str]) -> float:
    """Return about how many tokens ``texts`` are, without making them."""
    return sum(len(text) / CHARS_PER_TOKEN + TOKENS_AROUND for text in texts)
