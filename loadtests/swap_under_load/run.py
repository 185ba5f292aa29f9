"""The run: a server of its own, constant load, a quiet phase, and one full of changes."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from adapters.base_model import resolve_base
from adapters.store import Store
from loadtests.bench.process import Process
from loadtests.serving import memory, ready, say, service
from loadtests.swap_under_load.changes import Changes, Publisher
from loadtests.swap_under_load.fingerprints import TEXTS, make_task, make_variants
from loadtests.swap_under_load.fleet import Adapter
from loadtests.traffic import Ask, Phase, connect, offer

VARIANTS = 4  # sets of weights that an adapter's versions take in turn
PINNED, CANARY = 0.15, 0.1  # shares of the requests; the others name the adapter alone
RECENT = 3  # pinned requests ask for one of the last so many versions
CALLERS = 200
ROUND_SECONDS = 20
MEMORY_EVERY_SECONDS = 5
MAX_LORAS = 32  # what is released, tried out and asked for by version fits into a batch


@dataclass(frozen=True)
class Plan:
    """``seconds`` with changes and ``quiet`` ones without, in turns, so that a machine that is slow for a while is slow
    for both; ``rate`` requests a second; and a change ``every`` so often."""

    seconds: float
    quiet: float
    rate: float
    every: float
    adapters: int
    base: str | None = None
    processes: int = 1  # that answer

    @property
    def rounds(self) -> int:
        return max(1, round(self.seconds / ROUND_SECONDS))


@dataclass(frozen=True)
class Run:
    """``memory`` is the resident bytes of the server's processes, by seconds since the load began; ``others`` is the
    share of the CPUs' time that went to processes that are none of ours."""

    plan: Plan
    base: str
    fleet: list[Adapter]
    quiet: Phase
    swaps: Phase
    published: int
    retired: int
    memory: list[tuple[float, dict[str, int]]]
    metrics: str
    others: float


def run(plan: Plan, scratch: Path) -> Run:
    """Do it all in ``scratch``. Raises :class:`~adapters.errors.HotswapError` where it cannot go on."""
    base = resolve_base(plan.base)
    task = make_task(base)
    say(f"making {plan.adapters * VARIANTS} sets of weights, and asking PEFT what each answers")
    variants = make_variants(base, task, scratch / "variants", plan.adapters * VARIANTS)
    fleet = [Adapter(f"swap-{n}", variants[n * VARIANTS : (n + 1) * VARIANTS]) for n in range(plan.adapters)]
    store = Store(scratch / "store")
    publisher = Publisher(scratch / "store", base, task)
    try:
        return asyncio.run(_run(plan, base.name, str(base.folder), scratch, fleet, store, publisher))
    finally:
        publisher.close()


async def _run(
    plan: Plan, name: str, folder: str, scratch: Path, fleet: list[Adapter], store: Store, publisher: Publisher
) -> Run:
    places = {"store": scratch / "store", "cache": scratch / "cache", "base_model": folder}
    some = {"max_loras": MAX_LORAS, "api_processes": plan.processes}
    with service(scratch / "service.log", **some, **places) as (url, process):
        async with connect(url, each=plan.processes > 1) as client:
            changes = Changes(client, store, publisher, fleet)
            for number, adapter in enumerate(fleet):
                await changes.begin(adapter, RECENT, canary=number % 2 == 0)
            say("starting the service")
            await asyncio.to_thread(process.wait, lambda: ready(url))
            looking = asyncio.create_task(changes.look())
            try:
                return await _measure(plan, name, client, changes, fleet, process)
            finally:
                looking.cancel()


async def _measure(
    plan: Plan, name: str, client: aiohttp.ClientSession, changes: Changes, fleet: list[Adapter], process: Process
) -> Run:
    dice = random.Random(0)

    def _offer(seconds: float, seed: int) -> Coroutine[Any, Any, Phase]:
        return offer(client, plan.rate, seconds / plan.rounds, lambda: choose(fleet, dice), seed)

    await _offer(plan.quiet, seed=1)  # warms up
    work, used = _Work(), [(0.0, memory(process.id))]
    watching = asyncio.create_task(_watch(process.id, used))
    quiet, swaps = Phase(), Phase()
    say(f"{plan.rounds} rounds: {plan.quiet / plan.rounds:g} s of {plan.rate:g} requests a second, nothing changes;")
    say(f"then {plan.seconds / plan.rounds:g} s of the same, and a change every {plan.every:g} s")
    for number in range(plan.rounds):
        quiet.add(await _offer(plan.quiet, seed=2 + 2 * number))
        async with asyncio.TaskGroup() as group:
            group.create_task(changes.run(plan.seconds / plan.rounds, plan.every))
            load = group.create_task(_offer(plan.seconds, seed=3 + 2 * number))
        swaps.add(load.result())
    others = work.of_others()
    async with client.get("/metrics") as response:
        metrics = await response.text()
    watching.cancel()
    return Run(plan, name, fleet, quiet, swaps, changes.published, changes.retired, used, metrics, others)


async def _watch(process: int, used: list[tuple[float, dict[str, int]]]) -> None:
    began = time.monotonic()
    while True:
        await asyncio.sleep(MEMORY_EVERY_SECONDS)
        used.append((time.monotonic() - began, memory(process)))


def choose(fleet: list[Adapter], dice: random.Random) -> Ask:
    """Return the next request: any adapter, by its name, by a version, or by its canary where it has one."""
    adapter, text, kind = dice.choice(fleet), dice.randrange(len(TEXTS)), dice.random()
    reference, done = adapter.name, _nothing
    if kind < PINNED:
        reference = f"{adapter.name}@{dice.choice(sorted(adapter.versions)[-RECENT:])}"
    elif kind < PINNED + CANARY and (tried := [a for a in fleet if a.canary]):
        adapter = dice.choice(tried)
        reference, done = f"{adapter.name}@canary", _count(adapter)
    caller = f"user-{dice.randrange(CALLERS)}"
    return Ask(reference, text, {"adapter": reference, "input": TEXTS[text], "caller": caller}, done)


def _count(adapter: Adapter) -> Callable[[], None]:
    adapter.asking += 1

    def done() -> None:
        adapter.asking -= 1

    return done


def _nothing() -> None:
    pass


class _Work:
    """Who has used the CPUs since this was made."""

    def __init__(self) -> None:
        self._began = self._now()

    def of_others(self) -> float:
        """Return the share of the CPUs' time that was used, and not by us."""
        (idle, busy, ours), then = self._now(), self._began
        mine, used = ours - then[2], busy - then[1]
        return max(0.0, used - mine) / (idle - then[0] + used)

    def _now(self) -> tuple[float, float, float]:
        times, ours = psutil.cpu_times(), 0.0
        me = psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with suppress(psutil.Error):
                ours += sum(process.cpu_times()[:2])
        idle = times.idle + times.iowait
        return idle, sum(times) - times.guest - times.guest_nice - idle, ours
