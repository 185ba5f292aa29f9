"""Which versions are in the engine, who holds them, and which one goes when room is needed.

Everything here runs in one event loop: between two ``await``s nothing else happens, so looking a version
up and counting its use is one step and needs no lock. A version is only ever unloaded with no hold on it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from adapters.errors import Damaged, HotswapError, InvalidAdapter, NotInStore
from adapters.manifest import Manifest
from adapters.reference import Reference
from adapters.releases import Release
from service.engine.base import EngineDown, EngineRefused
from service.errors import AdapterFailed, Overloaded, from_lower
from service.group import Group
from service.metrics import Metrics
from service.serving.backoff import Backoff
from service.serving.loader import Loaded, Loader
from service.serving.routing import Choice, Key, Routing

logger = logging.getLogger("hotswap")

# What is told to come back for a version that only a person can mend.
MENDED_BY_HAND_SECONDS = 300
ASKED_FOR_SECONDS = 60.0
# Requests that may wait for one version to be loaded: those of a slow one must not fill the queue of all.
MOST_WAITING = 256


@dataclass(frozen=True)
class Held:
    """A version that stays resident while a request uses it."""

    choice: Choice
    loaded: Loaded

    @property
    def manifest(self) -> Manifest:
        return self.loaded.manifest


@dataclass(frozen=True)
class Named:
    """A version in the engine, or on its way there (of which the rank is not known yet), and what clients call it."""

    names: list[str]
    resident: bool
    pinned: bool
    rank: int


@dataclass
class _Slot:
    """One version in the engine, or on its way there or out."""

    ready: asyncio.Future[Loaded]
    state: Literal["loading", "resident", "draining"] = "loading"
    holds: int = 0
    superseded: bool = False  # no release names it any more: it goes when its last hold does
    asked_for: float = -math.inf  # when somebody wanted this very version, by its number
    last_used: float = field(default_factory=time.monotonic)
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Residency:
    """The versions in the engine, at most ``max_resident``.

    ``warm`` are names, or names with a version, that are never unloaded to make room for others.
    """

    def __init__(
        self, loader: Loader, routing: Routing, metrics: Metrics, max_resident: int, warm: Iterable[str] = ()
    ) -> None:
        self._loader, self._routing, self._metrics, self._max_resident = loader, routing, metrics, max_resident
        self._warm = {Reference.parse(text) for text in warm}
        self._slots: dict[Key, _Slot] = {}
        self._leaving: dict[Key, _Slot] = {}
        self.arrivals: list[Callable[[Manifest], None]] = []  # told of every version that was loaded
        self._failed = Backoff()
        self._one_load = asyncio.Lock()  # first come, first served: nobody's load waits for ever
        self._tasks = Group()

    @asynccontextmanager
    async def hold(self, choice: Choice) -> AsyncIterator[Held]:
        """Keep the chosen version resident meanwhile, loading it first if need be.

        Raises :class:`AdapterFailed`, :class:`Overloaded`, :class:`EngineDown`, :class:`HotswapError`.
        """
        slot = self._slots.get(choice.key) or self._begin_load(choice.key)
        if slot.state == "loading" and slot.holds >= MOST_WAITING:
            raise Overloaded(f"{slot.holds} requests wait for {choice} to be loaded; come back.", retry_after=5)
        slot.holds += 1
        slot.superseded = False
        if choice.channel == "pinned":
            slot.asked_for = time.monotonic()
        slot.idle.clear()
        try:
            yield Held(choice, await asyncio.shield(slot.ready))
        finally:
            slot.holds -= 1
            slot.last_used = time.monotonic()
            if slot.holds == 0:
                slot.idle.set()
                self._let_go(choice.key)

    async def prepare(self, name: str, version: int) -> None:
        """Make a version resident before anyone asks for it. Raises as :meth:`hold` does."""
        key = name, version
        slot = self._slots.get(key) or self._begin_load(key)
        slot.superseded = False
        await asyncio.shield(slot.ready)

    async def check(self, name: str, version: int) -> None:
        """Fetch, hash and lint a version without loading it. Raises :class:`InvalidAdapter`, :class:`NotInStore`."""
        await self._loader.fetch(name, version)

    def is_resident(self, name: str, version: int) -> bool:
        """Whether a version can answer now."""
        slot = self._slots.get((name, version))
        return slot is not None and slot.state == "resident"

    def named(self) -> list[Named]:
        """Return the versions that are in the engine, the last used first, and those that are waited for."""
        slots = sorted(self._slots.items(), key=lambda item: -item[1].last_used)
        return [
            Named(
                self._routing.called(key),
                resident=slot.state == "resident",
                pinned=self._keep(key),
                rank=slot.ready.result().manifest.rank if slot.state == "resident" else 0,
            )
            for key, slot in slots
        ]

    def room(self) -> int:
        """How many more versions fit without unloading one."""
        return max(0, self._max_resident - len(self._slots))

    def is_warm(self, name: str) -> bool:
        """Whether the name's release is to be kept in memory."""
        return Reference(name) in self._warm

    @property
    def warm_versions(self) -> list[Key]:
        """The versions that are to be kept in memory by number."""
        return sorted((warm.name, warm.version) for warm in self._warm if warm.version is not None)

    def supersede(self, key: Key, *, at_once: bool = False) -> None:
        """Unload a version when its last request is answered: no release names it any more.

        Who asks for versions by number goes on doing so: unless ``at_once``, those stay until their room is needed.
        """
        slot = self._slots.get(key)
        if slot is None or self._keep(key):
            return
        if at_once or time.monotonic() - slot.asked_for > ASKED_FOR_SECONDS:
            slot.superseded = True
            self._let_go(key)

    def supersede_retired(self) -> None:
        """Unload what is to be served to nobody any more."""
        for name, version in list(self._slots):
            if self._routing.is_retired(name, version):
                self.supersede((name, version), at_once=True)

    def give_another_chance(self, name: str, release: Release) -> None:
        """Try again what a release names, whatever is known of it: somebody has just released it."""
        for version in release.versions:
            self._failed.clear((name, version))

    def state(self, name: str, version: int) -> dict[str, Any]:
        """Return ``state`` and, for a failed version, ``reason``."""
        key = name, version
        if slot := self._slots.get(key):
            return {"state": "draining" if slot.superseded else slot.state}
        if key in self._leaving:
            return {"state": "draining"}
        if failure := self._failed.get(key):
            return {"state": "failed", "reason": from_lower(failure.error).detail}
        return {"state": "available"}

    async def forget(self) -> None:
        """Take note that the engine is gone, with all that was resident. What is released stays released."""
        for key, slot in self._slots.items():
            self._metrics.moved(key[0], str(key[1]), resident=False)
            if not slot.ready.done():
                slot.ready.set_exception(EngineDown("the engine died while the adapter was loaded"))
        await self.close()
        self._slots.clear()
        self._leaving.clear()
        self._count_states()

    async def close(self) -> None:
        await self._tasks.close()

    def _begin_load(self, key: Key) -> _Slot:
        failure = self._failed.get(key)
        if failure is not None and failure.wait > 0:
            raise failure.again()
        slot = self._slots[key] = _Slot(asyncio.get_running_loop().create_future())
        # Whoever waits sees the failure; with nobody waiting it is in the log and in the adapter's state.
        slot.ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._tasks.start(self._load(key, slot))
        self._count_states()
        return slot

    async def _load(self, key: Key, slot: _Slot) -> None:
        """Bring a version into the engine. However this ends, ``slot.ready`` is done then: requests wait for it."""
        name, version = key
        started = time.monotonic()
        try:
            verified = await self._loader.fetch(name, version)
            async with self._one_load:
                await self._make_room()
                loaded = await self._loader.load(verified)
        except BaseException as error:
            if self._slots.get(key) is slot:
                del self._slots[key]
            self._metrics.loads.labels(*self._metrics.unasked(name, str(version)), "failed").inc()
            if not isinstance(error, Exception):
                slot.ready.cancel()
                raise
            if not slot.ready.done():
                slot.ready.set_exception(self._failure(key, error))
        else:
            slot.state = "resident"
            self._failed.clear(key)
            slot.ready.set_result(loaded)
            for told in self.arrivals:
                told(loaded.manifest)
            labels = self._metrics.unasked(name, str(version))
            self._metrics.loads.labels(*labels, "ok").inc()
            self._metrics.load_seconds.labels(*labels).observe(time.monotonic() - started)
            self._metrics.moved(name, str(version), resident=True)
            logger.info("loaded %s@%d in %.0f ms", name, version, 1000 * (time.monotonic() - started))
            self._let_go(key)
        finally:
            if not slot.ready.done():
                slot.ready.set_exception(AdapterFailed(f"{name}@{version}: something failed inside the service"))
            self._count_states()

    async def _make_room(self) -> None:
        """Unload the version that was idle longest. Where none is idle, close the one with the fewest requests to
        new ones: they wait for its next turn, so that neither it nor who waits to be loaded starves."""
        while True:
            resident = [key for key, slot in self._slots.items() if slot.state == "resident"]
            if len(resident) < self._max_resident:
                return
            free = [key for key in resident if not self._keep(key)] or resident
            victim = min(free, key=lambda key: (self._slots[key].holds, self._slots[key].last_used))
            name, version = victim
            self._metrics.evictions.labels(*self._metrics.unasked(name, str(version))).inc()
            await self._unload(victim)

    def _keep(self, key: Key) -> bool:
        name, version = key
        release = self._routing.served(name)
        released = release is not None and version in release.versions
        return Reference(name, version) in self._warm or (self.is_warm(name) and released)

    async def _unload(self, key: Key) -> None:
        """Close a version to new requests, wait for those it has, and free it. With the lock held."""
        slot = self._leaving[key] = self._slots.pop(key)
        slot.state = "draining"
        try:
            if slot.holds:
                await slot.idle.wait()
            await self._loader.unload(slot.ready.result())
            self._metrics.moved(key[0], str(key[1]), resident=False)
        finally:
            self._leaving.pop(key, None)
            self._count_states()

    def _let_go(self, key: Key) -> None:
        """Unload a superseded version if nobody uses it."""

        async def unload() -> None:
            async with self._one_load:
                if self._unused(key):
                    await self._unload(key)

        if self._unused(key):
            self._tasks.start(unload())

    def _unused(self, key: Key) -> bool:
        slot = self._slots.get(key)
        return slot is not None and slot.superseded and slot.state == "resident" and slot.holds == 0

    def _failure(self, key: Key, error: Exception) -> Exception:
        """Return what the callers are answered, and remember when a retry may help."""
        if isinstance(error, EngineDown):  # the supervisor's business
            return error
        # A version is immutable: what is wrong with it stays wrong, unless it was damaged on its way.
        again = isinstance(error, Damaged) or not isinstance(error, InvalidAdapter)
        wait = self._failed.wait(key, again=again)
        reason = _reason(key, error)
        if reason is None and not isinstance(error, HotswapError):
            logger.error("could not load %s@%d", *key, exc_info=error)
        logger.error("could not load %s@%d: %s", *key, error)
        answer: Exception = error
        if reason is not None:
            retry_after = min(math.ceil(wait), MENDED_BY_HAND_SECONDS) if again else MENDED_BY_HAND_SECONDS
            answer = AdapterFailed(f"{key[0]}@{key[1]}: {reason}", retry_after=retry_after)
        self._failed.note(key, answer, wait)
        return answer

    def _count_states(self) -> None:
        states = Counter(slot.state for slot in [*self._slots.values(), *self._leaving.values()])
        for state in ("loading", "resident", "draining"):
            self._metrics.adapters.labels(state).set(states[state])
        self._metrics.adapters.labels("failed").set(len(self._failed))


def _reason(key: Key, error: Exception) -> str | None:
    """Return what is wrong with a version; none where the fault may be somebody else's."""
    match error:
        case InvalidAdapter():
            return str(error).removeprefix(f"{key[0]}@{key[1]}: ")
        case NotInStore():
            return "it is not in the store any more"
        case EngineRefused():
            return "the engine refused it; its log says why"
        case TimeoutError():
            return "the engine did not answer when it was loaded and probed"
    return None
