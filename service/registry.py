"""From an adapter reference to a resident version, and how long it must stay.

Everything here runs in one event loop: between two ``await``s nothing else happens, so looking a version
up and counting its use is one step and needs no lock. A version is only ever unloaded with no lease on it.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from adapters.errors import HotswapError, InvalidAdapter, NotInStore, StoreUnavailable
from adapters.lint import lint
from adapters.manifest import Manifest
from adapters.store import Release, Store
from service.engine.base import Engine, EngineDown, EngineRefused
from service.errors import AdapterFailed, AdapterNotFound, InvalidRequest, VersionNotFound, no_such_adapter
from service.metrics import Metrics

logger = logging.getLogger("hotswap")

REFERENCE = re.compile(r"(?P<name>[a-z0-9][a-z0-9._-]{0,63})(?:@(?P<which>[0-9]{1,9}|stable|canary))?")
# A version that could not be loaded is not tried again at every request, but the cause may be mended.
RETRY_FAILED_SECONDS = 30.0


Channel = Literal["stable", "canary", "pinned"]


@dataclass(frozen=True)
class Lease:
    """A version that stays resident while a request uses it. ``engine_name`` never means other weights."""

    manifest: Manifest
    digest: str
    channel: Channel
    engine_name: str


@dataclass
class _Slot:
    """One version in the engine, or on its way there."""

    ready: asyncio.Future[tuple[Manifest, str, str]]
    state: str = "loading"
    leases: int = 0
    last_used: float = field(default_factory=time.monotonic)


Key = tuple[str, int]


def parse(reference: str) -> tuple[str, str | None]:
    """Return a reference's name, and version or channel. Raises :class:`InvalidRequest`."""
    match = REFERENCE.fullmatch(reference)
    if match is None:
        raise InvalidRequest("'adapter' is a name such as sentiment, sentiment@3 or sentiment@canary.")
    return match["name"], match["which"]


