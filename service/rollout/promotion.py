"""Canaries that are raised by themselves, and taken back when they are worse.

Every replica judges by its own traffic and writes a release record with create-if-absent, so of several that come to
a verdict one wins, and there is no leader. What was counted is lost with the process: the step begins anew.
"""

from __future__ import annotations

import asyncio
import logging
import time

from adapters.errors import GenerationConflict, HotswapError
from adapters.releases import Guard, NewRelease, Release, Share
from adapters.store import Store
from service.offload import Offload
from service.rollout.evidence import Tally, verdict
from service.rollout.reconciler import Reconciler
from service.serving.routing import Routing

logger = logging.getLogger("hotswap")
# Whom the log names; what counts is that the record is a step.
BY = "guard"


class Promotion:
    """Follows the guarded releases that are served here."""

    def __init__(
        self,
        routing: Routing,
        reconciler: Reconciler,
        store: Store,
        offload: Offload,
        tally: Tally,
        poll_seconds: float,
    ) -> None:
        self._routing, self._reconciler, self._store = routing, reconciler, store
        self._offload, self._tally, self._poll_seconds = offload, tally, poll_seconds
        self._since: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(self._poll_seconds)
            for name, release in list(self._routing.releases.items()):
                if release.guard is not None or name in self._since:
                    await self._look_safely(name, release)

    async def _look_safely(self, name: str, release: Release) -> None:
        """A fault of one canary's judgement, ours included, switches no other's guard off."""
        try:
            await self._look(name, release)
        except GenerationConflict:
            self._reconciler.wake()  # another replica, or a person, was first
        except HotswapError as error:
            logger.warning("the canary of %s stays as it is: %s", name, error)
        except Exception:
            logger.exception("the canary of %s could not be judged; it is tried again", name)

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
        judgement = verdict(guard, self._tally.of(name, release.stable), self._tally.of(name, canary.version))
        if judgement.worse:
            why = f"canary {canary.version}: {judgement.why}"
            await self._release(name, release, NewRelease(stable=release.stable, why=why))
        elif judgement.worse is False and time.monotonic() - since >= guard.seconds:
            why = f"canary {canary.version} at {canary.percent} %: {judgement.why}"
            await self._release(name, release, _raised(release, guard, canary, why))

    async def _release(self, name: str, before: Release, new: NewRelease) -> None:
        new = new.model_copy(update={"by": BY, "step": True})
        record = await self._offload(name, self._store.release, name, new, expected_generation=before.generation)
        logger.info("%s: generation %d, stable %d, by its guard: %s", name, record.generation, record.stable, new.why)
        self._reconciler.wake()


def _raised(release: Release, guard: Guard, canary: Share, why: str) -> NewRelease:
    """Return the canary's next step, and after the last one the canary for everyone."""
    step = guard.after(canary.percent)
    if step is None:
        return NewRelease(stable=canary.version, why=why)
    share = Share(version=canary.version, percent=step)
    return NewRelease(stable=release.stable, canary=share, shadow=release.shadow, guard=guard, why=why)
