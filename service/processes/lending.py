"""Versions that one process has loaded and others use: each that is lent is a use like a request's."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from service.engine.base import Engine
from service.metrics import Metrics
from service.processes.link import Link
from service.serving.loader import Loaded
from service.serving.residency import Actual, Residency, Slot
from service.serving.routing import Choice, Key, Routing

# What a follower has not used for so long goes back: the owner can then tell what is used from what is not.
IDLE_SECONDS, LOOK_SECONDS = 5.0, 1.0


@dataclass(frozen=True)
class Lent:
    """A version in the engine, and what another process needs to use it there."""

    loaded: Loaded
    handle: Any


class Leases:
    """What one follower uses, as the owner of the engine sees it. Nothing of it is unloaded before it is returned;
    ``link`` asks for it back."""

    def __init__(self, residency: Residency, engine: Engine, link: Link) -> None:
        self._residency, self._engine, self._link = residency, engine, link
        # One version may be lent again while what was lent before is on its way back.
        self._uses: defaultdict[Key, list[Slot]] = defaultdict(list)

    def __contains__(self, key: Key) -> bool:
        return bool(self._uses.get(key))

    def recall(self, key: Key) -> None:
        """Ask for a version back, if it is lent."""
        if key in self:
            self._link.tell("recall", *key)

    async def borrow(self, name: str, version: int) -> Lent:
        """Lend a version, loading it first if need be. Raises as :meth:`Residency.hold` does."""
        key = name, version
        slot = self._residency.enter(Choice(name, version, "stable"))
        try:
            loaded = await asyncio.shield(slot.ready)
            lent = Lent(loaded, self._engine.lent(loaded.engine_name))
        except BaseException:
            self._residency.leave(key, slot)
            raise
        self._uses[key].append(slot)
        if slot.state == "draining":  # others were asked for it while this was on its way: it follows what is lent
            asyncio.get_running_loop().call_soon(self.recall, key)
        return lent

    def returned(self, name: str, version: int, asked_for: float) -> None:
        """Take back what was lent first; ``asked_for`` is when somebody last named this very version there."""
        slots = self._uses.get((name, version))
        if slots:
            self._residency.leave((name, version), slots.pop(0), asked_for)

    def end(self) -> None:
        """Take everything back: the follower is gone, or the engine."""
        for key, slots in self._uses.items():
            for slot in slots:
                self._residency.leave(key, slot)
        self._uses.clear()


class _Borrower:
    """In the loader's place: has versions lent instead of loaded."""

    def __init__(self, link: Link, engine: Engine) -> None:
        self._link, self._engine = link, engine
        self.asked_for: dict[Key, float] = {}

    async def fetch(self, name: str, version: int) -> Lent:
        # As long as the owner needs: it waits for nothing without a limit, and if it dies, so do we.
        lent: Lent = await self._link.ask("borrow", name, version)
        return lent

    async def load(self, lent: Lent) -> Loaded:
        try:
            await self._engine.borrow(lent.loaded.engine_name, lent.handle)
        except BaseException:
            await self.unload(lent.loaded)
            raise
        return lent.loaded

    async def unload(self, loaded: Loaded) -> None:
        self._engine.give_back(loaded.engine_name)
        key = loaded.manifest.name, loaded.manifest.version
        self._link.tell("returned", *key, self.asked_for.pop(key, -math.inf))


class Borrowed(Residency):
    """The versions that this process uses of those which its owner has loaded."""

    log_level = logging.DEBUG

    def __init__(self, link: Link, engine: Engine, routing: Routing) -> None:
        self._borrower, self._link = _Borrower(link, engine), link
        # Loads are counted where they are made; these metrics are shown to nobody.
        super().__init__(self._borrower, routing, Metrics(), engine.limits.max_resident)

    async def run(self) -> None:
        """Return what is idle, again and again, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for key, slot in list(self._slots.items()):
                if slot.holds == 0 and time.monotonic() - slot.last_used > IDLE_SECONDS:
                    slot.superseded = True
                    self._let_go(key)

    def recall(self, name: str, version: int) -> None:
        """Close a version to new requests, and return it when its last one is answered."""
        if slot := self._slots.get((name, version)):
            self._tasks.start(self._recall((name, version), slot))

    async def check(self, name: str, version: int) -> None:
        await self._link.ask("check", name, version)

    async def actual(self, names: Any) -> dict[str, Actual]:
        actual: dict[str, Actual] = await self._link.ask("actual", list(names))
        return actual

    async def _recall(self, key: Key, slot: Slot) -> None:
        await asyncio.wait((slot.ready,))  # it may be lent and not have arrived
        if self._slots.get(key) is slot:
            await self._unload(key)

    async def _unload(self, key: Key) -> None:
        self._borrower.asked_for[key] = self._slots[key].asked_for
        await super()._unload(key)

    def _failure(self, key: Key, error: Exception) -> Exception:
        return error  # the owner knows when it is tried again
