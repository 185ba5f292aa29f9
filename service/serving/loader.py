"""A version's way from the store into the engine: fetch, verify, lint, load, probe."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adapters.base_model import Base
from adapters.cache import trim
from adapters.errors import InvalidAdapter
from adapters.manifest import Manifest
from adapters.modules import base_shapes
from adapters.store import Store
from adapters.verification import Verified, verify
from service.engine.base import Engine
from service.metrics import Metrics
from service.offload import Offload
from service.serving.probe import Probe

logger = logging.getLogger("hotswap")

# A version's files may be large and far away: so many times the limit of one question to the store.
FETCH_PATIENCE = 30
LOAD_SECONDS = 120.0
MOST_PROVEN = 10_000


@dataclass(frozen=True)
class Loaded:
    """A version in the engine. ``engine_name`` never means other weights."""

    manifest: Manifest
    digest: str
    engine_name: str


class Loader:
    """Brings one version after the other into the engine; the caller sees to it that there is room.

    Files are kept in ``cache``, up to ``cache_bytes``.
    """

    def __init__(
        self,
        engine: Engine,
        store: Store,
        offload: Offload,
        base: Base,
        cache: Path,
        cache_bytes: int,
        metrics: Metrics,
        tolerance: float | None = None,
    ) -> None:
        self._engine, self._store, self._offload = engine, store, offload
        self._base, self._cache, self._cache_bytes = base, cache, cache_bytes
        self._metrics, self._probe = metrics, Probe(engine, base, tolerance)
        self._proven: set[str] = set()

    async def fetch(self, name: str, version: int) -> Verified:
        """Return a version's manifest, its digest, and its files, checked.

        Raises :class:`InvalidAdapter`, :class:`NotInStore`, :class:`StoreUnavailable`.
        """
        # First what is small: a store that hangs is given up as soon as for any other question.
        await self._offload(name, self._check_base, name, version)
        return await self._offload(f"{name} files", self._files, name, version, patience=FETCH_PATIENCE)

    async def load(self, version: Verified) -> Loaded:
        """Load, and probe what was not probed before; on any failure nothing stays in the engine.

        Raises :class:`InvalidAdapter`, :class:`EngineRefused`, :class:`EngineDown`, :class:`TimeoutError`.
        """
        manifest, digest = version.manifest, version.digest
        # The engine's prefix cache knows an adapter by this name alone: it must never mean other weights.
        engine_name = f"{manifest.name}@{manifest.version}:{digest[7:23]}"
        async with asyncio.timeout(LOAD_SECONDS):
            await self._engine.load(engine_name, version.folder)
        try:
            if engine_name not in self._proven:
                began = time.monotonic()
                await self._probe.check(manifest, engine_name)
                self._metrics.probe_seconds.observe(time.monotonic() - began)
                if len(self._proven) >= MOST_PROVEN:
                    self._proven.clear()
                self._proven.add(engine_name)
        except BaseException:
            if self._engine.alive:
                await self._engine.unload(engine_name)
            raise
        return Loaded(manifest, digest, engine_name)

    async def unload(self, loaded: Loaded) -> None:
        """Free a version that no request uses. Raises :class:`TimeoutError`, :class:`EngineDown`."""
        async with asyncio.timeout(LOAD_SECONDS):
            await self._engine.unload(loaded.engine_name)
        logger.info("unloaded %s@%d", loaded.manifest.name, loaded.manifest.version)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        # vLLM takes adapters for layers that the base does not have, and leaves those out.
        return base_shapes(self._base.folder)

    def _check_base(self, name: str, version: int) -> None:
        manifest, _ = self._store.manifest(name, version)
        if manifest.base.digest != self._base.digest:
            raise InvalidAdapter(f"it was made for another base model ({manifest.base.name}); train it on this one")

    def _files(self, name: str, version: int) -> Verified:
        limits = self._engine.limits
        try:
            return verify(self._store, name, version, self._cache, shapes=self._shapes, max_rank=limits.max_lora_rank)
        finally:
            trim(self._cache / "adapters", self._cache_bytes)
