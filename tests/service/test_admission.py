"""Nobody is refused who would have been answered in time; in true overload, whoever is taken is.

On a clock of its own: an engine is simulated that takes texts in batches, at the rates of a CPU and of a GPU.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from service.errors import Overloaded
from service.metrics import Metrics
from service.serving.admission import Admission, estimated_tokens

pytestmark = pytest.mark.anyio
MAX_WAIT = 10.0
# (texts in a batch, seconds that it takes)
CPU, GPU, ONE_BY_ONE, SLOW = (16, 1.5), (32, 0.05), (1, 0.5), (4, 4.0)
ENGINES = [CPU, GPU, ONE_BY_ONE, SLOW]

# Turns of the event loop in which everything that can happen at one moment happens.
SETTLED = 10


class World:
    """Time that passes only when nothing is left to do, an engine, and an admission in front of it."""

    def __init__(self, patch: pytest.MonkeyPatch, width: int, seconds: float) -> None:
        self.now, self.width, self.seconds = 1000.0, width, seconds
        patch.setattr("service.serving.admission.time", self)
        self.admission = Admission(2 * width, 100_000, MAX_WAIT, Metrics())
        self.refused, self.waits, self.waits_told = 0, list[float](), list[int]()
        self._events: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers, self._waiting = itertools.count(), deque[asyncio.Future[None]]()
        self._work, self._cold = asyncio.Event(), 0.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), future))
        await future

    async def run(self, story: Coroutine[Any, Any, None]) -> None:
        """Live through ``story``, and on until all is answered."""
        engine, told = asyncio.create_task(self._engine()), asyncio.create_task(story)
        settled = 0
        while not told.done() or self.admission._texts:
            await asyncio.sleep(0)
            settled += 1
            if settled > SETTLED and self._events:
                settled, (self.now, _, future) = 0, heapq.heappop(self._events)
                future.set_result(None)
        await told
        engine.cancel()

    def cool(self, seconds: float) -> None:
        """Have the next batch take so much longer."""
        self._cold = seconds

    async def ask(self, texts: int = 1, chars: int = 300) -> None:
        began, text = self.now, "x" * chars

        async def one() -> None:
            async with self.admission.turn(estimated_tokens([text])):
                self._waiting.append(done := asyncio.get_running_loop().create_future())
                self._work.set()
                await done

        try:
            async with self.admission.admit([text] * texts):
                await asyncio.gather(*(one() for _ in range(texts)))
            self.waits.append(self.now - began)
        except Overloaded as overloaded:
            self.waits_told.append(overloaded.retry_after or 0)
            self.refused += texts

    async def _engine(self) -> None:
        while True:
            batch = [self._waiting.popleft() for _ in range(min(self.width, len(self._waiting)))]
            if not batch:
                self._work.clear()
                await self._work.wait()
                continue
            cold, self._cold = self._cold, 0.0
            await self.sleep(self.seconds + cold)
            for done in batch:
                done.set_result(None)


MakeWorld = Callable[..., World]


@pytest.fixture(params=ENGINES, ids=["cpu", "gpu", "one-by-one", "slow"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch, *request.param)


def burst(world: World, seconds: float) -> int:
    """Return how many texts the engine answers in so long."""
    return min(1500, max(1, int(seconds / world.seconds) * world.width))


async def together(world: World, texts: int) -> None:
    await asyncio.gather(*(world.ask() for _ in range(texts)))


async def test_the_first_burst_of_all_is_taken(world: World) -> None:
    await world.run(together(world, burst(world, MAX_WAIT * 0.8)))
    assert world.refused == 0


async def test_after_texts_one_by_one_a_burst_is_taken(world: World) -> None:
    async def story() -> None:
        for _ in range(20):
            await world.ask()
        await together(world, burst(world, MAX_WAIT * 0.8))

    await world.run(story())
    assert world.refused == 0


async def test_bursts_with_pauses_are_taken(world: World) -> None:
    async def story() -> None:
        for pause in (0.1, 1, 30, 70, 0.5):
            await together(world, burst(world, MAX_WAIT * 0.8))
            await world.sleep(pause)

    await world.run(story())
    assert world.refused == 0


async def test_after_a_cold_adapter_a_burst_is_taken(world: World) -> None:
    async def story() -> None:
        world.cool(8)
        await together(world, world.width)
        for _ in range(4):
            await together(world, burst(world, MAX_WAIT * 0.7))
        world.cool(8)
        await together(world, world.width)
        await together(world, burst(world, MAX_WAIT * 0.7))

    await world.run(story())
    assert world.refused == 0


async def test_a_steady_stream_below_what_the_engine_can_do_is_taken(world: World) -> None:
    async def story() -> None:
        tasks = []
        for _ in range(300):
            tasks.append(asyncio.create_task(world.ask()))
            await world.sleep(world.seconds / world.width / 0.8)
        await asyncio.gather(*tasks)

    await world.run(story())
    assert world.refused == 0


async def test_batches_of_texts_and_texts_of_other_lengths_are_taken(world: World) -> None:
    async def story() -> None:
        for n in range(30):
            size = 1 + (n * 7) % max(2, burst(world, MAX_WAIT * 0.4))
            await asyncio.gather(world.ask(size, chars=200), world.ask(1, chars=300))

    await world.run(story())
    assert world.refused == 0


async def test_in_overload_some_are_refused_and_who_is_taken_is_answered_in_time(world: World) -> None:
    async def story() -> None:
        await together(world, burst(world, max(6, 5 * world.seconds)))  # so that something is known
        tasks, gap = [], world.seconds / world.width / 3
        for _ in range(int(20 / gap)):
            tasks.append(asyncio.create_task(world.ask()))
            await world.sleep(gap)
        await asyncio.gather(*tasks)

    await world.run(story())
    assert world.refused > 10
    assert 1 <= min(world.waits_told) <= max(world.waits_told) <= 60
    assert max(world.waits) < 1.5 * MAX_WAIT + 2 * world.seconds
