"""The application: put together here, with nothing global."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import HTTPBearer

from adapters.base_model import Base
from adapters.store import Store
from service.engine.base import Engine
from service.http import edge
from service.http.keys import Keys, Scope
from service.http.quota import Quota
from service.http.routes import adapters, feedback, health, predict, releases
from service.metrics import Metrics
from service.rollout.promotion import Promotion
from service.rollout.reconciler import Reconciler
from service.serving.admission import Admission
from service.serving.answering import Inference
from service.serving.loader import Loader
from service.serving.registry import Registry
from service.settings import Settings
from service.supervisor import Supervisor


def create_app(
    settings: Settings,
    engine: Engine,
    store: Store,
    base: Base,
    *,
    keys: Keys | None = None,
    on_ready: Callable[[], None] = lambda: None,
    on_failure: Callable[[], None] = lambda: None,
) -> FastAPI:
    """Return the service. ``engine`` is started when the app is; ``on_ready`` is called when it can answer,
    ``on_failure`` when it never will."""
    metrics = Metrics()
    loader = Loader(engine, store, base, settings.cache, metrics, settings.probe_tolerance)
    registry = Registry(loader, store, metrics, engine.limits.max_resident, settings.warm)
    admission = Admission(settings.max_concurrency, settings.max_queue, settings.max_wait_seconds, metrics)
    inference = Inference(engine, registry, admission, base, settings, metrics)
    reconciler = Reconciler(registry, store, metrics, settings.poll_seconds, settings.sweep_seconds)
    promotion = Promotion(registry, reconciler, store, inference.tally, settings.poll_seconds)
    supervisor = Supervisor(engine, registry, reconciler, promotion, inference, metrics)
    keys = keys or Keys.of(settings)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        work = asyncio.create_task(supervisor.run(on_ready, on_failure))
        try:
            yield
        finally:
            supervisor.stop()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await registry.close()
            await engine.stop()

    def scope(needed: Scope) -> list[Any]:
        async def authenticate(request: Request) -> None:
            if not hasattr(request.state, "caller"):  # Access has seen to it, but for what is open to all
                request.state.caller = keys.caller(request.headers)
            request.state.caller.need(needed)

        # The document asks for a key where the service does.
        return [Depends(authenticate), *([Security(HTTPBearer(auto_error=False))] if settings.api_keys else [])]

    app = FastAPI(
        title="hotswap",
        version="0.1.0",
        description="One frozen base model, many LoRA adapters: each request names the one it wants.",
        lifespan=lifespan,
        docs_url=None,  # FastAPI's pages load their scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirect would echo the caller's Host header
    )
    app.state.engine, app.state.store, app.state.base = engine, store, base
    app.state.keys = keys
    app.state.metrics, app.state.registry, app.state.inference = metrics, registry, inference
    app.state.feedback = inference.feedback
    app.state.reconciler, app.state.supervisor, app.state.quota = reconciler, supervisor, Quota()
    app.include_router(predict.router, dependencies=scope("predict"))
    app.include_router(feedback.router, dependencies=scope("predict"))
    app.include_router(adapters.router, dependencies=scope("predict"))
    app.include_router(releases.router, dependencies=scope("admin"))
    app.include_router(health.router)
    if settings.metrics_port is None:
        app.add_api_route("/metrics", health.metrics, tags=["operations"], include_in_schema=False)
    edge.install(app, settings, keys, app.state.quota, metrics)
    return app
