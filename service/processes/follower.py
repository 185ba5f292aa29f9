"""``python -m service.processes.follower``: an API process that follows the one which has started it. Not for people.

It answers as its owner does; what there is once, it asks of the owner: loads, flips, quotas, the metrics of all.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import FastAPI
from limits import RateLimitItem
from prometheus_client import CollectorRegistry

from adapters.base_model import Base, resolve_base
from adapters.catalogue import Catalogue, Entry
from adapters.releases import Release
from adapters.signing import TrustedKeys
from adapters.store import Store
from service import logs, tracing
from service.engine.made import made
from service.group import Group
from service.http import connection
from service.http.application import assembled
from service.http.keys import Keys
from service.http.quota import Quota
from service.jobs.desk import Desk
from service.metrics import Metrics
from service.monitoring.engine import EngineCollector
from service.offload import Offload
from service.parts import CALLS_AT_ONCE, Parts
from service.processes import merging
from service.processes.accepting import Loads
from service.processes.fleet import ASK_SECONDS, SCRAPE_SECONDS, Role, Snapshot
from service.processes.lending import Borrowed
from service.processes.link import Link
from service.processes.merging import Told
from service.processes.place import Place
from service.rollout.evidence import Tally
from service.rollout.reconciler import forget_what_is_gone
from service.serving.routing import Routing

DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG
# A question to the store by way of the owner: so many times the limit of one question.
PATIENCE = 3


class OwnersQuota(Quota):
    """Counts in the owner: a key has one rate, whichever process it asks."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def check(self, caller: str, rate: RateLimitItem | None) -> None:
        """Nothing: what is too much is refused when it is counted."""

    async def charge(self, caller: str, rate: RateLimitItem | None) -> None:
        await self._link.ask("charge", caller, rate, seconds=ASK_SECONDS)

    async def take(self, caller: str, rate: RateLimitItem | None, texts: int) -> dict[str, str]:
        if rate is None:
            return {}
        headers: dict[str, str] = await self._link.ask("counted", caller, rate, texts, seconds=ASK_SECONDS)
        return headers


class OwnersTally(Tally):
    """Counts in the owner, which judges canaries."""

    def __init__(self, link: Link, routing: Routing) -> None:
        super().__init__()
        self._link, self._routing = link, routing

    def answered(self, name: str, version: int, seconds: float, *, failed: bool) -> None:
        self._tell(name, "answered", version, seconds, failed=failed)

    def judged(self, name: str, version: int, *, right: bool) -> None:
        self._tell(name, "judged", version, right=right)

    def compared(self, name: str, version: int, *, agree: bool) -> None:
        self._tell(name, "compared", version, agree=agree)

    def _tell(self, name: str, what: str, *given: Any, **more: bool) -> None:
        release = self._routing.served(name)
        if release is not None and release.guard is not None:
            self._link.tell("tally", what, (name, *given), more)


class Mirror:
    """In the reconciler's place: what the owner serves, is served here. It is the supervisor's phase as well."""

    def __init__(self, link: Link, routing: Routing, residency: Borrowed, metrics: Metrics, seconds: float) -> None:
        self._link, self._routing, self._residency, self._metrics = link, routing, residency, metrics
        self._seconds = PATIENCE * seconds
        self.store_reachable = True

    async def find(self, name: str) -> bool:
        found: bool = await self._link.ask("find", name, seconds=self._seconds)
        return found

    async def refresh(self, name: str) -> None:
        await self._link.ask("refresh", name, seconds=self._seconds)

    def wake(self) -> None:
        self._link.tell("wake")

    def follow(self, snapshot: Snapshot) -> None:
        self._routing.follow(snapshot.catalogue, snapshot.releases)

    def see(self, changed: list[Entry], gone: set[str]) -> None:
        before = self._routing.catalogue
        kept = Catalogue({name: entry for name, entry in before.entries.items() if name not in gone})
        self._routing.catalogue = kept.updated(changed)
        forget_what_is_gone(self._metrics, before, self._routing.catalogue)
        self._residency.supersede_retired()

    def serve(self, name: str, release: Release) -> None:
        for key in self._routing.flip(name, release):
            self._residency.supersede(key)


