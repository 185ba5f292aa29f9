"""An engine that lives and answers nothing is as good as dead, and is treated so."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from adapters.store import Store
from service import supervisor
from service.engine.vllm import cpu_seconds
from tests.server import Server, serving
from tests.service.conftest import Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


async def die(service: Running) -> None:
    restarts = await service.metric("hotswap_engine_restarts_total")
    service.engine.die()
    await until(lambda: not service.engine.alive)
    await until(lambda: service.engine.alive or service.failed.is_set())
    await service.until(lambda now: now != restarts or service.failed.is_set(), "hotswap_engine_restarts_total")


@pytest.mark.parametrize("adapter", ["mood", "brief"])
async def test_requests_in_flight_are_refused_soon_and_the_service_comes_back(serve: Serve, adapter: str) -> None:
    async with serve(engine_seconds=0.3) as service:
        service.engine.hang()
        began = time.monotonic()
        waiting = [asyncio.create_task(service.predict(adapter, f"text {n}")) for n in range(8)]
        waiting += [asyncio.create_task(service.predict("mood@2"))]
        responses = await asyncio.gather(*waiting[:8])
        assert time.monotonic() - began < 15, "and not at the deadline of requests, which is 300 s"
        for response in responses:
            assert (response.status_code, response.json()["code"]) == (503, "engine_down")
            assert int(response.headers["retry-after"]) > 0
        assert (await waiting[8]).status_code in (200, 503)
        await until(lambda: service.state.supervisor.phase == "serving")
        assert (await service.predict(adapter)).status_code == 200
        assert await service.metric("hotswap_engine_restarts_total") == 1
        assert (await service.client.get("/livez")).status_code == 200


async def test_a_stream_that_has_begun_ends_with_the_error(serve: Serve) -> None:
    async with serve(engine_seconds=0.3) as service:
        service.engine.hang()
        asked = {"adapter": "brief", "input": "text", "stream": True}
        response = await asyncio.wait_for(service.client.post("/v1/summarize", json=asked), 5)
        assert "engine_down" in response.text


async def test_an_engine_that_works_without_answering_is_given_longer(serve: Serve, monkeypatch) -> None:
    async with serve(engine_seconds=0.2) as service:
        began = time.monotonic()
        monkeypatch.setattr(service.engine, "work_seconds", time.monotonic)
        service.engine.hang()
        response = await service.predict("mood")
        assert response.status_code == 503
        assert time.monotonic() - began > 1, "ten times as long, for a long step or a compilation"


async def test_a_batch_in_which_the_engine_dies_is_no_answer(serve: Serve) -> None:
    async with serve() as service:
        service.engine.gate.clear()
        body = {"adapter": "mood", "inputs": ["one", "two", " ", "four"]}
        request = asyncio.create_task(service.client.post("/v1/predict", json=body))
        await until(lambda: service.engine.active == 3)
        service.engine.die()
        response = await request
        assert (response.status_code, response.json()["code"]) == (503, "engine_down")
        assert "outputs" not in response.json()


async def test_only_deaths_close_together_end_the_process(serve: Serve, monkeypatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr(supervisor, "time", clock)
    async with serve() as service:
        for _ in range(5):  # one every six minutes: never three within ten
            await die(service)
            assert not service.failed.is_set()
            clock.now += 360
        clock.now += 3600
        for _ in range(2):
            await die(service)
            clock.now += 290
        assert not service.failed.is_set()
        await die(service)
        assert service.failed.is_set()
        assert (await service.client.get("/livez")).status_code == 503


ENGINE = """
import subprocess, sys
work = "import time\\nwhile time.process_time() < 0.5: pass\\nprint('done', flush=True)\\ninput()"
compiler = subprocess.Popen([sys.executable, "-c", work], stdin=subprocess.PIPE)
input()
compiler.communicate(b"end\\n")
print("alone", flush=True)
input()
"""


def test_what_a_compiler_has_done_is_still_work_when_it_has_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENGINE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    ) as engine:
        process = psutil.Process(engine.pid)
        assert engine.stdout.readline() == b"done\n"
        before = cpu_seconds([process, *process.children()])
        engine.stdin.write(b"end it\n")
        assert engine.stdout.readline() == b"alone\n"
        assert process.children() == []
        assert cpu_seconds([process]) >= before >= 0.5
        engine.stdin.write(b"end\n")


def engine_processes(server: Server) -> list[psutil.Process]:
    """Return what the server has started."""
    return psutil.Process(server.process.pid).children(recursive=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_stopped_engine_process_is_replaced_and_answers_as_before(
    stocked: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = {"store": stocked.place, "base_model": str(tiny_folder), "cache": str(tmp_path / "cache")}
    settings |= {"kv_cache_gib": "0.25", "max_model_len": "512", "engine_seconds": "3"}
    with serving(tmp_path / "log", **settings) as server:
        before = server.predict("mood", "A moving film.")["outputs"]
        stopped = engine_processes(server)
        for process in stopped:
            process.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        response = server.client.post("/v1/predict", json={"adapter": "mood", "input": "A moving film."})
        assert response.status_code == 503, server.log.read_text()
        assert response.json()["code"] in ("engine_down", "not_ready")
        assert server.client.get("/readyz", timeout=5).status_code == 503
        assert server.client.get("/livez", timeout=5).status_code == 200
        assert time.monotonic() - began < 30
        while server.client.get("/readyz").status_code != 200:  # bounded by the test's timeout
            time.sleep(0.5)
        assert server.predict("mood", "A moving film.")["outputs"] == before
        assert not [process for process in stopped if process.is_running() and process.status() == "stopped"]
        assert server.stop() == 0
