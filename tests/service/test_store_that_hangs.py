"""A store that accepts and never answers holds up what needs it, for a while, and nothing else."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import ClassificationTask
from service.offload import MOST_ABANDONED, THREADS, Offload
from tests.conftest import MakeAdapter
from tests.s3 import S3Server
from tests.server import serving
from tests.service.conftest import Hanging, Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
QUESTIONS = ("pulse", "catalogue", "adapter", "manifest", "superseded", "history", "release")
LONG = "word " * 4000
LIMIT = 0.5


@contextmanager
def within(seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < seconds


async def is_reachable(service: Running) -> bool:
    ready = await service.client.get("/readyz")
    assert ready.status_code == 200, "without its store a replica serves what it has"
    return ready.json()["store_reachable"]


async def reachable_turns(service: Running, reachable: bool) -> None:
    async with asyncio.timeout(10):
        while await is_reachable(service) is not reachable:
            await asyncio.sleep(0.01)


async def test_resident_adapters_answer_texts_of_any_length_meanwhile(
    serve: Serve, stocked: Store, hanging: Hanging
) -> None:
    async with serve(store_seconds=30) as service:
        hanging.begin(stocked, *QUESTIONS)
        unknown = [asyncio.create_task(service.predict(f"nobody-{n}")) for n in range(60)]
        await until(lambda: hanging.waiting > 5)
        with within(8):
            for text in ("short", LONG):
                for adapter in ("mood", "brief", "mood@1"):
                    assert (await service.predict(adapter, text)).status_code == 200
        hanging.end()
        assert {(await task).status_code for task in unknown} == {404}


async def test_what_needs_the_store_is_refused_in_time_and_may_come_back(
    serve: Serve, stocked: Store, hanging: Hanging
) -> None:
    async with serve(store_seconds=LIMIT) as service:
        hanging.begin(stocked, *QUESTIONS)
        with within(8):
            responses = await asyncio.gather(
                service.predict("nobody"),
                service.predict("mood@7"),
                service.client.get("/v1/adapters/nobody"),
                service.client.post("/v1/adapters/mood/releases", json={"stable": 2}),
            )
        for response in responses:
            assert (response.status_code, response.json()["code"]) == (503, "not_ready")
            assert int(response.headers["retry-after"]) > 0


async def test_readiness_says_that_the_store_cannot_be_reached_and_that_it_can_again(
    serve: Serve, stocked: Store, hanging: Hanging
) -> None:
    async with serve(store_seconds=LIMIT) as service:
        assert await is_reachable(service)
        hanging.begin(stocked, "pulse")
        await reachable_turns(service, False)
        hanging.end()
        await reachable_turns(service, True)
        stocked.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("mood").stable == 2)


@pytest.mark.parametrize("hung", [1, 4, 40])
async def test_files_that_never_come_stop_no_other_load(
    serve: Serve,
    stocked: Store,
    make_adapter: MakeAdapter,
    sentiment_task: ClassificationTask,
    tiny: Base,
    hanging: Hanging,
    hung: int,
) -> None:
    folder = make_adapter(seed=10)
    for n in range(hung):
        add_version(stocked, f"slow-{n}", folder, sentiment_task, tiny)
    async with serve(max_cpu_loras=8, store_seconds=2) as service:
        hanging.begin(stocked, "fetch", when=lambda name, *_: name.startswith("slow"))
        waiting = [asyncio.create_task(service.predict(f"slow-{n}@1")) for n in range(hung)]
        await until(lambda: hanging.waiting >= min(hung, 32))
        with within(8):
            assert (await service.predict("mood@2")).status_code == 200
            stocked.release("brief", NewRelease(stable=1, why="again"))
            await until(lambda: service.state.routing.served("brief").generation == 2)
        assert await is_reachable(service)
        hanging.end()
        assert {(await task).status_code for task in waiting} == {200}


@pytest.mark.parametrize("batch", [1, 2])
async def test_what_waits_for_a_load_is_no_load(serve: Serve, stocked: Store, hanging: Hanging, batch: int) -> None:
    async with serve(max_concurrency=2, max_queue=4, max_wait_seconds=0.5) as service:
        hanging.begin(stocked, "fetch", when=lambda name, version, *_: version == 2)
        body = {"adapter": "mood@2", "inputs": [LONG] * batch}
        waiting = [asyncio.create_task(service.client.post("/v1/predict", json=body)) for _ in range(9)]
        await until(lambda: hanging.waiting == 1)
        for _ in range(60):
            assert (await service.predict("mood", "some words " * 80)).status_code == 200
        hanging.end()
        assert {(await task).status_code for task in waiting} == {200}
        assert (await service.predict("mood")).status_code == 200


async def test_the_service_ends_though_calls_have_not_come_back(serve: Serve, stocked: Store, hanging: Hanging) -> None:
    async with serve(store_seconds=0.1, drain_seconds=1) as service:
        hanging.begin(stocked, *QUESTIONS, "fetch")
        await asyncio.gather(*(service.predict(f"nobody-{n}") for n in range(8)))
        assert hanging.waiting > 1
        service.server.should_exit = True
        began = time.monotonic()
    assert time.monotonic() - began < 10


async def test_threads_do_not_pile_up(hanging: Hanging, store: Store) -> None:
    def calls() -> int:  # other threads come and go
        return sum(thread.name == THREADS for thread in threading.enumerate())

    offload, before = Offload(0.001, 32), calls()
    hanging.begin(store, "names")
    refused = 0
    for n in range(MOST_ABANDONED + 50):
        with pytest.raises(Exception, match=r"HOTSWAP_STORE_SECONDS|too many calls"):
            await offload(str(n % 200), store.names)
        refused += 1
    assert refused == MOST_ABANDONED + 50
    assert calls() - before <= MOST_ABANDONED
    hanging.end()
    await until(lambda: calls() <= before and not offload._places)
    assert await Offload(5, 32)("x", store.names) == []


async def test_a_bucket_that_accepts_and_never_answers_is_given_up_and_used_again(
    serve: Serve, bucket: Store, s3: S3Server
) -> None:
    async with serve(bucket, store_seconds=LIMIT, poll_seconds=0.1) as service:
        with s3.silent():
            await reachable_turns(service, False)
            with within(8):
                refused = await service.predict("nobody")
                assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
                for text in ("short", LONG):
                    assert (await service.predict("brief", text)).json()["adapter"]["version"] == 1
        await reachable_turns(service, True)
        bucket.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)


def test_a_process_whose_bucket_hangs_ends_when_it_is_told_to(
    bucket: Store, s3: S3Server, tiny_folder: Path, tmp_path: Path
) -> None:
    settings = {"engine": "fake", "base_model": str(tiny_folder), "cache": str(tmp_path / "cache")}
    settings |= {"store": bucket.place, "store_seconds": "0.5", "poll_seconds": "0.1"}
    with serving(tmp_path / "log", **settings) as server, s3.silent():
        while server.client.get("/readyz").json()["store_reachable"]:  # bounded by the test's timeout
            time.sleep(0.02)
        assert server.client.post("/v1/predict", json={"adapter": "nobody", "input": "x"}).status_code == 503
        began = time.monotonic()
        assert server.stop() == 0, server.log.read_text()
        assert time.monotonic() - began < 10
