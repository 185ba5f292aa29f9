"""A fault of our own is in the log with its traceback, and what was to be done goes on being done."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.releases import Guard, NewRelease, Share
from adapters.store import Store
from service.rollout import promotion, reconciler
from service.rollout.promotion import Promotion
from service.rollout.reconciler import Reconciler
from tests.service.conftest import Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Fault(Exception):
    """What nobody thought of."""


@pytest.fixture(autouse=True)
def _begun_again_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.group.AGAIN_SECONDS", 0.01)


def tracebacks(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.exc_info and record.exc_info[0] is Fault]


def fails_once(patch: pytest.MonkeyPatch, owner: Any, name: str) -> list[None]:
    """Have one call of a coroutine function fail; return a list that is filled when it did."""
    original, failed = getattr(owner, name), []

    async def failing(*arguments: Any, **more: Any) -> Any:
        if not failed:
            failed.append(None)
            raise Fault(name)
        return await original(*arguments, **more)

    patch.setattr(owner, name, failing)
    return failed


async def follows_releases(service: Running, store: Store) -> None:
    generation = store.release("mood", NewRelease(stable=2)).generation
    await until(lambda: service.state.routing.served("mood").generation == generation)
    assert (await service.predict("mood")).json()["adapter"]["version"] == 2


@pytest.mark.parametrize("name", ["reconcile", "_move", "_is_superseded"])
async def test_a_fault_of_the_reconciler_is_logged_and_releases_are_followed(
    serve: Serve, stocked: Store, monkeypatch, caplog, name: str
) -> None:
    async with serve() as service:
        failed = fails_once(monkeypatch, Reconciler, name)
        if name != "reconcile":
            stocked.release("mood", NewRelease(stable=2, why="the first is lost"))
        await until(lambda: bool(failed))
        await until(lambda: bool(tracebacks(caplog)))
        await follows_releases(service, stocked)


async def test_a_fault_of_the_watch_is_logged_and_it_is_begun_again(serve: Serve, monkeypatch, caplog) -> None:
    begun, watch = [], reconciler.watch

    async def failing(*arguments: Any) -> None:
        begun.append(None)
        if len(begun) == 1:
            raise Fault("watch")
        await watch(*arguments)

    monkeypatch.setattr(reconciler, "watch", failing)
    async with serve(poll_seconds=3600) as service:
        await until(lambda: len(begun) == 2)
        assert (await service.predict("mood")).status_code == 200
    assert "the watch failed; it is begun again" in tracebacks(caplog)


async def test_a_fault_in_judging_a_canary_is_logged_and_it_is_judged_again(
    serve: Serve, stocked: Store, monkeypatch, caplog
) -> None:
    quick = Guard(steps=(20,), errors=0.3, slow=0.9, samples=2, seconds=0, confidence=0.5)
    verdict, failed = promotion.verdict, []

    def failing(*arguments: Any) -> Any:
        if not failed:
            failed.append(None)
            raise Fault("verdict")
        return verdict(*arguments)

    monkeypatch.setattr(promotion, "verdict", failing)
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=20), guard=quick))
    async with serve() as service:
        caller = 0
        while stocked.released("mood").stable == 1:  # bounded by the test's timeout
            await service.predict("mood", caller=f"c{caller}")
            caller += 1
    assert any("could not be judged" in message for message in tracebacks(caplog))


async def test_a_fault_of_the_promotion_itself_is_logged_and_it_is_begun_again(
    serve: Serve, monkeypatch, caplog
) -> None:
    begun = []

    async def failing(_: Promotion) -> None:
        begun.append(None)
        raise Fault("run")

    monkeypatch.setattr(Promotion, "run", failing)
    async with serve() as service:
        await until(lambda: len(begun) > 2)
        assert (await service.client.get("/readyz")).status_code == 200
    assert "the promotion failed; it is begun again" in tracebacks(caplog)


async def test_a_fault_in_comparing_a_shadow_is_counted_and_nobody_s(serve: Serve, stocked: Store, monkeypatch) -> None:
    stocked.release("mood", NewRelease(stable=1, shadow=Share(version=2, percent=100)))
    async with serve() as service:

        async def failing(*_: Any) -> Any:
            raise Fault("shadow")

        monkeypatch.setattr(service.state.answering, "shadow", failing)
        for _ in range(3):
            assert (await service.predict("mood")).status_code == 200
        await service.until(lambda failed: failed >= 3, "hotswap_shadow_total", outcome="failed")
        assert (await service.predict("mood")).status_code == 200


async def test_a_listener_s_fault_costs_nobody_the_answer(serve: Serve, monkeypatch, caplog) -> None:
    async with serve() as service:

        def failing(_: Any) -> None:
            raise Fault("listener")

        service.state.answering.listeners.insert(0, failing)
        response = await service.predict("mood")
        assert response.status_code == 200
        feedback = await service.client.post("/v1/feedback", json={"id": response.json()["id"], "correct": True})
        assert feedback.status_code == 200, "who learns after it learns all the same"
    assert tracebacks(caplog)


@pytest.mark.parametrize("error", [BrokenPipeError(), ValueError("closed file"), Fault()])
async def test_that_nobody_hears_that_it_is_ready_changes_nothing(
    serve: Serve, stocked: Store, error: Exception
) -> None:
    def announce() -> None:
        raise error

    async with serve(on_ready=announce) as service:
        await follows_releases(service, stocked)


def test_a_process_whose_output_nobody_reads_follows_releases(
    stocked: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    """As in ``python -m service | head -1``."""
    settings = {"ENGINE": "fake", "STORE": stocked.place, "BASE_MODEL": str(tiny_folder), "CACHE": str(tmp_path)}
    with socket.create_server(("127.0.0.1", 0)) as free:
        settings["PORT"] = str(free.getsockname()[1])
    environment = {**os.environ, **{f"HOTSWAP_{name}": value for name, value in settings.items()}}
    read, write = os.pipe()
    os.close(read)
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen([sys.executable, "-m", "service"], env=environment, stdout=write, stderr=log)
    os.close(write)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{settings['PORT']}") as client:
            served = 0
            while served != 2:  # bounded by the test's timeout
                time.sleep(0.05)
                assert process.poll() is None, (tmp_path / "log").read_text()
                with suppress(httpx.TransportError):
                    response = client.post("/v1/predict", json={"adapter": "mood", "input": "A moving film."})
                    if response.status_code == 200:
                        if not served:
                            stocked.release("mood", NewRelease(stable=2))
                        served = response.json()["adapter"]["version"]
        process.terminate()
        assert process.wait(20) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()


async def test_an_engine_that_cannot_be_stopped_is_started_again_all_the_same(
    serve: Serve, stocked: Store, monkeypatch, caplog
) -> None:
    async with serve() as service:
        failed = fails_once(monkeypatch, service.engine, "stop")
        service.engine.die()
        await until(lambda: bool(failed))
        await until(lambda: service.state.supervisor.phase == "serving" and service.engine.alive)
        await follows_releases(service, stocked)
    assert tracebacks(caplog) == ["the engine could not be stopped"]


@pytest.mark.parametrize("owner", ["residency.forget", "reconciler.warm", "reconciler.run-engine"])
async def test_a_fault_of_the_supervisor_itself_ends_the_process_rather_than_looking_well(
    serve: Serve, monkeypatch, caplog, owner: str
) -> None:
    async with serve() as service:
        part, _, name = owner.partition(".")
        if name == "run-engine":
            monkeypatch.setattr(type(service.engine), "alive", property(lambda _: 1 / 0))
        else:
            fails_once(monkeypatch, getattr(service.state, part), name)
            service.engine.die()
        await asyncio.wait_for(service.failed.wait(), 10)
        monkeypatch.undo()
        for probe in ("/livez", "/readyz"):
            assert (await service.client.get(probe)).status_code == 503
    assert any(record.getMessage() == "the supervisor failed" and record.exc_info for record in caplog.records)