class Registry:
    """Which release of each adapter is served, and which versions are resident."""

    def __init__(self, engine: Engine, store: Store, base_digest: str, cache: Path, metrics: Metrics) -> None:
        self._engine, self._store, self._metrics = engine, store, metrics
        self._base_digest, self._cache = base_digest, cache
        self._served: dict[str, Release] = {}
        self._slots: dict[Key, _Slot] = {}
        self._failed: dict[Key, tuple[str, float]] = {}
        self._one_load = asyncio.Lock()
        self._freed = asyncio.Event()
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
        try:
            manifest, digest, engine_name = await asyncio.shield(slot.ready)
            yield Lease(manifest, digest, channel, engine_name)
        finally:
            slot.leases -= 1
            slot.last_used = time.monotonic()
            if slot.leases == 0:
                self._freed.set()

    async def prepare(self, name: str, version: int) -> None:
        """Make a version resident before anyone asks for it. Raises :class:`AdapterFailed`."""
        key = name, version
        await asyncio.shield((self._slots.get(key) or self._begin_load(key)).ready)

    async def check(self, name: str, version: int) -> None:
        """Fetch, hash and lint a version without loading it. Raises :class:`InvalidAdapter`, :class:`NotInStore`."""
        manifest, _ = await asyncio.to_thread(self._store.manifest, name, version)
        await asyncio.to_thread(self._checked_files, manifest)

    def has_room(self) -> bool:
        """Whether another version fits without unloading one."""
        return len(self._slots) < self._engine.limits.max_resident

    @property
    def releases(self) -> dict[str, Release]:
        """What is served, by name."""
        return dict(self._served)

    def served(self, name: str) -> Release | None:
        return self._served.get(name)

    def flip(self, name: str, release: Release) -> None:
        """Serve ``release`` to every request from now on; those in flight keep what they have."""
        self._served[name] = release
        self._metrics.served_generation.labels(*self._metrics.bounded("adapter", name)).set(release.generation)

    def state(self, name: str, version: int) -> dict[str, Any]:
        """Return ``state`` and, for a failed version, ``reason``."""
        key = name, version
        if key in self._slots:
            slot = self._slots[key]
            released = self._served.get(name)
            draining = slot.state == "resident" and slot.leases > 0 and released and version not in released.versions
            return {"state": "draining" if draining else slot.state}
        if key in self._failed:
            return {"state": "failed", "reason": self._failed[key][0]}
        return {"state": "available"}

    async def forget(self) -> None:
        """Take note that the engine is gone, with all that was resident. What is released stays released."""
        for slot in self._slots.values():
            if not slot.ready.done():
                slot.ready.set_exception(EngineDown("the engine died while the adapter was loaded"))
        await self.close()
        self._slots.clear()
        self._freed.set()
        self._count_states()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _choose(self, reference: str, caller: str) -> tuple[Key, Channel]:
        name, which = parse(reference)
        if which and which.isdecimal():
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
        if key in self._failed:
            reason, since = self._failed[key]
            if time.monotonic() - since < RETRY_FAILED_SECONDS:
                raise AdapterFailed(f"{key[0]}@{key[1]}: {reason}")
        slot = self._slots[key] = _Slot(asyncio.get_running_loop().create_future())
        # Whoever waits sees the failure; with nobody waiting it is in the log and in the adapter's state.
        slot.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        task = asyncio.create_task(self._load(key, slot))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._count_states()
        return slot

    async def _load(self, key: Key, slot: _Slot) -> None:
        name, version = key
        started = time.monotonic()
        try:
            async with self._one_load:
                await self._make_room()
                manifest, digest = await asyncio.to_thread(self._store.manifest, name, version)
                folder = await asyncio.to_thread(self._checked_files, manifest)
                # The engine's prefix cache knows an adapter by this name alone: it must never mean other weights.
                engine_name = f"{name}@{version}:{digest[7:23]}"
                await self._engine.load(engine_name, folder)
        except BaseException as error:
            self._slots.pop(key, None)
            self._freed.set()
            self._metrics.loads.labels("failed").inc()
            if isinstance(error, Exception):
                slot.ready.set_exception(self._failure(key, error))
            else:
                slot.ready.cancel()
                raise
        else:
            slot.state = "resident"
            self._failed.pop(key, None)
            slot.ready.set_result((manifest, digest, engine_name))
            self._metrics.loads.labels("ok").inc()
            self._metrics.load_seconds.observe(time.monotonic() - started)
            logger.info("loaded %s@%d in %.0f ms", name, version, 1000 * (time.monotonic() - started))
        finally:
            self._count_states()

    def _checked_files(self, manifest: Manifest) -> Path:
        """Fetch, hash and lint a version; in a thread. Raises :class:`InvalidAdapter`."""
        if manifest.base.digest != self._base_digest:
            raise InvalidAdapter(f"it was made for another base model ({manifest.base.name}); train it on this one")
        folder = self._store.fetch(manifest.name, manifest.version, self._cache)
        try:
            lint(folder, max_rank=self._engine.limits.max_lora_rank)
        except InvalidAdapter as error:
            raise InvalidAdapter(str(error).removeprefix(f"{folder.name}: ")) from error
        return folder

    async def _make_room(self) -> None:
        """Unload the version that was idle longest, or wait until one becomes idle."""
        while sum(slot.state == "resident" for slot in self._slots.values()) >= self._engine.limits.max_resident:
            idle = [k for k, slot in self._slots.items() if slot.state == "resident" and slot.leases == 0]
            if not idle:
                self._freed.clear()
                await self._freed.wait()
                continue
            victim = self._slots.pop(min(idle, key=lambda key: self._slots[key].last_used))
            self._metrics.evictions.inc()
            await self._engine.unload(victim.ready.result()[2])

    def _failure(self, key: Key, error: Exception) -> Exception:
        """Return what the callers are told; remember what only a new version, or an operator, can mend."""
        name, version = key
        match error:
            case InvalidAdapter() | NotInStore():
                reason = str(error)
            case EngineRefused():
                reason = "the engine refused it; its log says why"
            case EngineDown():
                return error
            case StoreUnavailable() | HotswapError():
                logger.warning("could not load %s@%d: %s", name, version, error)
                return error
            case _:
                logger.exception("could not load %s@%d", name, version, exc_info=error)
                return error
        logger.error("could not load %s@%d: %s", name, version, error)
        reason = reason.removeprefix(f"{name}@{version}: ")
        self._failed[key] = reason, time.monotonic()
        return AdapterFailed(f"{name}@{version}: {reason}")

    def _count_states(self) -> None:
        states = Counter(slot.state for slot in self._slots.values())
        for state in ("loading", "resident"):
            self._metrics.adapters.labels(state).set(states[state])
        self._metrics.adapters.labels("failed").set(len(self._failed))


def _takes_canary(name: str, release: Release, caller: str) -> bool:
    """Put the same callers into a canary for as long as it runs, and others into the next one."""
    if release.canary is None:
        return False
    seed = f"{name}@{release.canary.version}:{caller}".encode()
    return int.from_bytes(hashlib.sha256(seed).digest()[:8], "big") % 100 < release.canary.percent
