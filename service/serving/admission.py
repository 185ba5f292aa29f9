"""How much the engine is given at once, how much may wait, and what is turned away."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from service.errors import InvalidRequest, Overloaded
from service.metrics import Metrics

# English has about four characters to a token; the instructions and the answer come on top.
CHARS_PER_TOKEN, TOKENS_AROUND = 4, 16
# Work is measured over windows of about so long. A batch's texts end together: a window lasts from the end of one
# batch to the end of another, and what is further apart than the gap belongs to two.
WINDOW_SECONDS, GAP_SECONDS = 1.0, 0.05
# The best of the last windows counts, for as long as it is not too old: the mix of texts changes.
WINDOWS, FORGOTTEN_SECONDS = 8, 60.0
# The first texts of all wait for kernels to be compiled and caches to be filled: fewer windows say nothing.
LEAST_WINDOWS = 3


class Throughput:
    """Tokens a second that the engine can do: the best of what was measured lately.

    Only what is measured while the engine is full says what it can do; few texts take as long as they take. And a
    pause, a slow batch or a cold adapter says nothing of the next second: an estimate below the truth would refuse
    what would have been answered in time. So it is a maximum over windows, as of delivery rates in BBR (Cardwell et
    al. 2016).
    """

    def __init__(self) -> None:
        self._windows: deque[tuple[float, float]] = deque(maxlen=WINDOWS)  # when it ended, tokens a second
        self._began = self._last = self._resumed = time.monotonic()
        self._idle_since, self._tokens = math.inf, 0.0

    def resume(self) -> None:
        """Note that the engine is full again: the time in which it was not does not count."""
        now = time.monotonic()
        if now - self._last > GAP_SECONDS:
            self._close(WINDOW_SECONDS)
            self._began += now - self._last
            self._last = self._resumed = now

    def done(self, tokens: float, seconds: float, *, busy: bool) -> None:
        """Count finished work that took so long; what of it was done before the engine was full does not count. The
        last texts of a batch find the engine all but empty, and count as well."""
        now = time.monotonic()
        self._idle_since = math.inf if busy else min(self._idle_since, now)
        if now - self._idle_since > GAP_SECONDS:
            return
        self._close(WINDOW_SECONDS if now - self._last > GAP_SECONDS else 2 * WINDOW_SECONDS)
        self._tokens += tokens * min(1.0, (now - self._resumed) / seconds if seconds else 1.0)
        self._last = now

    def _close(self, least: float) -> None:
        """End the window where the last text did, if it is so long."""
        length = self._last - self._began
        if length >= least:
            self._windows.append((self._last, self._tokens / length))
            self._began, self._tokens = self._last, 0.0

    @property
    def rate(self) -> float:
        """Tokens a second; infinite while nothing is known, or not any more."""
        if len(self._windows) < LEAST_WINDOWS:
            return math.inf
        now = time.monotonic()
        return max((rate for ended, rate in self._windows if now - ended < FORGOTTEN_SECONDS), default=math.inf)


@dataclass
class Ticket:
    """What a request brought in: texts, and their estimated tokens."""

    _admission: Admission
    texts: int
    tokens: float

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Do not count this as work for the engine meanwhile: it waits for something else."""
        self._admission.count(-self.texts, -self.tokens)
        try:
            yield
        finally:
            self._admission.count(self.texts, self.tokens)


