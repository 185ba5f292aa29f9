"""From an adapter reference to a resident version, and how long it must stay.

Everything here runs in one event loop: between two ``await``s nothing else happens, so looking a version
up and counting its use is one step and needs no lock. A version is only ever unloaded with no lease on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from adapters.errors import Damaged, HotswapError, InvalidAdapter, NotInStore
from adapters.manifest import Manifest
from adapters.store import Release, Store
from service.engine.base import EngineDown, EngineRefused
from service.errors import AdapterFailed, AdapterNotFound, InvalidRequest, VersionNotFound, no_such_adapter
from service.metrics import Metrics
from service.serving.backoff import Backoff
from service.serving.loader import Loaded, Loader

logger = logging.getLogger("hotswap")

REFERENCE = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]{0,63})(?:@(?P<which>0|[1-9][0-9]{0,8}|stable|canary))?")
# What is told to come back for a version that only a person can mend.
MENDED_BY_HAND_SECONDS = 300
ASKED_FOR_SECONDS = 60.0


Channel = Literal["stable", "canary", "pinned"]


@dataclass(frozen=True)
class Lease:
    """A version that stays resident while a request uses it."""

    loaded: Loaded
    channel: Channel

    @property
    def manifest(self) -> Manifest:
        return self.loaded.manifest


@dataclass
class _Slot:
    """One version in the engine, or on its way there or out."""

    ready: asyncio.Future[Loaded]
    state: Literal["loading", "resident", "draining"] = "loading"
    leases: int = 0
    superseded: bool = False  # no release names it any more: it goes when its last lease does
    asked_for: float = -math.inf  # when somebody wanted this very version, by its number
    last_used: float = field(default_factory=time.monotonic)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


Key = tuple[str, int]


def parse(reference: str) -> tuple[str, str | None]:
    """Return a reference's name, and version or channel. Raises :class:`InvalidRequest`."""
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise InvalidRequest("'adapter' is a name such as sentiment, sentiment@3 or sentiment@canary.")
    return match["name"], match["which"]


