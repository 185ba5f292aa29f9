"""The application: put together here, with nothing global."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from prometheus_client import CollectorRegistry

from adapters.base_model import Base
from adapters.store import Store
from service.engine.base import Engine
from service.heartbeat import Heartbeat
from service.http.application import assembled
from service.http.keys import Keys
from service.http.quota import Quota, SharedQuota
from service.jobs.desk import Desk
from service.jobs.watch import Watch
from service.jobs.worker import LocalWorker
from service.metrics import Metrics
from service.monitoring.engine import EngineCollector
from service.offload import Offload
from service.parts import CALLS_AT_ONCE, FETCHES_AT_ONCE, Parts
from service.processes import merging
from service.processes.fleet import Fleet, Owned
from service.processes.place import Place
from service.rollout.evidence import Tally
from service.rollout.promotion import Promotion
from service.rollout.reconciler import Reconciler
from service.serving.loader import Loader
from service.serving.residency import Residency
from service.serving.routing import Routing
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
    fleet: Fleet | None = None,
) -> FastAPI:
    """Return the service. ``engine`` is started when the app is; ``on_ready`` is called when it can answer,
    ``on_failure`` when it never will. ``fleet`` are the processes that answer beside this one, if there are any."""
    metrics, tally, routing = Metrics(), Tally(), Routing()
    quota = SharedQuota(settings.rate_store) if settings.rate_store else Quota()
    offload = Offload(settings.store_seconds, CALLS_AT_ONCE)
    fetches = Offload(settings.store_seconds, FETCHES_AT_ONCE)
    loader = Loader(
        *(engine, store, fetches, base, settings.cache, settings.cache_bytes, metrics, settings.probe_tolerance)
    )
    residency = Residency(loader, routing, metrics, engine.limits.max_resident, settings.warm)
    reconciler = Reconciler(routing, residency, store, offload, metrics, settings, fleet)
    promotion = Promotion(routing, reconciler, store, offload, tally, settings.poll_seconds)
    place = fleet.place if fleet else Place()
    parts = Parts.of(
        *(settings, place, engine, store, offload, base, routing, residency, reconciler.find, metrics, tally)
    )
    residency.arrivals.append(parts.drift.begin)
    metrics.registry.register(
        EngineCollector(parts.admission, residency.named, engine.limits.max_resident, settings.max_loras)
    )
    heartbeat = Heartbeat(engine, settings.engine_seconds)
    desk = Desk(settings, store.place)
    worker = LocalWorker(settings, desk.place, store.place)
    watch = Watch(desk, metrics)
    supervisor = Supervisor(engine, residency, reconciler, promotion, parts.answering, metrics, heartbeat, fleet)
    if fleet:
        fleet.bind(Owned(engine, routing, residency, reconciler, quota, parts.feedback, tally, metrics))

    async def scrape() -> CollectorRegistry:
        return merging.registry(await fleet.families()) if fleet else metrics.registry

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        def ready() -> None:
            if settings.jobs == "local":
                worker.start()
            watch.start()
            # When the engine has its processes: a thread is no help to who is forked from this one.
            parts.feedback.start()
            on_ready()

        if fleet:
            fleet.start()
        work = asyncio.create_task(supervisor.run(ready, on_failure))
        try:
            yield
        finally:
            if fleet:
                await fleet.close()
            supervisor.stop()
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            await watch.close()
            await worker.close()
            await parts.close()
            await residency.close()
            await engine.stop()

    return assembled(
        settings,
        parts,
        lifespan,
        keys=keys or Keys.of(settings),
        engine=engine,
        store=store,
        base=base,
        metrics=metrics,
        routing=routing,
        residency=residency,
        offload=offload,
        reconciler=reconciler,
        supervisor=supervisor,
        quota=quota,
        desk=desk,
        actual=residency.actual,
        scrape=scrape,
    )
