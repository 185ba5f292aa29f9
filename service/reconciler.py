"""Desired (the store's releases) against actual (what is served): look, prepare, flip.

A release whose version cannot be loaded is not flipped to: the old one goes on serving, and the version's
state says why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress

from adapters.errors import HotswapError
from adapters.store import Release, Store
from service.desired import Desired
from service.engine.base import EngineDown
from service.errors import ServiceError
from service.metrics import Metrics
from service.registry import Registry
from service.watch import watch

logger = logging.getLogger("hotswap")


class Reconciler:
    """Polls the store, every ``poll_seconds`` and when woken, and moves the registry to what it finds."""

    def __init__(
        self, registry: Registry, store: Store, metrics: Metrics, poll_seconds: float, sweep_seconds: float
    ) -> None:
        self._registry, self._store, self._metrics = registry, store, metrics
        self._poll_seconds = poll_seconds
        self._desired = Desired(store, metrics, sweep_seconds)
        self._refused: dict[str, tuple[int, float]] = {}
        self._woken = asyncio.Event()
        self.store_reachable = True

    def wake(self) -> None:
        """Look now, not when it is time."""
        self._woken.set()

    async def run(self) -> None:
        """Reconcile for ever; a store that cannot be reached changes nothing."""
        watching = asyncio.create_task(watch(self._store, self.wake))
        try:
            await asyncio.sleep(0)  # the watch stands before the first look: nothing is missed in between
            while True:
                woken = self._woken.is_set()
                self._woken.clear()
                try:
                    await self.reconcile(sweep=woken)
                except Exception:
                    logger.exception("reconciling failed; the served releases stay")
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), self._poll_seconds)
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def reconcile(self, *, sweep: bool = False) -> None:
        """Look at every adapter once; with ``sweep`` in the store itself, whatever its pulse says."""
        try:
            releases = await asyncio.to_thread(lambda: self._desired.releases(sweep=sweep))
        except HotswapError as error:
            self._metrics.store_errors.inc()
            if self.store_reachable:
                logger.warning("%s; the served releases stay", error)
            self.store_reachable = False
            return
        if not self.store_reachable:
            logger.info("the store %s can be used again", self._store.place)
        self.store_reachable = True
        for name, release in releases.items():
            self._metrics.store_generation.labels(*self._metrics.bounded("adapter", name)).set(release.generation)
            served = self._registry.served(name)
            if served is None or served.generation != release.generation:
                await self._move(name, served, release)

    async def warm(self) -> None:
        """Make resident again what is served, as far as it fits. What fails now fails for who asks for it."""
        for name, release in self._registry.releases.items():
            if self._registry.has_room():
                with suppress(Exception):  # the registry has logged it
                    await self._prepare(name, release)

    async def _prepare(self, name: str, release: Release) -> None:
        for version in release.versions:
            await self._registry.prepare(name, version)

    async def _move(self, name: str, served: Release | None, release: Release) -> None:
        started = time.monotonic()
        refused, since = self._refused.get(name, (0, 0.0))
        if refused == release.generation and started - since < 30:
            return
        try:
            # A first look warms what fits; a change is always proven loadable before anyone is moved to it.
            if served is not None or self._registry.has_room():
                await self._prepare(name, release)
        except (ServiceError, HotswapError, EngineDown) as error:
            if served is not None:
                self._refused[name] = release.generation, started
                logger.error("%s stays at generation %d: %s", name, served.generation, error)
                return
        self._registry.flip(name, release)
        self._metrics.swap_seconds.observe(time.monotonic() - started)
        logger.info("%s: generation %d, stable %d", name, release.generation, release.stable)
