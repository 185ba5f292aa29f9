"""On the real engine: what was admitted is answered before the service goes, and who leaves takes nothing with him."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator

import httpx
import pytest

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from tests.conftest import write_adapter
from tests.server import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
CONTEXT = 2048
LONG = "moving film " * 400
# Keys and values of two layers, one head of 64, in float32: the cache holds one and a half of the longest requests.
KV_GIB = 1.5 * CONTEXT * 2 * 2 * 64 * 4 / 2**30


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny: Base, sentiment_task, summary_task) -> Iterator[Server]:
    place = tmp_path_factory.mktemp("leavers")
    store = Store(place / "store")
    for seed, (name, task) in enumerate((("mood", sentiment_task), ("long", long_answers(summary_task)))):
        add_version(store, name, write_adapter(place / name, seed=seed), task, tiny)
        store.release(name, NewRelease(stable=1))
    settings = {"store": store.place, "base_model": str(tiny.folder), "cache": str(place / "cache")}
    with serving(place / "server.log", **settings, max_model_len=str(CONTEXT), kv_cache_gib=f"{KV_GIB:.6f}") as started:
        yield started


def long_answers(task):
    return task.model_copy(update={"max_answer_tokens": 1000, "max_input_tokens": 1000})


def test_whoever_leaves_frees_what_the_engine_held_for_him(server: Server) -> None:
    """Fifty abandoned requests would fill the cache many times over, and one more would wait behind all of them."""

    async def leave() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            asked = [
                asyncio.create_task(client.post("/v1/predict", json={"adapter": "long", "input": f"{n} {LONG}"}))
                for n in range(50)
            ]
            while in_flight(await client.get("/metrics")) < 50:
                await asyncio.sleep(0.01)
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
            while in_flight(await client.get("/metrics")):
                await asyncio.sleep(0.01)

    asyncio.run(leave())
    # It needs most of the cache, and would come after all of them.
    assert server.predict("mood", LONG)["adapter"]["version"] == 1
    metrics = server.client.get("/metrics").text
    assert counted(metrics, "hotswap_requests_total", 'adapter="long"', 'outcome="client_closed"') == 50
    assert counted(metrics, "hotswap_completion_tokens_total", 'adapter="long"') == 0, "not one was finished unasked"


def test_what_was_admitted_before_sigterm_is_answered(server: Server) -> None:
    async def ask_and_stop() -> list[int]:
        async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
            before = answered(await client.get("/metrics"))
            # The long answers, one at a time in so small a cache, are still being written when the last one arrives.
            asked = [
                asyncio.create_task(client.post("/v1/predict", json={"adapter": name, "input": f"{n} {LONG}"}))
                for n, name in enumerate(["long"] * 4 + ["mood"] * 36)
            ]
            while in_flight(metrics := await client.get("/metrics")) + answered(metrics) - before < 40:
                await asyncio.sleep(0.001)
            server.process.send_signal(signal.SIGTERM)
            assert in_flight(metrics), "some of them were not answered yet"
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(ask_and_stop()) == [200] * 40
    assert server.process.wait(60) == 0


def in_flight(response: httpx.Response) -> float:
    """Return how many texts are in the engine or wait for it."""
    return counted(response.text, "hotswap_in_flight ") + counted(response.text, "hotswap_waiting ")


def answered(response: httpx.Response) -> float:
    return counted(response.text, "hotswap_requests_total", 'outcome="ok"')


def counted(metrics: str, name: str, *labels: str) -> float:
    lines = [line for line in metrics.splitlines() if line.startswith(name) and all(label in line for label in labels)]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)