class Registry:
    """Which release of each adapter is served, and which versions are resident.

    ``warm`` are names, or names with a version, that are never unloaded to make room for others.
    """

    def __init__(
        self, loader: Loader, store: Store, metrics: Metrics, max_resident: int, warm: Iterable[str] = ()
    ) -> None:
        self._loader, self._store, self._metrics, self._max_resident = loader, store, metrics, max_resident
        self._warm = {parse(reference) for reference in warm}
        self._served: dict[str, Release] = {}
        self._retired: dict[str, set[int]] = {}
        self._slots: dict[Key, _Slot] = {}
        self._leaving: dict[Key, _Slot] = {}
        self._failed = Backoff()
        self._one_load = asyncio.Lock()  # first come, first served: nobody's load waits for ever
        self._tasks: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def lease(self, reference: str, caller: str) -> AsyncIterator[Lease]:
        """Hold the version that ``reference`` means for ``caller``, loading it first if need be.

        Raises :class:`AdapterNotFound`, :class:`VersionNotFound`, :class:`AdapterFailed`,
        :class:`InvalidRequest`.
        """
        key, channel = await self._choose(reference, caller)
        slot = self._slots.get(key) or self._begin_load(key)
        slot.leases += 1
        slot.superseded = False
        if channel == "pinned":
            slot.asked_for = time.monotonic()
        slot.idle.clear()
        try:
            yield Lease(await asyncio.shield(slot.ready), channel)
        finally:
            slot.leases -= 1
            slot.last_used = time.monotonic()
            if slot.leases == 0:
                slot.idle.set()
                self._let_go(key)

    async def prepare(self, name: str, version: int) -> None:
        """Make a version resident before anyone asks for it. Raises :class:`AdapterFailed`."""
        key = name, version
        slot = self._slots.get(key) or self._begin_load(key)
        slot.superseded = False
        await asyncio.shield(slot.ready)

    async def check(self, name: str, version: int) -> None:
        """Fetch, hash and lint a version without loading it. Raises :class:`InvalidAdapter`, :class:`NotInStore`."""
        await self._loader.fetch(name, version)

    def has_room(self) -> bool:
        """Whether another version fits without unloading one."""
        return len(self._slots) < self._max_resident

    def is_warm(self, name: str) -> bool:
        """Whether the name's release is to be kept in memory."""
        return (name, None) in self._warm

    @property
    def warm_versions(self) -> list[Key]:
        """The versions that are to be kept in memory by number."""
        return sorted((name, int(which)) for name, which in self._warm if which)

    @property
    def releases(self) -> dict[str, Release]:
        """What is served, by name."""
        return dict(self._served)

    def served(self, name: str) -> Release | None:
        return self._served.get(name)

    def flip(self, name: str, release: Release) -> None:
        """Serve ``release`` to every request from now on; those in flight keep what they have. What no release
        names any more is unloaded when its last request is answered."""
        before = self._served.get(name)
        self._served[name] = release
        self._metrics.served_generation.labels(*self._metrics.bounded("adapter", name)).set(release.generation)
        for version in set(before.versions if before else ()) - set(release.versions):
            self._supersede((name, version))

    def retire(self, retired: Mapping[str, set[int]]) -> None:
        """Serve these versions, by name, to nobody any more, but for what a release names."""
        for name, versions in retired.items():
            release = self._served.get(name)
            self._retired[name] = versions - set(release.versions if release else ())
            for version in self._retired[name]:
                self._supersede((name, version), at_once=True)

    def give_another_chance(self, name: str, release: Release) -> None:
        """Try again what a release names, whatever is known of it: somebody has just released it."""
        for version in release.versions:
            self._failed.clear((name, version))

    def state(self, name: str, version: int) -> dict[str, Any]:
        """Return ``state`` and, for a failed version, ``reason``."""
        key = name, version
        if key in self._slots:
            slot = self._slots[key]
            return {"state": "draining" if slot.superseded else slot.state}
        if key in self._leaving:
            return {"state": "draining"}
        if failure := self._failed.get(key):
            return {"state": "failed", "reason": getattr(failure.error, "detail", "") or str(failure.error)}
        return {"state": "available"}

    async def forget(self) -> None:
        """Take note that the engine is gone, with all that was resident. What is released stays released."""
        for slot in self._slots.values():
            if not slot.ready.done():
                slot.ready.set_exception(EngineDown("the engine died while the adapter was loaded"))
        await self.close()
        self._slots.clear()
        self._leaving.clear()
        self._count_states()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _choose(self, reference: str, caller: str) -> tuple[Key, Channel]:
        name, which = parse(reference)
        if which and which.isdecimal():
            if int(which) in self._retired.get(name, ()):
                raise VersionNotFound(f"'{name}@{which}' was retired; GET /v1/adapters/{name} shows what is served.")
            return await self._pinned(name, int(which)), "pinned"
        release = self._served.get(name) or await self._discover(name)
        if which == "canary" and release.canary is None:
            raise VersionNotFound(f"'{name}' has no canary now.")
        if which == "canary" or (which is None and _takes_canary(name, release, caller)):
            assert release.canary is not None
            return (name, release.canary.version), "canary"
        return (name, release.stable), "stable"

    async def _pinned(self, name: str, version: int) -> Key:
        if (name, version) not in self._slots:
            try:
                await asyncio.to_thread(self._store.manifest, name, version)
                if version in await asyncio.to_thread(self._store.retired, name):
                    raise VersionNotFound(f"'{name}@{version}' was retired; GET /v1/adapters/{name}.")
            except NotInStore:
                if await asyncio.to_thread(self._store.versions, name):
                    raise VersionNotFound(f"'{name}' has no version {version}; GET /v1/adapters/{name}.") from None
                raise no_such_adapter(name) from None
            except InvalidAdapter as error:
                raise self._failure((name, version), error) from error
        return name, version

    async def _discover(self, name: str) -> Release:
        """Look for an adapter that the last poll did not know: it may be a second old."""
        release = await asyncio.to_thread(self._store.released, name)
        if release is None:
            versions = await asyncio.to_thread(self._store.versions, name)
            if not versions:
                raise no_such_adapter(name)
            raise AdapterNotFound(f"No version of '{name}' is released; ask for {name}@{versions[-1]}, or release it.")
        if name not in self._served:
            self.flip(name, release)
        return self._served[name]

    def _begin_load(self, key: Key) -> _Slot:
        failure = self._failed.get(key)
        if failure is not None and failure.wait > 0:
            raise failure.error
        slot = self._slots[key] = _Slot(asyncio.get_running_loop().create_future())
        # Whoever waits sees the failure; with nobody waiting it is in the log and in the adapter's state.
        slot.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._start(self._load(key, slot))
        self._count_states()
        return slot

    async def _load(self, key: Key, slot: _Slot) -> None:
        name, version = key
        started = time.monotonic()
        try:
            found = await self._loader.fetch(name, version)
            async with self._one_load:
                await self._make_room()
                loaded = await self._loader.load(*found)
        except BaseException as error:
            self._slots.pop(key, None)
            self._metrics.loads.labels("failed").inc()
            if not isinstance(error, Exception):
                slot.ready.cancel()
                raise
            if not slot.ready.done():
                slot.ready.set_exception(self._failure(key, error))
        else:
            slot.state = "resident"
            self._failed.clear(key)
            slot.ready.set_result(loaded)
            self._metrics.loads.labels("ok").inc()
            self._metrics.load_seconds.observe(time.monotonic() - started)
            logger.info("loaded %s@%d in %.0f ms", name, version, 1000 * (time.monotonic() - started))
            self._let_go(key)
        finally:
            self._count_states()

    async def _make_room(self) -> None:
        """Unload the version that was idle longest. Where none is idle, close the one with the fewest requests to
        new ones: they wait for its next turn, so that neither it nor who waits to be loaded starves."""
        while True:
            resident = [key for key, slot in self._slots.items() if slot.state == "resident"]
            if len(resident) < self._max_resident:
                return
            free = [key for key in resident if not self._keep(key)] or resident
            victim = min(free, key=lambda key: (self._slots[key].leases, self._slots[key].last_used))
            self._metrics.evictions.inc()
            await self._unload(victim)

    def _keep(self, key: Key) -> bool:
        name, version = key
        release = self._served.get(name)
        return (name, str(version)) in self._warm or (
            self.is_warm(name) and release is not None and version in release.versions
        )

    async def _unload(self, key: Key) -> None:
        """Close a version to new requests, wait for those it has, and free it. With the lock held."""
        slot = self._leaving[key] = self._slots.pop(key)
        slot.state = "draining"
        try:
            if slot.leases:
                await slot.idle.wait()
            await self._loader.unload(slot.ready.result())
        finally:
            self._leaving.pop(key, None)
            self._count_states()

    def _supersede(self, key: Key, *, at_once: bool = False) -> None:
        slot = self._slots.get(key)
        if slot is None or self._keep(key):
            return
        # Who asks for versions by number goes on doing so: those stay until their room is needed.
        if at_once or time.monotonic() - slot.asked_for > ASKED_FOR_SECONDS:
            slot.superseded = True
            self._let_go(key)

    def _let_go(self, key: Key) -> None:
        """Unload a superseded version if nobody uses it."""

        async def unload() -> None:
            async with self._one_load:
                if self._unused(key):
                    await self._unload(key)

        if self._unused(key):
            self._start(unload())

    def _unused(self, key: Key) -> bool:
        slot = self._slots.get(key)
        return slot is not None and slot.superseded and slot.state == "resident" and slot.leases == 0

    def _start(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _failure(self, key: Key, error: Exception) -> Exception:
        """Return what the callers are told, and remember when a retry may help."""
        if isinstance(error, EngineDown):  # the supervisor's business
            return error
        # A version is immutable: what is wrong with it stays wrong, unless it was damaged on its way.
        again = isinstance(error, Damaged) or not isinstance(error, InvalidAdapter)
        wait = self._failed.wait(key, again=again)
        reason = None
        match error:
            case InvalidAdapter():
                reason = str(error).removeprefix(f"{key[0]}@{key[1]}: ")
            case NotInStore():
                reason = "it is not in the store any more"
            case EngineRefused():
                reason = "the engine refused it; its log says why"
            case TimeoutError():
                reason = "the engine did not answer when it was probed"
            case HotswapError():
                pass
            case _:
                logger.exception("could not load %s@%d", *key, exc_info=error)
        logger.error("could not load %s@%d: %s", *key, error)
        told: Exception = error
        if reason is not None:
            retry_after = min(math.ceil(wait), MENDED_BY_HAND_SECONDS) if again else MENDED_BY_HAND_SECONDS
            told = AdapterFailed(f"{key[0]}@{key[1]}: {reason}", retry_after=retry_after)
        self._failed.note(key, told, wait)
        return told

    def _count_states(self) -> None:
        states = Counter(slot.state for slot in [*self._slots.values(), *self._leaving.values()])
        for state in ("loading", "resident", "draining"):
            self._metrics.adapters.labels(state).set(states[state])
        self._metrics.adapters.labels("failed").set(len(self._failed))


def _takes_canary(name: str, release: Release, caller: str) -> bool:
    """Put the same callers into a canary for as long as it runs, and others into the next one."""
    if release.canary is None:
        return False
    seed = f"{name}@{release.canary.version}:{caller}".encode()
    return int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") % 100 < release.canary.percent
