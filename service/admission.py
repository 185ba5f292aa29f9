"""How much the engine is given at once, how much may wait, and what is turned away."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import Overloaded
from service.metrics import Metrics


class Admission:
    """``concurrency`` texts in the engine, ``queue`` more waiting; a request beyond is refused as a whole."""

    def __init__(self, concurrency: int, queue: int, metrics: Metrics) -> None:
        self._concurrency, self._capacity, self._metrics = concurrency, concurrency + queue, metrics
        self._turns = asyncio.Semaphore(concurrency)
        self._admitted = 0
        self._seconds = 1.0  # of a text in the engine, a moving average

    @property
    def has_time(self) -> bool:
        """Whether the engine is less than half full: time for what nobody waits for."""
        return 2 * self._admitted < self._concurrency

    @asynccontextmanager
    async def admit(self, texts: int) -> AsyncIterator[None]:
        """Count ``texts`` in, or raise :class:`Overloaded` saying when the queue should have room."""
        over = self._admitted + texts - self._capacity
        if over > 0:
            wait = max(1, min(60, math.ceil(over * self._seconds / self._concurrency)))
            raise Overloaded(f"{self._admitted} texts are being answered or wait; send fewer.", retry_after=wait)
        self._admitted += texts
        try:
            yield
        finally:
            self._admitted -= texts

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the engine to take one more text."""
        started = time.monotonic()
        self._metrics.waiting.inc()
        try:
            await self._turns.acquire()
        finally:
            self._metrics.waiting.dec()
        began = time.monotonic()
        self._metrics.queue_seconds.observe(began - started)
        self._metrics.in_flight.inc()
        try:
            yield
        finally:
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            self._metrics.in_flight.dec()
            self._turns.release()
