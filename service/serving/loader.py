"""A version's way from the store into the engine: fetch, verify, lint, load, probe."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.lint import base_shapes, lint
from adapters.manifest import Manifest
from adapters.store import Store
from service.engine.base import Engine
from service.metrics import Metrics
from service.serving.probe import Probe

logger = logging.getLogger("hotswap")

# Slow stores are waited for side by side; more at once would take the CPUs from the answers.
FETCHES = 4


@dataclass(frozen=True)
class Loaded:
    """A version in the engine. ``engine_name`` never means other weights."""

    manifest: Manifest
    digest: str
    engine_name: str


class Loader:
    """Brings one version after the other into the engine; the caller sees to it that there is room."""

    def __init__(
        self, engine: Engine, store: Store, base: Base, cache: Path, metrics: Metrics, tolerance: float | None = None
    ) -> None:
        self._engine, self._store, self._base, self._cache = engine, store, base, cache
        self._metrics, self._probe = metrics, Probe(engine, base, tolerance)
        self._fetches = asyncio.Semaphore(FETCHES)
        self._proven: set[str] = set()

    async def fetch(self, name: str, version: int) -> tuple[Manifest, str, Path]:
        """Return a version's manifest, its digest, and its files, checked.

        Raises :class:`InvalidAdapter`, :class:`NotInStore`, :class:`StoreUnavailable`.
        """
        async with self._fetches:
            return await asyncio.to_thread(self._checked, name, version)

    async def load(self, manifest: Manifest, digest: str, folder: Path) -> Loaded:
        """Load, and probe what was not probed before; on any failure nothing stays in the engine.

        Raises :class:`InvalidAdapter`, :class:`EngineRefused`, :class:`EngineDown`, :class:`TimeoutError`.
        """
        # The engine's prefix cache knows an adapter by this name alone: it must never mean other weights.
        engine_name = f"{manifest.name}@{manifest.version}:{digest[7:23]}"
        await self._engine.load(engine_name, folder)
        try:
            if engine_name in self._proven:
                return Loaded(manifest, digest, engine_name)
            began = time.monotonic()
            await self._probe.check(manifest, engine_name)
            self._metrics.probe_seconds.observe(time.monotonic() - began)
            self._proven.add(engine_name)
        except BaseException:
            if self._engine.alive:
                await self._engine.unload(engine_name)
            raise
        return Loaded(manifest, digest, engine_name)

    async def unload(self, loaded: Loaded) -> None:
        """Free a version that no request uses."""
        await self._engine.unload(loaded.engine_name)
        logger.info("unloaded %s@%d", loaded.manifest.name, loaded.manifest.version)

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        # vLLM takes adapters for layers that the base does not have, and leaves those out.
        return base_shapes(self._base.folder)

    def _checked(self, name: str, version: int) -> tuple[Manifest, str, Path]:
        manifest, digest = self._store.manifest(name, version)
        if manifest.base.digest != self._base.digest:
            raise InvalidAdapter(f"it was made for another base model ({manifest.base.name}); train it on this one")
        folder = self._store.fetch(name, version, self._cache)
        try:
            lint(folder, shapes=self._shapes, max_rank=self._engine.limits.max_lora_rank)
        except InvalidAdapter as error:
            raise InvalidAdapter(str(error).removeprefix(f"{folder.name}: ")) from error
        return manifest, digest, folder
