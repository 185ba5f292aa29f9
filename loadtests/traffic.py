"""Requests at a constant rate, whatever becomes of them: a slow answer does not slow the offering."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Ask:
    reference: str
    text: int
    body: dict[str, Any]
    done: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Outcome:
    """What came of a request. Times are of the event loop's clock; ``due`` is when it was to be sent."""

    reference: str
    text: int
    due: float
    began: float
    ended: float
    status: int
    body: Any

    @property
    def seconds(self) -> float:
        return self.ended - self.due


@dataclass
class Phase:
    """Stretches of constant load. ``seconds`` reach from the beginning of each to its last answer."""

    offered_seconds: float = 0.0
    seconds: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)

    def add(self, other: Phase) -> None:
        self.offered_seconds += other.offered_seconds
        self.seconds += other.seconds
        self.outcomes += other.outcomes


def connect(url: str) -> aiohttp.ClientSession:
    """Not httpx, which takes 3 ms of the cores that are measured for a request; this takes 0.2."""
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
    return aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0), timeout=timeout)


async def offer(
    client: aiohttp.ClientSession, rate: float, seconds: float, choose: Callable[[], Ask], seed: int
) -> Phase:
    """Send ``rate`` requests a second for ``seconds``; return when all are answered.

    Their moments are random, as those of people are: a Poisson process of which the number of arrivals is given.
    """
    loop, dice, tasks = asyncio.get_running_loop(), random.Random(seed), []
    began = loop.time()
    for due in sorted(began + dice.uniform(0, seconds) for _ in range(round(rate * seconds))):
        await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.create_task(send(client, choose(), due)))
    outcomes = await asyncio.gather(*tasks)
    return Phase(seconds, max(loop.time() - began, seconds), outcomes)


async def offer_while(
    client: aiohttp.ClientSession, rate: float, going_on: Callable[[], bool], choose: Callable[[], Ask], seed: int
) -> list[Outcome]:
    """Send ``rate`` requests a second, a Poisson process, while ``going_on``; return when all are answered."""
    loop, dice, tasks = asyncio.get_running_loop(), random.Random(seed), []
    due = loop.time()
    while going_on():
        due += dice.expovariate(rate)
        await asyncio.sleep(due - loop.time())
        tasks.append(asyncio.create_task(send(client, choose(), due)))
    return await asyncio.gather(*tasks)


async def send(client: aiohttp.ClientSession, ask: Ask, due: float) -> Outcome:
    """Ask once. What goes wrong on the way is an outcome of status 0."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    try:
        async with client.post("/v1/predict", json=ask.body) as response:
            status, body = response.status, await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        status, body = 0, repr(error)
    finally:
        ask.done()
    return Outcome(ask.reference, ask.text, due, began, loop.time(), status, body)
