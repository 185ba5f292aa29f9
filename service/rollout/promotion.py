"""Canaries that are raised by themselves, and taken back when they are worse.

Every replica judges by its own traffic and writes a release record with create-if-absent, so of several that come to
a verdict one wins, and there is no leader. What was counted is lost with the process: the step begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import time

from adapters.errors import GenerationConflict, HotswapError
from adapters.releases import GUARD, Guard, Release, Share
from adapters.store import Store
from service.rollout.evidence import Tally, verdict
from service.rollout.reconciler import Reconciler
from service.serving.registry import Registry

logger = logging.getLogger("hotswap")


class Promotion:
    """Follows the guarded releases that are served here."""

    def __init__(
        self, registry: Registry, reconciler: Reconciler, store: Store, tally: Tally, poll_seconds: float
    ) -> None:
        self._registry, self._reconciler, self._store = registry, reconciler, store
        self._tally, self._poll_seconds = tally, poll_seconds
        self._since: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            for name, release in self._registry.releases.items():
                try:
                    await self._look(name, release)
                except GenerationConflict:
                    self._reconciler.wake()  # another replica, or a person, was first
                except HotswapError as error:
                    logger.warning("the canary of %s stays as it is: %s", name, error)

    async def _look(self, name: str, release: Release) -> None:
        guard, canary = release.guard, release.canary
        if guard is None or canary is None:
            if self._since.pop(name, None):
                self._tally.forget(name)
            return
        generation, since = self._since.get(name, (0, 0.0))
        if generation != release.generation:
            self._since[name] = release.generation, time.monotonic()
            self._tally.watch(name, release)
            return
        found = verdict(guard, self._tally.of(name, release.stable), self._tally.of(name, canary.version))
        if found.worse:
            await self._release(name, release, release.stable, None, None, f"canary {canary.version}: {found.why}")
        elif found.worse is False and time.monotonic() - since >= guard.seconds:
            await self._raise(name, release, guard, canary, found.why)

    async def _raise(self, name: str, release: Release, guard: Guard, canary: Share, why: str) -> None:
        step = guard.after(canary.percent)
        why = f"canary {canary.version} at {canary.percent} %: {why}"
        if step is None:
            await self._release(name, release, canary.version, None, None, why)
        else:
            await self._release(name, release, release.stable, Share(version=canary.version, percent=step), guard, why)

    async def _release(
        self, name: str, before: Release, stable: int, canary: Share | None, guard: Guard | None, why: str
    ) -> None:
        record = await asyncio.to_thread(
            self._store.release,
            name,
            stable,
            canary,
            shadow=before.shadow if guard else None,
            guard=guard,
            expected_generation=before.generation,
            by=GUARD,
            why=why,
        )
        logger.info("%s: generation %d, stable %d, by its guard: %s", name, record.generation, stable, why)
        self._reconciler.wake()
