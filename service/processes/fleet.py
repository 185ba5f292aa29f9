"""The processes that follow this one: started, told what is served, watched, and started again when they end."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

from adapters.base_model import Base
from adapters.catalogue import Catalogue, Entry
from adapters.releases import Release
from service.engine.base import Engine, EngineDown
from service.group import Group
from service.http import connection
from service.http.keys import Caller
from service.http.quota import Quota
from service.http.schemas import FeedbackRequest
from service.metrics import Metrics
from service.monitoring.feedback import Feedback, Taken
from service.processes import merging
from service.processes.accepting import Loads
from service.processes.lending import Leases
from service.processes.link import Link, LinkLost
from service.processes.merging import Told, counted, merged, without
from service.processes.place import Place
from service.rollout.evidence import Tally
from service.rollout.reconciler import Reconciler
from service.serving.residency import Residency
from service.serving.routing import Key, Routing
from service.settings import Settings

logger = logging.getLogger("hotswap")
COMMAND = (sys.executable, "-m", "service.processes.follower")
PING_SECONDS, AGAIN_SECONDS, STOP_SECONDS = 1.0, 1.0, 5.0
# A process imports vLLM, which takes a quarter of a minute on a small machine, and connects to the engine.
JOIN_SECONDS = 300.0
SCRAPE_SECONDS, CATCH_UP_SECONDS, ASK_SECONDS = 2.0, 1.0, 5.0
# Followers that end so often within so long will end again: the service ends, for whoever supervises it.
DEATHS, WITHIN_SECONDS = 5, 600.0


@dataclass(frozen=True)
class Role:
    """What a follower is to be."""

    settings: Settings
    place: Place
    store: str
    base_name: str
    base_folder: str


@dataclass(frozen=True)
class Snapshot:
    """What is served at one moment."""

    catalogue: Catalogue
    releases: dict[str, Release]
    phase: str


@dataclass(frozen=True)
class Owned:
    """What there is only once, and in this process."""

    engine: Engine
    routing: Routing
    residency: Residency
    reconciler: Reconciler
    quota: Quota
    feedback: Feedback
    tally: Tally
    metrics: Metrics


@dataclass(eq=False)
class _Follower:
    number: int
    process: subprocess.Popen[bytes]
    link: Link
    leases: Leases
    built: bool = False
    hangs: bool = False
    seat: Any = None
    joined: asyncio.Event = field(default_factory=asyncio.Event)
    told: Told = field(default_factory=lambda: Told(0.0, []))  # by its last scrape

    def kill(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()


class Fleet:
    """All API processes but this one. Nothing here waits for one of them for longer than ``engine_seconds``: who does
    not answer by then is ended, and another takes its place."""

    def __init__(self, settings: Settings, store: str, base: Base, listener: socket.socket) -> None:
        self.place = Place(0, settings.api_processes or 1)
        self._settings, self._store, self._base, self._listener = settings, store, base, listener
        self._fd, self.loads = Loads.made(self.place)
        self._limit = settings.engine_seconds
        self._followers: list[_Follower] = []
        self._following: list[_Follower] = []  # who is told of every change
        self._departed = Told(0.0, [])
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._group = Group()
        self._up = self._leaving = self.failed = False
        self._phase = "starting"

    def bind(self, owned: Owned) -> None:
        self._owned = owned
        owned.residency.departures.append(self._recall)
        owned.metrics.forgetting.append(self._forget)
        owned.feedback.elsewhere = self._feedback

    def server(self, app: FastAPI) -> uvicorn.Server:
        """Return what serves ``app`` beside the others, and has them end with it."""
        return connection.server(app, self.place.share(self._settings), self.loads, self.leave)

    @property
    def registry(self) -> CollectorRegistry:
        """The metrics of all processes, for a thread that asks for them."""

        def families() -> list[Metric]:
            return asyncio.run_coroutine_threadsafe(self.families(), self._loop).result(2 * SCRAPE_SECONDS)

        return merging.registry(families)

    def start(self) -> None:
        """Start the processes. They join when the engine is up."""
        self._loop = asyncio.get_running_loop()
        for number in range(1, self.place.count):
            self._group.keep("process beside this one", lambda number=number: self._keep(number))  # type: ignore[misc]

    def up(self) -> None:
        """Have all join the engine, which has been started."""
        self._up = True
        for follower in self._followers:
            self._have_join(follower)

    def down(self) -> None:
        """Tell all that the engine is gone."""
        self._up = False
        self._following.clear()
        for follower in self._followers:
            follower.joined.clear()
            follower.link.tell("lost")
            follower.leases.end()

    async def joined(self) -> None:
        """Wait until all have joined; those that need longer come later."""
        try:
            async with asyncio.timeout(JOIN_SECONDS):
                while not self.failed and not self._complete:
                    await asyncio.sleep(0.02)
        except TimeoutError:
            logger.warning("not all API processes have joined the engine; those that have answer")

    def phase(self, phase: str) -> None:
        """Have all answer, or refuse, as this process does."""
        self._phase = phase
        for follower in self._followers:
            follower.link.tell("phase", phase)

    def leave(self) -> None:
        """Have all answer what they were asked, and end."""
        self._leaving = True
        for follower in self._followers:
            with suppress(ProcessLookupError):
                follower.process.terminate()

    async def close(self) -> None:
        """Wait until all have ended."""
        self.leave()
        give_up = time.monotonic() + self._settings.drain_seconds + STOP_SECONDS
        while self._followers and time.monotonic() < give_up:
            await asyncio.sleep(0.02)
        await self._group.close()
        os.close(self._fd)

    # What the reconciler has to tell.

    def see(self, before: Catalogue, catalogue: Catalogue) -> None:
        known = before.entries
        changed = [entry for entry in catalogue if known.get(entry.name) != entry]
        gone = known.keys() - catalogue.entries.keys()
        if changed or gone:
            self._tell("see", changed, gone)

    def learn(self, entry: Entry) -> None:
        self._tell("see", [entry], set())

    async def flip(self, name: str, release: Release) -> None:
        await self._ask_all(self._limit, "serve", name, release)

    async def caught_up(self) -> None:
        await asyncio.gather(
            *(follower.link.ask("alive", seconds=CATCH_UP_SECONDS) for follower in self._following),
            return_exceptions=True,
        )

    # What is asked here for all of them.

    async def families(self) -> list[Metric]:
        """Return the metrics of all processes as one. What does not answer is as it was."""
        owned = self._owned
        ours = await asyncio.to_thread(Told.of, owned.engine.measured, owned.metrics.registry)
        await asyncio.gather(*(self._scrape(follower) for follower in self._followers))
        return await asyncio.to_thread(merged, [ours, self._departed, *(follower.told for follower in self._followers)])

    async def _scrape(self, follower: _Follower) -> None:
        with suppress(TimeoutError, LinkLost):
            follower.told = await follower.link.ask("scrape", seconds=SCRAPE_SECONDS)

    async def _feedback(
        self, caller: Caller, judgement: FeedbackRequest, asker: _Follower | None = None
    ) -> Taken | None:
        for follower in [each for each in self._following if each is not asker]:
            with suppress(TimeoutError, LinkLost):
                taken: Taken | None = await follower.link.ask("feedback", caller, judgement, seconds=ASK_SECONDS)
                if taken is not None:
                    return taken
        return None

    def _recall(self, key: Key) -> None:
        for follower in self._followers:
            follower.leases.recall(key)

    def _forget(self, name: str, version: str) -> None:
        for told in (self._departed, *(follower.told for follower in self._followers)):
            without(told, name, version)

    # Their lives.

    async def _keep(self, number: int) -> None:
        while not self._leaving:
            await self._live(number)
            if self._leaving:
                return
            self._deaths.append(time.monotonic())
            if len(self._deaths) == DEATHS and self._deaths[-1] - self._deaths[0] < WITHIN_SECONDS:
                logger.error("API processes ended %d times in %.0f s", DEATHS, WITHIN_SECONDS)
                self.failed = True
                return
            logger.error("API process %d has ended; it is started again", number)
            await asyncio.sleep(AGAIN_SECONDS)

    async def _live(self, number: int) -> None:
        """Start a process, and return when it has ended."""
        follower = await self._started(number)
        self._followers.append(follower)
        ends = [asyncio.create_task(follower.link.run()), asyncio.create_task(self._watch(follower))]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not follower.hangs:  # it is on its way out
                with suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(follower.process.wait, STOP_SECONDS)
        finally:
            follower.kill()
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
            await self._buried(follower)

    async def _started(self, number: int) -> _Follower:
        ours, theirs = socket.socketpair()
        fds = theirs.fileno(), self._listener.fileno(), self._fd
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - uvloop's would fork
                [*COMMAND, *map(str, (os.getpid(), number, self.place.count, *fds))],
                pass_fds=fds,
                stdin=subprocess.DEVNULL,
            )
        link = await Link.over(ours)
        follower = _Follower(number, process, link, Leases(self._owned.residency, self._owned.engine, link))
        link.handlers = dict(self._handlers(follower))
        return follower

    async def _buried(self, follower: _Follower) -> None:
        """Take note of a process's end: what it used is free again, and what it had asked of the engine is ended."""
        await asyncio.to_thread(follower.process.wait)
        self._followers.remove(follower)
        if follower in self._following:
            self._following.remove(follower)
        self.loads.clear(follower.number)
        self._departed = counted([self._departed, follower.told])
        if follower.joined.is_set():
            with suppress(EngineDown):
                await self._owned.engine.left(follower.seat)
        follower.leases.end()

    async def _watch(self, follower: _Follower) -> None:
        """Return when a process that answers requests has not answered us for too long."""
        while True:
            await follower.joined.wait()
            await asyncio.sleep(min(PING_SECONDS, self._limit / 4))
            if not follower.joined.is_set():
                continue
            try:
                await follower.link.ask("alive", self._owned.reconciler.store_reachable, seconds=self._limit)
            except LinkLost:
                return
            except TimeoutError:
                logger.error("API process %d does not answer; it is ended", follower.number)
                follower.hangs = True
                return

    def _have_join(self, follower: _Follower) -> None:
        if self._up and follower.built:
            self._group.start(self._join(follower))

    async def _join(self, follower: _Follower) -> None:
        try:
            follower.seat = self._owned.engine.seat()
            # From here on it is told of every change.
            self._following.append(follower)
            await follower.link.ask("join", follower.seat, self._snapshot(), seconds=JOIN_SECONDS)
        except (EngineDown, LinkLost, TimeoutError) as error:
            logger.error("API process %d could not join the engine: %s", follower.number, error or type(error).__name__)
            follower.kill()
        else:
            if self._up:
                follower.joined.set()
                logger.info("API process %d answers (%d)", follower.number, follower.process.pid)

    @property
    def _complete(self) -> bool:
        return sum(follower.joined.is_set() for follower in self._followers) == self.place.count - 1

    def _snapshot(self) -> Snapshot:
        routing = self._owned.routing
        return Snapshot(routing.catalogue, dict(routing.releases), self._phase)

    def _tell(self, what: str, *given: Any) -> None:
        for follower in self._following:
            follower.link.tell(what, *given)

    async def _ask_all(self, seconds: float, what: str, *given: Any) -> None:
        async def ask(follower: _Follower) -> None:
            try:
                await follower.link.ask(what, *given, seconds=seconds)
            except (TimeoutError, LinkLost):
                follower.kill()
                await asyncio.to_thread(follower.process.wait)

        await asyncio.gather(*(ask(follower) for follower in self._following))

    def _handlers(self, follower: _Follower) -> Iterator[tuple[str, Callable[..., Any]]]:
        owned = self._owned

        def built() -> None:
            follower.built = True
            self._have_join(follower)

        def role() -> Role:
            place = Place(follower.number, self.place.count)
            return Role(self._settings, place, self._store, self._base.name, str(self._base.folder))

        async def feedback(caller: Caller, judgement: FeedbackRequest) -> Taken | None:
            taken = await owned.feedback.take_here(caller, judgement)
            return taken if taken is not None else await self._feedback(caller, judgement, follower)

        def tally(what: str, given: tuple[Any, ...], more: dict[str, Any]) -> None:
            getattr(owned.tally, what)(*given, **more)

        yield "role", role
        yield "built", built
        yield "borrow", follower.leases.borrow
        yield "returned", follower.leases.returned
        yield "find", owned.reconciler.find
        yield "refresh", owned.reconciler.refresh
        yield "wake", owned.reconciler.wake
        yield "check", owned.residency.check
        yield "actual", owned.residency.actual
        yield "counted", owned.quota.counted
        yield "charge", owned.quota.charge
        yield "feedback", feedback
        yield "tally", tally
        yield "scrape", self.families