class Follower:
    """What the owner tells, and what is done about it."""

    def __init__(self, role: Role, link: Link, keys: Keys) -> None:
        settings = role.settings
        self.role, self.link, self.engine = role, link, made(settings, base := _base(role))
        trusted = TrustedKeys(settings.trusted_keys) if settings.trusted_keys else None
        store, offload = Store(role.store, trusted=trusted), Offload(settings.store_seconds, CALLS_AT_ONCE)
        self.metrics, routing = Metrics(), Routing()
        self.residency = Borrowed(link, self.engine, routing)
        self.mirror = Mirror(link, routing, self.residency, self.metrics, settings.store_seconds)
        self.parts = Parts.of(
            *(settings, role.place, self.engine, store, offload, base, routing, self.residency, self.mirror.find),
            *(self.metrics, OwnersTally(link, routing)),
        )
        self.parts.feedback.elsewhere = self._elsewhere
        self.metrics.registry.register(EngineCollector(self.parts.admission, None, 0, 0))
        self.phase, self.joined, self._engine_turn = "starting", asyncio.Event(), asyncio.Lock()
        self.app = assembled(
            settings,
            self.parts,
            self._lifespan,
            keys=keys,
            engine=self.engine,
            store=store,
            base=base,
            metrics=self.metrics,
            routing=routing,
            residency=self.residency,
            offload=offload,
            reconciler=self.mirror,
            supervisor=self,
            quota=OwnersQuota(link),
            desk=Desk(settings, store.place),
            actual=self.residency.actual,
            scrape=self._scrape_all,
        )

    def handlers(self) -> Iterator[tuple[str, Callable[..., Any]]]:
        yield "join", self._join
        yield "lost", self._lost
        yield "phase", self._enter
        yield "see", self.mirror.see
        yield "serve", self.mirror.serve
        yield "recall", self.residency.recall
        yield "alive", self._alive
        yield "feedback", self.parts.feedback.take_here
        yield "scrape", self._scrape

    def _join(self, seat: Any, snapshot: Snapshot) -> Any:
        self.mirror.follow(snapshot)  # now: what is told next follows upon it
        return self._join_engine(seat, snapshot.phase)

    async def _join_engine(self, seat: Any, phase: str) -> None:
        async with self._engine_turn:
            await self.engine.join(seat)
            self.joined.set()
            self._enter(self.phase if self.phase != "starting" else phase)

    def _lost(self) -> Any:
        self.engine.lost()
        self.joined.clear()
        self._enter("restarting its engine")
        return self._leave_engine()

    async def _leave_engine(self) -> None:
        async with self._engine_turn:  # or the engine that is joined next would be left as well
            await self.residency.forget()
            await self.engine.stop()

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self.parts.answering.open = phase == "serving" and self.joined.is_set()

    def _alive(self, store_reachable: bool | None = None) -> None:
        if store_reachable is not None:
            self.mirror.store_reachable = store_reachable

    async def _elsewhere(self, *asked: Any) -> Any:
        return await self.link.ask("feedback", *asked, seconds=2 * ASK_SECONDS)

    async def _scrape(self) -> Told:
        return await asyncio.to_thread(Told.of, self.engine.measured, self.metrics.registry)

    async def _scrape_all(self) -> CollectorRegistry:
        return merging.registry(await self.link.ask("scrape", seconds=2 * SCRAPE_SECONDS))

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.parts.feedback.start()
        async with Group() as group:
            group.keep("lending", self.residency.run)
            yield
        self._enter("stopping")
        await self.parts.close()
        await self.residency.close()
        await self.engine.stop()


def main(owner: int, number: int, count: int, link: int, listener: int, loads: int) -> None:
    ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != owner:
        sys.exit()  # it died before
    # uvicorn drains, then raises the signal again: having done what it asked for is no failure.
    signal.signal(signal.SIGTERM, lambda *_: None)
    asyncio.run(_serve(Place(number, count), socket.socket(fileno=link), socket.socket(fileno=listener), loads))


async def _serve(place: Place, end: socket.socket, listener: socket.socket, loads: int) -> None:
    link = await Link.over(end)
    listening = asyncio.create_task(link.run())
    role: Role = await link.ask("role", seconds=ASK_SECONDS)
    settings = role.settings
    logs.set_up(settings.log_level, settings.log_format)
    tracing.set_up()
    follower = Follower(role, link, Keys.of(settings))
    link.handlers = dict(follower.handlers())
    link.tell("built")
    joined = asyncio.create_task(follower.joined.wait())
    await asyncio.wait((joined, listening), return_when=asyncio.FIRST_COMPLETED)
    if listening.done():
        return
    server = connection.server(follower.app, place.share(settings), Loads(loads, place))
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    await asyncio.wait((serving, listening), return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    await serving


def _base(role: Role) -> Base:
    return replace(resolve_base(role.base_folder, role.settings.cache), name=role.base_name)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
