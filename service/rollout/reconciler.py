"""Desired (the store's releases) against actual (what is served): look, prepare, flip.

A release whose version cannot be loaded is not flipped to: the old one goes on serving, and the version's
state says why.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from adapters.catalogue import Catalogue, Entry
from adapters.errors import HotswapError, NotInStore, StoreUnavailable
from adapters.releases import Release
from adapters.store import Store
from service.errors import AdapterFailed
from service.group import Group
from service.metrics import Metrics
from service.offload import Offload
from service.rollout.desired import Desired
from service.rollout.watch import watch
from service.serving.residency import Residency
from service.serving.routing import Routing
from service.settings import Settings

logger = logging.getLogger("hotswap")
# A listing of everything: so many times the limit of one question to the store.
SWEEP_PATIENCE = 6
# The service opens after so long, whoever is still being prepared: many adapters, or one that hangs, hold it up no
# longer. What is to be kept in memory is waited for.
SETTLE_SECONDS, KEPT_SECONDS = 1.0, 60.0
# Of those that were never served here: many at once would take the processor from the answers. Requests for them do
# not wait for this.
FIRST_AT_ONCE = 4
# At the start so many adapters are waited for, and named in the log one by one; of more, none.
FEW = 20
# Whoever invents names has the store looked at no more often than this, and waits for it no longer than that.
FIND_SECONDS, FIND_WAIT_SECONDS = 0.1, 1.0


class Followers(Protocol):
    """Processes that serve what is served here."""

    def see(self, before: Catalogue, catalogue: Catalogue) -> None:
        """Have them take the store as it is now."""

    def learn(self, entry: Entry) -> None:
        """Have them take in one adapter."""

    async def flip(self, name: str, release: Release) -> None:
        """Return when all of them serve ``release``. Who does not in time is ended."""

    async def caught_up(self) -> None:
        """Return when they have followed all that they were told, or have had a moment for it."""


@dataclass(frozen=True)
class _Move:
    """An adapter on its way to a release."""

    release: Release
    task: asyncio.Task[None]


class Reconciler:
    """Looks at the store, every ``poll_seconds`` and when woken, and moves what is served to what it sees."""

    def __init__(
        self,
        routing: Routing,
        residency: Residency,
        store: Store,
        offload: Offload,
        metrics: Metrics,
        settings: Settings,
        followers: Followers | None = None,
    ) -> None:
        self._routing, self._residency, self._store = routing, residency, store
        self._followers = followers
        self._offload, self._metrics, self._poll_seconds = offload, metrics, settings.poll_seconds
        self._tried: dict[str, int] = {}
        self._logged: dict[str, str] = {}
        self._moves: dict[str, _Move] = {}
        self._finds: dict[str, asyncio.Task[None]] = {}
        self._next_find = float("-inf")
        self._desired = Desired(store, settings.sweep_seconds)
        self._woken = asyncio.Event()
        self._settled, self._first = False, asyncio.Semaphore(FIRST_AT_ONCE)
        self._group = Group()
        self.store_reachable = True

    def wake(self) -> None:
        """Look now, not when it is time."""
        self._woken.set()

    async def run(self) -> None:
        """Reconcile for ever; a store that cannot be reached changes nothing."""
        async with Group() as watching:
            watching.keep("watch", lambda: watch(self._store, self.wake))
            try:
                await asyncio.sleep(0)  # the watch stands before the first look: nothing is missed in between
                while True:
                    woken = self._woken.is_set()
                    self._woken.clear()
                    await self.reconcile(sweep=woken)
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._woken.wait(), self._poll_seconds)
            finally:
                await self._group.close()

    async def reconcile(self, *, sweep: bool = False) -> None:
        """Look once, and begin to move what is behind; with ``sweep`` at the store itself, whatever its pulse says."""
        try:
            if sweep or await self._offload("pulse", self._desired.is_due):
                known = self._routing.catalogue
                look = await self._offload("sweep", self._desired.look, known, patience=SWEEP_PATIENCE)
                self._desired.last = look
                self._adopt(self._with_what_was_learnt(known, look.catalogue))
        except HotswapError as error:
            self._metrics.store_errors.inc()
            if self.store_reachable:
                logger.warning("%s; the served releases stay", error)
            self.store_reachable = False
            return
        if not self.store_reachable:
            logger.info("the store %s can be used again", self._store.place)
        self.store_reachable = True
        self._move_all()

    async def find(self, name: str) -> bool:
        """Look whether the store has an adapter, or a version of it, that the catalogue lacks; return whether it was
        looked: too many unknown names at once are not. Raises :class:`StoreUnavailable`."""
        if name not in self._finds:
            now = time.monotonic()
            turn = max(now, self._next_find)
            if turn - now > FIND_WAIT_SECONDS:
                if not self.store_reachable:
                    raise StoreUnavailable(f"the store {self._store.place} does not answer")
                return False
            self._next_find = turn + FIND_SECONDS
            await asyncio.sleep(turn - now)
        await self.refresh(name)
        return True

    async def refresh(self, name: str) -> None:
        """Bring one adapter of the catalogue up to date. Who asks at once shares one look. Raises
        :class:`StoreUnavailable`."""
        if name not in self._finds:
            self._finds[name] = task = asyncio.create_task(self._refresh(name))
            task.add_done_callback(lambda _: self._finds.pop(name, None))
        await asyncio.shield(self._finds[name])
        if self._followers:
            await self._followers.caught_up()

    async def settle(self) -> None:
        """Look, and wait until what can be served is; then until what is to be kept in memory is there."""
        try:
            await self.reconcile(sweep=True)
        except Exception:  # a fault of ours; the requests that need no newer look are answered
            logger.exception("the first look at the store failed; the next one follows")
        kept = [move.task for name, move in self._moves.items() if self._residency.is_warm(name)]
        await _wait(kept, KEPT_SECONDS)
        moves = [move.task for move in self._moves.values()]
        if late := await _wait(moves, SETTLE_SECONDS if len(moves) <= FEW else 0.0):
            logger.info("%d adapters are still being prepared; the service opens meanwhile", late)
        self._settled = True
        await _wait([self._group.start(self._fill_kept())], KEPT_SECONDS)

    async def warm(self) -> None:
        """After a restart of the engine, make resident what is to be kept, then what is served, as far as it fits. The
        residency logs what fails."""
        await _wait([self._group.start(self._fill_kept())], KEPT_SECONDS)
        await _wait([self._group.start(self._fill())], SETTLE_SECONDS)

    async def _fill_kept(self) -> None:
        for name, version in self._residency.warm_versions:
            with suppress(Exception):
                await self._residency.prepare(name, version)

    async def _fill(self) -> None:
        for name in self._in_order(self._routing.releases):
            if self._residency.is_warm(name) or self._residency.room():
                with suppress(Exception):
                    await self._prepare(name, self._routing.releases[name])

    def _adopt(self, catalogue: Catalogue) -> None:
        """Take the store as it is now for what requests are routed by."""
        before, self._routing.catalogue = self._routing.catalogue, catalogue
        if self._followers:
            self._followers.see(before, catalogue)
        if catalogue.odd != before.odd:
            logger.warning("in the store %s, no names of adapters: %s", self._store.place, ", ".join(catalogue.odd))
        for entry in catalogue:
            known = before.entries.get(entry.name)
            self._tell_fault(known, entry)
            if known is None or known.generation != entry.generation:
                self._metrics.generation(self._metrics.store_generation, entry.name, entry.generation)
        forget_what_is_gone(self._metrics, before, catalogue)
        self._residency.supersede_retired()

    def _with_what_was_learnt(self, since: Catalogue, looked: Catalogue) -> Catalogue:
        """Return what a look at everything saw, but of single adapters that were looked at meanwhile what is newer."""
        if self._routing.catalogue is since:
            return looked
        learnt = [entry for entry in self._routing.catalogue if entry is not since.entries.get(entry.name)]
        return looked.updated(entry for entry in learnt if not _is_older(entry, looked.get(entry.name)))

    def _tell_fault(self, known: Entry | None, entry: Entry) -> None:
        if entry.fault and (known is None or known.fault != entry.fault):
            logger.warning("%s What it serves stays.", entry.fault)
            self._metrics.store_errors.inc()

    def _move_all(self) -> None:
        behind, unreadable = {}, 0
        for entry in self._routing.catalogue:
            release, served = entry.release, self._routing.served(entry.name)
            if entry.fault and served is not None:  # an older release would be no better than what is served
                unreadable += entry.generation > 0
            elif release is not None and (served is None or served.generation != release.generation):
                behind[entry.name] = release
        self._metrics.adapters_behind.set(len(behind) + unreadable)
        room = len(behind) if self._settled else self._residency.room()
        for number, name in enumerate(self._in_order(behind)):
            self._begin_move(name, behind[name], prepare=number < room or self._residency.is_warm(name))

    def _begin_move(self, name: str, release: Release, *, prepare: bool) -> None:
        """Side by side: an adapter that takes its time holds up no other. A newer release ends the move to an older."""
        move = self._moves.get(name)
        if move is not None and move.release.generation == release.generation:
            return
        if move is not None:
            move.task.cancel()
            for version in set(move.release.versions) - self._needed(name, release):
                self._residency.supersede((name, version))
        task = self._group.start(self._move(name, release, prepare=prepare))
        self._moves[name] = move = _Move(release, task)
        task.add_done_callback(partial(self._moved, name, move))

    def _moved(self, name: str, move: _Move, _: object) -> None:
        if self._moves.get(name) is move:
            del self._moves[name]

    def _needed(self, name: str, release: Release) -> set[int]:
        served = self._routing.served(name)
        return {*release.versions, *(served.versions if served else ())}

    async def _move(self, name: str, release: Release, *, prepare: bool) -> None:
        started = time.monotonic()
        if self._tried.get(name) != release.generation:
            self._tried[name] = release.generation
            self._residency.give_another_chance(name, release)
        served = self._routing.served(name)
        waits = prepare and not all(self._residency.is_resident(name, version) for version in release.versions)
        try:
            # A change is always proven good before anyone is moved to it; of what there is at the start, what fits.
            if prepare:
                await self._prepare(name, release)
        except Exception as error:
            kept = served or await self._earlier(name, release, error)
            if kept is not None:
                # Logged when it is tried, not at every poll in between.
                if self._logged.get(name) != str(error):
                    logger.error("%s stays at generation %d: %s", name, kept.generation, error)
                self._logged[name] = str(error)
                if served is None:
                    await self._flip(name, kept)
                return
        # It may have been taken back while it was loaded.
        if waits and await self._is_superseded(name, release):
            for version in set(release.versions).difference(served.versions if served else ()):
                self._residency.supersede((name, version))
            self.wake()
            return
        self._logged.pop(name, None)
        await self._flip(name, release)
        self._metrics.swap_seconds.observe(time.monotonic() - started)
        level = logging.INFO if self._settled or len(self._routing.catalogue) <= FEW else logging.DEBUG
        logger.log(level, "%s: generation %d, stable %d", name, release.generation, release.stable)

    async def _flip(self, name: str, release: Release) -> None:
        """Serve ``release``: here when all who follow do, for what is seen here is taken to be so everywhere."""
        if self._followers is None:
            self._flip_here(name, release)
        else:  # to the end, whoever ends the move: of those who follow some may serve it already
            await asyncio.shield(self._group.start(self._flip_all(self._followers, name, release)))

    async def _flip_all(self, followers: Followers, name: str, release: Release) -> None:
        await followers.flip(name, release)
        self._flip_here(name, release)

    def _flip_here(self, name: str, release: Release) -> None:
        for key in self._routing.flip(name, release):
            self._residency.supersede(key)
        self._metrics.generation(self._metrics.served_generation, name, release.generation)

    async def _is_superseded(self, name: str, release: Release) -> bool:
        try:
            return await self._offload(name, self._store.superseded, name, release.generation)
        except HotswapError:
            return False  # as far as anybody can know

    async def _prepare(self, name: str, release: Release) -> None:
        first = self._routing.served(name) is None and not self._residency.is_warm(name)
        async with self._first if first else nullcontext():
            for version in release.versions:
                await self._residency.prepare(name, version)

    async def _earlier(self, name: str, release: Release, error: Exception) -> Release | None:
        """Return the newest earlier release that can be served: what a replica that was not restarted still serves.

        None where the version is not at fault: then it is waited for.
        """
        if not isinstance(error, AdapterFailed):
            return None
        try:
            history = await self._offload(name, self._store.history, name)
        except HotswapError:
            return None
        retired = self._routing.catalogue.get(name).retired
        for earlier in reversed(history):
            if earlier.generation < release.generation and retired.isdisjoint(earlier.versions):
                with suppress(Exception):
                    await self._prepare(name, earlier)
                    return earlier.model_copy(update={"guard": None})  # nobody judges what is served for want of better
        return None

    async def _refresh(self, name: str) -> None:
        with suppress(NotInStore):  # not even a name
            entry = await self._offload(name, self._store.adapter, name)
            if entry.versions:
                self._tell_fault(self._routing.catalogue.entries.get(name), entry)
                self._routing.learn(entry)
                if self._followers:
                    self._followers.learn(entry)

    def _in_order(self, names: Iterable[str]) -> list[str]:
        """First those that are to be kept in memory."""
        return sorted(names, key=lambda name: not self._residency.is_warm(name))


def forget_what_is_gone(metrics: Metrics, before: Catalogue, catalogue: Catalogue) -> None:
    """Drop the series of what was retired, or is not in the store any more."""
    for entry in catalogue:
        known = before.entries.get(entry.name)
        for version in entry.retired - (known.retired if known else frozenset()):
            metrics.forget(entry.name, str(version))
    for name in before.entries.keys() - catalogue.entries.keys():
        metrics.forget_adapter(name)


def _is_older(entry: Entry, other: Entry) -> bool:
    return entry.generation < other.generation or not set(entry.versions).issuperset(other.versions)


async def _wait(tasks: list[asyncio.Task[None]], seconds: float) -> int:
    """Wait for ``tasks``, but no longer; return how many are not done."""
    return len((await asyncio.wait(tasks, timeout=seconds))[1]) if tasks else 0
