"""The application: put together here, with nothing global."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request, Security
from fastapi.security import HTTPBearer

from adapters.base_model import Base
from adapters.manifest import Manifest
from adapters.store import Store
from service.engine.base import Engine
from service.heartbeat import Heartbeat
from service.http import edge
from service.http.keys import Keys, Scope
from service.http.quota import Quota
from service.http.routes import adapters, feedback, files, fine_tuning, health, kserve, openai, predict, releases
from service.jobs.desk import Desk
from service.jobs.watch import Watch
from service.jobs.worker import LocalWorker
from service.metrics import Metrics
from service.monitoring.drift import Drift
from service.monitoring.engine import EngineCollector
from service.monitoring.feedback import Feedback
from service.offload import Offload
from service.rollout.evidence import Tally
from service.rollout.promotion import Promotion
from service.rollout.reconciler import Reconciler
from service.rollout.shadow import Shadow
from service.serving.admission import Admission
from service.serving.answer_cache import AnswerCache
from service.serving.answering import Answering
from service.serving.conversing import Conversing
from service.serving.deciding import Deciding
from service.serving.loader import Loader
from service.serving.residency import Residency
from service.serving.routing import Routing
from service.settings import Settings
from service.supervisor import Supervisor

# Questions to the store, and files that are fetched from it: each apart, for files take their time.
CALLS_AT_ONCE, FETCHES_AT_ONCE = 32, 64


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
    keys = keys or Keys.of(settings)
    metrics, tally, routing = Metrics(), Tally(), Routing()
    offload = Offload(settings.store_seconds, CALLS_AT_ONCE)
    fetches = Offload(settings.store_seconds, FETCHES_AT_ONCE)
    loader = Loader(
        *(engine, store, fetches, base, settings.cache, settings.cache_bytes, metrics, settings.probe_tolerance)
    )
    residency = Residency(loader, routing, metrics, engine.limits.max_resident, settings.warm)
    reconciler = Reconciler(routing, residency, store, offload, metrics, settings)
    promotion = Promotion(routing, reconciler, store, offload, tally, settings.poll_seconds)
    admission = Admission(settings.max_concurrency, settings.max_queue, settings.max_wait_seconds, metrics)
    cache = AnswerCache(settings.answer_cache_bytes, metrics)
    answering = Answering(
        *(engine, routing, residency, admission, base, settings, metrics, tally, cache), find=reconciler.find
    )

    async def manifest(name: str, version: int) -> Manifest:
        return (await offload(name, store.manifest, name, version))[0]

    drift = Drift(metrics, base.tokenizer)
    judging = Feedback(settings, store.place, manifest, metrics, tally, drift)
    shadow = Shadow(answering, routing, admission, metrics, tally)
    answering.listeners += [judging.remember, shadow.offer]
    residency.arrivals.append(drift.begin)
    answering.observers.append(drift.observe)
    metrics.batch_occupancy.set_function(lambda: admission.occupancy)
    metrics.registry.register(
        EngineCollector(admission, residency.named, engine.limits.max_resident, settings.max_loras)
    )
    heartbeat = Heartbeat(engine, settings.engine_seconds)
    desk = Desk(settings, store.place)
    worker = LocalWorker(settings, desk.place, store.place)
    watch = Watch(desk, metrics)
    supervisor = Supervisor(engine, residency, reconciler, promotion, answering, metrics, heartbeat)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        def ready() -> None:
            if settings.jobs == "local":
                worker.start()
            watch.start()
            judging.start()  # when the engine has its processes: a thread is no help to who is forked from this one
            on_ready()

        work = asyncio.create_task(supervisor.run(ready, on_failure))
        try:
            yield
        finally:
            supervisor.stop()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await watch.close()
            await worker.close()
            await shadow.close()
            await judging.close()
            await residency.close()
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
    state = app.state
    state.engine, state.store, state.base, state.keys, state.metrics = engine, store, base, keys, metrics
    state.routing, state.residency, state.answering, state.offload = routing, residency, answering, offload
    state.deciding = Deciding(engine, answering, admission, base, metrics)
    state.conversing = Conversing(engine, answering, admission, (base.name, base.digest), metrics)
    state.reconciler, state.supervisor, state.feedback, state.quota = reconciler, supervisor, judging, Quota()
    state.desk = desk
    app.include_router(predict.router, dependencies=scope("predict"))
    app.include_router(openai.router, dependencies=scope("predict"))
    app.include_router(files.router, dependencies=scope("train"))
    app.include_router(fine_tuning.router, dependencies=scope("train"))
    app.include_router(kserve.router, dependencies=scope("predict"))
    app.include_router(kserve.health)
    app.include_router(feedback.router, dependencies=scope("predict"))
    app.include_router(adapters.router, dependencies=scope("predict"))
    app.include_router(releases.router, dependencies=scope("admin"))
    app.include_router(health.router)
    if settings.metrics_port is None:
        app.add_api_route("/metrics", health.metrics, tags=["operations"], include_in_schema=False)
    edge.install(app, settings, keys, state.quota, metrics)
    return app