class Admission:
    """``concurrency`` texts in the engine and ``queue`` more waiting, for no longer than about ``max_wait`` seconds.

    A request beyond either is refused as a whole; one that finds a free place in the engine does not wait.
    """

    def __init__(self, concurrency: int, queue: int, max_wait: float, metrics: Metrics) -> None:
        self.concurrency, self._capacity, self._max_wait = concurrency, concurrency + queue, max_wait
        self._metrics = metrics
        self._line: deque[Turns] = deque()
        self._throughput = Throughput()
        self._texts, self._in_engine, self._queued_tokens = 0, 0, 0.0

    @property
    def has_time(self) -> bool:
        """Whether the engine is less than half full: time for what nobody waits for."""
        return 2 * self._texts < self.concurrency

    @property
    def occupancy(self) -> float:
        """Texts in the engine, of those that it takes at once."""
        return self._in_engine / self.concurrency

    @property
    def running(self) -> int:
        """Texts in the engine."""
        return self._in_engine

    @property
    def waiting(self) -> int:
        """Texts that wait for the engine."""
        return sum(turns.left for turns in self._line)

    @property
    def _busy(self) -> bool:
        """Whether the engine is full: its rate says what it can do."""
        return self._in_engine >= self.concurrency

    @asynccontextmanager
    async def admit(self, texts: Sequence[str]) -> AsyncIterator[Ticket]:
        """Count ``texts`` in, or raise :class:`Overloaded` saying when there should be room for them, and
        :class:`InvalidRequest` where there never will be."""
        if len(texts) > self._capacity:
            raise InvalidRequest(f"The service takes at most {self._capacity} texts at once; send fewer in a request.")
        tokens, rate = estimated_tokens(texts), self._throughput.rate
        crowd = self._texts + len(texts) - self._capacity
        excess = self._queued_tokens + tokens - self._max_wait * rate
        if crowd > 0 or (excess > 0 and self._texts >= self.concurrency):
            self._metrics.refused_tokens.inc(tokens)
            # Whatever is over must be done first; beyond an empty queue there is nothing to wait for.
            share = min(1.0, max(crowd / max(self._texts, 1), excess / max(self._queued_tokens, 1.0)))
            wait = max(1, min(60, math.ceil(share * self._queued_tokens / rate)))
            raise Overloaded(self._why(crowd, rate), retry_after=wait)
        self.count(len(texts), tokens)
        try:
            yield Ticket(self, len(texts), tokens)
        finally:
            self.count(-len(texts), -tokens)

    def count(self, texts: int, tokens: float) -> None:
        """Count work in, or out again."""
        self._texts += texts
        self._queued_tokens = self._queued_tokens + tokens if self._texts else 0.0  # no rounding errors are kept

    def _why(self, crowd: int, rate: float) -> str:
        if crowd > 0:
            return f"{self._texts} texts are being answered or wait, and {self._capacity} may; send fewer."
        return (
            f"What was sent before takes about {self._queued_tokens / rate:.1f} s to answer; send fewer, or come back."
        )

    @asynccontextmanager
    async def turn(self, tokens: float) -> AsyncIterator[None]:
        """Wait for the engine to take one more text, of about so many tokens."""
        with self.turns([tokens]) as turns:
            await turns.next()
            yield
            turns.done(0)

    @contextmanager
    def turns(self, tokens: Sequence[float]) -> Iterator[Turns]:
        """Wait for the engine to take texts of about so many ``tokens``, in their order, each when there is room for
        one more."""
        turns = Turns(self, tokens)
        self._line.append(turns)
        self._metrics.waiting.inc(len(tokens))
        self._let_in()
        try:
            yield turns
        finally:
            turns.close()

    def _let_in(self) -> None:
        """Give the free places in the engine to whoever came first."""
        while self._line and self._in_engine < self.concurrency:
            first, was_busy = self._line[0], self._busy
            count = min(self.concurrency - self._in_engine, first.left)
            self._in_engine += count
            if self._busy and not was_busy:
                self._throughput.resume()
            first.give(count)
            if not first.left:
                self._line.popleft()

    def _out(self, count: int) -> None:
        self._in_engine -= count
        self._metrics.in_flight.dec(count)
        self._let_in()


class Turns:
    """A request's texts on their way through the engine. Nothing here waits but :meth:`next`."""

    def __init__(self, admission: Admission, tokens: Sequence[float]) -> None:
        self._admission, self._tokens, self._came = admission, tokens, time.monotonic()
        self._given = self._told = 0
        self._began: dict[int, float] = {}  # by place, of those that are in the engine
        self._woken = asyncio.Event()

    @property
    def left(self) -> int:
        """How many have had no turn yet."""
        return len(self._tokens) - self._given

    def give(self, count: int) -> None:
        """Let the next ``count`` into the engine."""
        now, metrics = time.monotonic(), self._admission._metrics
        for place in range(self._given, self._given + count):
            self._began[place] = now
            metrics.queue_seconds.observe(now - self._came)
        self._given += count
        metrics.waiting.dec(count)
        metrics.in_flight.inc(count)
        self._woken.set()

    async def next(self) -> range:
        """Wait for the turn of one text or more, and return their places; none when all have had theirs."""
        if self._told < len(self._tokens):
            await self._woken.wait()
        self._woken.clear()
        places = range(self._told, self._given)
        self._told = self._given
        return places

    def done(self, place: int) -> float:
        """Note that the engine has answered a text; return after how many seconds."""
        seconds = time.monotonic() - self._began.pop(place)
        admission = self._admission
        admission._throughput.done(self._tokens[place], seconds, busy=admission._busy)
        admission._out(1)
        return seconds

    def close(self) -> None:
        """Leave the line, and give back what is still in the engine: it was not answered."""
        if self.left:
            self._admission._line.remove(self)
            self._admission._metrics.waiting.dec(self.left)
            self._tokens = self._tokens[: self._given]
        if self._began:
            count = len(self._began)
            self._began.clear()
            self._admission._out(count)


def estimated_tokens(texts: Sequence[str]) -> float:
    """Return about how many tokens ``texts`` are, without making them."""
    return sum(len(text) / CHARS_PER_TOKEN + TOKENS_AROUND for text in texts)
