"""Desired (the store's releases) against actual (what is served): look, prepare, flip.

A release whose version cannot be loaded is not flipped to: the old one goes on serving, and the version's
state says why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from functools import partial

from adapters.errors import HotswapError
from adapters.store import Release, Store
from service.errors import AdapterFailed
from service.metrics import Metrics
from service.rollout.desired import Desired
from service.rollout.watch import watch
from service.serving.registry import Registry

logger = logging.getLogger("hotswap")


class Reconciler:
    """Polls the store, every ``poll_seconds`` and when woken, and moves the registry to what it finds."""

    def __init__(
        self, registry: Registry, store: Store, metrics: Metrics, poll_seconds: float, sweep_seconds: float
    ) -> None:
        self._registry, self._store, self._metrics = registry, store, metrics
        self._poll_seconds = poll_seconds
        self._tried: dict[str, int] = {}
        self._said: dict[str, Exception] = {}
        self._moves: dict[str, asyncio.Task[None]] = {}
        self._desired = Desired(store, metrics, sweep_seconds)
        self._woken = asyncio.Event()
        self._settled = False
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
                await self._look(sweep=woken)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._woken.wait(), self._poll_seconds)
        finally:
            for task in (watching, *self._moves.values()):
                task.cancel()
            await asyncio.gather(watching, *self._moves.values(), return_exceptions=True)

    async def _look(self, *, sweep: bool = False) -> None:
        try:
            await self.reconcile(sweep=sweep)
        except Exception:  # a fault of ours must not end the following
            logger.exception("reconciling failed; the served releases stay")

    async def reconcile(self, *, sweep: bool = False) -> None:
        """Look at every adapter once; with ``sweep`` in the store itself, whatever its pulse says."""
        try:
            wanted = await asyncio.to_thread(lambda: self._desired.look(sweep=sweep))
        except HotswapError as error:
            self._metrics.store_errors.inc()
            if self.store_reachable:
                logger.warning("%s; the served releases stay", error)
            self.store_reachable = False
            return
        if not self.store_reachable:
            logger.info("the store %s can be used again", self._store.place)
        self.store_reachable = True
        self._registry.retire(wanted.retired)
        for name in sorted(wanted.releases, key=lambda name: not self._registry.is_warm(name)):
            release, served = wanted.releases[name], self._registry.served(name)
            self._metrics.store_generation.labels(*self._metrics.bounded("adapter", name)).set(release.generation)
            behind = served is None or served.generation != release.generation
            # Side by side: an adapter that takes its time holds up no other.
            if behind and name not in self._moves:
                self._moves[name] = move = asyncio.create_task(self._move(name, served, release))
                move.add_done_callback(partial(self._moves.pop, name))

    async def settle(self) -> None:
        """Look, and wait until what can be served is; then until what is to be kept in memory is there."""
        await self._look()
        await asyncio.gather(*self._moves.values(), return_exceptions=True)
        self._settled = True
        await self.warm()

    async def warm(self) -> None:
        """Make resident what is to be kept, then what is served, as far as it fits. The registry logs what fails."""
        for name, version in self._registry.warm_versions:
            with suppress(Exception):
                await self._registry.prepare(name, version)
        releases = self._registry.releases
        for name in sorted(releases, key=lambda name: not self._registry.is_warm(name)):
            if self._registry.is_warm(name) or self._registry.has_room():
                with suppress(Exception):
                    await self._prepare(name, releases[name])

    async def _prepare(self, name: str, release: Release) -> None:
        for version in release.versions:
            await self._registry.prepare(name, version)

    async def _move(self, name: str, served: Release | None, release: Release) -> None:
        started = time.monotonic()
        if self._tried.get(name) != release.generation:
            self._tried[name] = release.generation
            self._registry.give_another_chance(name, release)
        try:
            # The first look warms what fits; a change is always proven good before anyone is moved to it.
            if self._settled or self._registry.is_warm(name) or self._registry.has_room():
                await self._prepare(name, release)
        except Exception as error:
            kept = served or await self._earlier(name, release, error)
            if kept is not None:
                # Said when it is tried, not at every poll in between.
                if self._said.get(name) is not error:
                    logger.error("%s stays at generation %d: %s", name, kept.generation, error)
                self._said[name] = error
                if served is None:
                    self._registry.flip(name, kept)
                return
        self._registry.flip(name, release)
        self._metrics.swap_seconds.observe(time.monotonic() - started)
        logger.info("%s: generation %d, stable %d", name, release.generation, release.stable)

    async def _earlier(self, name: str, release: Release, error: Exception) -> Release | None:
        """Return the newest earlier release that can be served: what a replica that was not restarted still serves.

        None where the version is not at fault: then it is waited for.
        """
        if not isinstance(error, AdapterFailed):
            return None
        try:
            history = await asyncio.to_thread(self._store.history, name)
            retired = await asyncio.to_thread(self._store.retired, name)
        except HotswapError:
            return None
        for earlier in reversed(history):
            if earlier.generation < release.generation and retired.isdisjoint(earlier.versions):
                with suppress(Exception):
                    await self._prepare(name, earlier)
                    return earlier.model_copy(update={"guard": None})  # nobody judges what is served for want of better
        return None
