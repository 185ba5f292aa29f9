"""A server on the fake engine, as a child of ``tests.crash``: it dies between seeing a release and serving it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore

from adapters.base_model import resolve_base
from adapters.releases import NewRelease
from adapters.store import Store
from service.app import create_app
from service.engine.base import Limits
from service.engine.fake import FakeEngine
from service.serving.routing import Routing
from service.settings import Settings
from tests import crash

ENGINE: list[crash.Function] = [(FakeEngine, name) for name in ("load", "unload", "generate")]


def serve_until_swapped(die: Callable[..., None], place: str, base: str, cache: str, name: str) -> None:
    """Serve, release version 2 of ``name`` from within, and end with status 0 when it is served."""
    seen = asyncio.Event()
    get, flip = obstore.get, Routing.flip

    def looked(objects: Any, path: str, **options: Any) -> Any:
        if path == f"{name}/releases/2.json":
            seen.set()
        return get(objects, path, **options)

    def flipped(routing: Routing, name_: str, release: Any) -> Any:
        superseded = flip(routing, name_, release)
        if (name_, release.generation) == (name, 2):
            os._exit(0)
        return superseded

    obstore.get, Routing.flip = looked, flipped  # type: ignore[assignment, method-assign]
    die([*crash.STORE, *crash.FILES, *ENGINE], armed=seen.is_set)
    asyncio.run(_serve(Store(place), base, Path(cache), name))


async def _serve(store: Store, base_folder: str, cache: Path, name: str) -> None:
    settings = Settings(cache=cache, max_loras=4, max_cpu_loras=4, poll_seconds=0.01)
    base, ready = resolve_base(base_folder, cache), asyncio.Event()
    engine = FakeEngine(Limits(settings.max_resident, 16, settings.max_model_len), base)
    app = create_app(settings, engine, store, base, on_ready=ready.set)
    async with app.router.lifespan_context(app):
        await ready.wait()
        await asyncio.to_thread(store.release, name, NewRelease(stable=2))
        await asyncio.Event().wait()
