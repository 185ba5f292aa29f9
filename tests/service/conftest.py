"""The service over real HTTP, in this event loop, on the honest fake engine."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import SummarizationTask
from service.app import create_app
from service.engine.base import Limits
from service.engine.fake import FakeEngine
from service.http import connection
from service.processes.fleet import Fleet
from service.settings import Settings
from tests.conftest import MakeAdapter
from tests.s3 import S3Server

# Seconds for what takes a moment, on a machine that others use as well.
PATIENT = 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Running:
    client: httpx.AsyncClient
    engine: FakeEngine
    server: uvicorn.Server
    state: Any
    url: str
    failed: asyncio.Event
    fleet: Fleet | None = None

    async def predict(self, adapter: str, text: str = "A moving film.", **more: Any) -> httpx.Response:
        return await self.client.post("/v1/predict", json={"adapter": adapter, "input": text, **more})

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of a metric's samples that carry ``labels``."""
        lines = (await self.client.get("/metrics")).text.splitlines()
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        named = [line for line in lines if line.split("{")[0].split(" ")[0] == name]
        return sum(float(line.rsplit(" ", 1)[1]) for line in named if all(label in line for label in wanted))

    async def until(self, holds: Callable[[float], bool], name: str, **labels: str) -> None:
        """Wait for a metric; fail loudly rather than for ever."""
        async with asyncio.timeout(PATIENT):
            while not holds(await self.metric(name, **labels)):
                await asyncio.sleep(0.01)


Serve = Callable[..., AbstractAsyncContextManager[Running]]


@pytest.fixture
def serve(tiny: Base, stocked: Store, tmp_path: Path) -> Serve:
    """Return ``serve(store, **settings)``: a running service on ``stocked``, with its engine at hand."""

    @asynccontextmanager
    async def serving(
        store: Store = stocked, on_ready: Callable[[], None] = lambda: None, **given: Any
    ) -> AsyncIterator[Running]:
        small = {"max_loras": 4, "drain_seconds": 10, "max_cpu_loras": 4, "poll_seconds": 0.02, "port": 0}
        small["feedback_database"] = "off"  # what is about the database names one
        small["engine"] = "fake"  # also of the processes that follow this one
        settings = Settings(**{"cache": tmp_path / "cache", **small, **given})
        limits = Limits(settings.max_resident, settings.max_lora_rank or 16, settings.max_model_len)
        fleet = shared = listener = None
        if (settings.api_processes or 1) > 1:
            listener, shared = socket.create_server(("127.0.0.1", 0)), tmp_path / "engine"
            shared.mkdir()
            fleet = Fleet(settings, store.place, tiny, listener)
        engine = FakeEngine(limits, tiny, shared)
        ready, failed = asyncio.Event(), asyncio.Event()

        def announce() -> None:
            ready.set()
            on_ready()

        app = create_app(settings, engine, store, tiny, on_ready=announce, on_failure=failed.set, fleet=fleet)
        server = fleet.server(app) if fleet else connection.server(app, settings)
        server.capture_signals = _no_signals  # type: ignore[method-assign]
        work = asyncio.create_task(server.serve(sockets=[listener] if listener else None))
        await asyncio.wait_for(ready.wait(), 60 if fleet else 20)
        port = (listener or server.servers[0].sockets[0]).getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        # The first request by OpenAI's API imports vLLM.
        async with httpx.AsyncClient(base_url=url, timeout=3 * PATIENT) as client:
            yield Running(client, engine, server, app.state, url, failed, fleet)
        engine.gate.set()
        server.should_exit = True
        await work

    return serving


@pytest.fixture
def two_briefs(stocked: Store, make_adapter: MakeAdapter, summary_task, tiny) -> Store:
    """``stocked``, with a second version of ``brief`` that is not released."""
    add_version(stocked, "brief", make_adapter(seed=9), summary_task, tiny)
    return stocked


class Hanging:
    """Has a store's methods wait until :meth:`end`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch, self._over, self.waiting = patch, threading.Event(), 0

    def begin(self, store: Store, *methods: str, when: Callable[..., bool] = lambda *_: True) -> None:
        for method in methods:
            self._patch.setattr(store, method, self._hung(getattr(store, method), when))

    def end(self) -> None:
        self._over.set()

    def _hung(self, method: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
        def hung(*arguments: Any, **more: Any) -> Any:
            if when(*arguments):
                self.waiting += 1
                self._over.wait()
            return method(*arguments, **more)

        return hung


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    hanging = Hanging(monkeypatch)
    yield hanging
    hanging.end()


@pytest.fixture
def bucket(s3: S3Server, make_adapter: MakeAdapter, summary_task: SummarizationTask, tiny: Base) -> Store:
    """A store on S3 with two versions of ``brief``, the first released."""
    store = Store(s3.make_bucket())
    for seed in (1, 2):
        add_version(store, "brief", make_adapter(seed=seed), summary_task, tiny)
    store.release("brief", NewRelease(stable=1))
    return store


def _no_signals() -> Any:
    from contextlib import nullcontext

    return nullcontext()


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what another task is about to make true; fail loudly rather than for ever."""
    async with asyncio.timeout(PATIENT):
        while not condition():
            await asyncio.sleep(0.001)
