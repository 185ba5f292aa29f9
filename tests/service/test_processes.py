"""Two API processes on one fake engine: this one decides, another follows it. What is true of one is true of both."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import psutil
import pytest
import uvicorn

from adapters.errors import HotswapError
from adapters.intake import add_version
from adapters.releases import Guard, NewRelease, Share
from adapters.store import Store
from service.http.keys import new_key
from service.processes import fleet as fleets
from service.processes import lending
from service.processes.lending import Leases
from service.processes.link import Link
from service.serving.loader import Loaded
from service.serving.residency import Slot
from service.settings import Settings
from tests.server import serving
from tests.service.conftest import Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
SLOW = 60


@dataclass
class Pair:
    """``owner`` and ``follower`` are clients of one process each."""

    running: Running
    owner: httpx.AsyncClient
    follower: httpx.AsyncClient
    shared: Path

    @property
    def both(self) -> tuple[httpx.AsyncClient, httpx.AsyncClient]:
        return self.owner, self.follower

    @property
    def process(self) -> Any:
        assert self.running.fleet is not None
        return self.running.fleet._followers[0].process

    @property
    def resident(self) -> set[str]:
        """What is in the engine, as ``name@version``."""
        return {name.partition(":")[0] for name in self.running.engine.resident}

    def hold(self) -> None:
        (self.shared / "held").touch()

    def let_go(self) -> None:
        (self.shared / "held").unlink(missing_ok=True)

    async def joined(self) -> None:
        assert self.running.fleet is not None
        async with asyncio.timeout(SLOW):
            while not self.running.fleet._complete:
                await asyncio.sleep(0.01)


TwoServe = Callable[..., AbstractAsyncContextManager[Pair]]


@pytest.fixture
def pair(serve: Serve, tmp_path: Path) -> TwoServe:
    """Return ``pair(**settings)``: a service of two processes. New connections to its own port go to the follower."""

    @asynccontextmanager
    async def two(**settings: Any) -> AsyncIterator[Pair]:
        async with serve(api_processes=2, **settings) as running:
            await running.server._accepting.close()  # type: ignore[attr-defined]
            config = uvicorn.Config(running.server.config.app, port=0, lifespan="off", log_level="error", ws="none")
            apart = uvicorn.Server(config)
            apart.capture_signals = running.server.capture_signals  # type: ignore[method-assign]
            work = asyncio.create_task(apart.serve())
            await until(lambda: apart.started)
            port = apart.servers[0].sockets[0].getsockname()[1]
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as owner:
                try:
                    yield Pair(running, owner, running.client, tmp_path / "engine")
                finally:
                    (tmp_path / "engine" / "held").unlink(missing_ok=True)
            apart.should_exit = True
            await work

    return two


async def ask(client: httpx.AsyncClient, adapter: str, **more: Any) -> httpx.Response:
    return await client.post("/v1/predict", json={"adapter": adapter, "input": "A moving film.", **more})


async def version(client: httpx.AsyncClient, adapter: str) -> int:
    response = await ask(client, adapter)
    assert response.status_code == 200, response.text
    return int(response.json()["adapter"]["version"])


async def shown(client: httpx.AsyncClient, adapter: str) -> dict[str, Any]:
    response = await client.get(f"/v1/adapters/{adapter}")
    assert response.status_code == 200, response.text
    return dict(response.json())


async def eventually(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SLOW):
        while not await condition():
            await asyncio.sleep(0.01)


async def test_both_answer_alike(pair: TwoServe) -> None:
    async with pair() as two:
        for adapter in ("mood", "brief", "mood@2"):
            one, other = [(await ask(client, adapter)).json() for client in two.both]
            assert one["outputs"] == other["outputs"]
            assert one["adapter"] == other["adapter"]
        for path in ("/v1/adapters", "/v1/adapters/mood", "/v1/models", "/v2/models/mood/ready", "/readyz"):
            one, other = [(await client.get(path)).json() for client in two.both]
            assert one == other
        for adapter in ("nothing", "mood@9", "mood@canary"):
            one, other = [(await ask(client, adapter)).json() for client in two.both]
            assert one == other


async def test_connections_are_shared_among_the_processes(serve: Serve) -> None:
    async with serve(api_processes=2) as running:
        clients = [httpx.AsyncClient(base_url=running.url, timeout=30) for _ in range(8)]
        for client in clients:
            assert (await client.get("/livez")).status_code == 200
        assert 2 <= len(running.server.server_state.connections) <= 6
        for client in clients:
            await client.aclose()


async def test_a_release_is_served_by_both_before_anybody_is_told(pair: TwoServe, two_briefs: Store) -> None:
    async with pair() as two:
        for generation, (teller, stable) in enumerate(((two.follower, 2), (two.owner, 1), (two.follower, 2)), 2):
            told = await teller.post("/v1/adapters/brief/releases", json={"stable": stable})
            assert (told.status_code, told.json()["generation"]) == (201, generation)
            for client in two.both:
                assert (await shown(client, "brief"))["generation"] == generation
            for asked in two.both:

                async def served(asked: httpx.AsyncClient = asked, generation: int = generation) -> bool:
                    return (await shown(asked, "brief"))["served_generation"] == generation

                await eventually(served)
                assert [await version(client, "brief") for client in two.both] == [stable, stable]


async def test_a_version_that_the_other_process_uses_is_not_unloaded(pair: TwoServe, two_briefs: Store) -> None:
    async with pair() as two:
        await version(two.follower, "brief")
        two.hold()
        held = asyncio.create_task(ask(two.follower, "brief"))
        await eventually(lambda: in_flight(two, 1))
        await two.owner.post("/v1/adapters/brief/releases", json={"stable": 2})

        async def served() -> bool:
            return (await shown(two.owner, "brief"))["served_generation"] == 2

        await eventually(served)
        assert {"brief@1", "brief@2"} <= two.resident
        assert not held.done()
        two.let_go()
        answer = await held
        assert (answer.status_code, answer.json()["adapter"]["version"]) == (200, 1)
        await until(lambda: "brief@1" not in two.resident)


async def in_flight(two: Pair, count: int) -> bool:
    return await metric(two.owner, "hotswap_in_flight") == count


async def metric(client: httpx.AsyncClient, name: str, **labels: str) -> float:
    return await Running(client, *[None] * 5).metric(name, **labels)  # type: ignore[arg-type]


async def test_a_cold_version_is_loaded_once_for_both(pair: TwoServe) -> None:
    async with pair() as two:
        assert "mood@2" not in two.resident
        answers = await asyncio.gather(*(ask(client, "mood@2") for client in two.both * 4))
        assert {answer.status_code for answer in answers} == {200}
        for client in two.both:
            assert await metric(client, "hotswap_adapter_loads_total", adapter="mood", version="2") == 1
            assert await metric(client, "hotswap_adapters", state="resident") == 3


async def test_more_than_fit_take_turns_in_both(pair: TwoServe, two_briefs: Store) -> None:
    async with pair(max_loras=2, max_cpu_loras=2) as two:
        names = ("mood@1", "mood@2", "brief@1", "brief@2")
        for _ in range(3):
            answers = await asyncio.gather(*(ask(client, name) for name in names for client in two.both))
            assert [answer.status_code for answer in answers] == [200] * 8
        assert len(two.resident) <= 2


async def test_what_a_follower_uses_all_the_time_makes_room(pair: TwoServe, two_briefs: Store) -> None:
    async with pair(max_loras=2, max_cpu_loras=2) as two:
        over = asyncio.Event()

        async def use(adapter: str) -> None:
            while not over.is_set():
                assert (await ask(two.follower, adapter)).status_code == 200

        async with asyncio.TaskGroup() as group:
            for adapter in ("mood@1", "mood@2"):
                group.create_task(use(adapter))
            for adapter in ("brief@1", "brief@2"):
                assert (await ask(two.owner, adapter)).status_code == 200
            over.set()


async def test_what_a_follower_does_not_use_goes_back(pair: TwoServe, two_briefs: Store) -> None:
    async with pair() as two:
        await version(two.follower, "brief")
        assert two.running.fleet is not None
        leases = two.running.fleet._followers[0].leases
        assert ("brief", 1) in leases
        async with asyncio.timeout(lending.IDLE_SECONDS + SLOW):
            while ("brief", 1) in leases:
                await asyncio.sleep(0.01)
        assert await version(two.follower, "brief") == 1


async def test_what_is_lent_while_it_is_closed_is_asked_back_at_once() -> None:
    """It was to be unloaded between being asked for and being lent: nobody knew yet whom to ask for it."""
    owner, follower = [await Link.over(end) for end in socket.socketpair()]
    loaded = Loaded(None, "", "brief@1:abc")  # type: ignore[arg-type]
    slot = Slot(asyncio.get_running_loop().create_future())
    residency, engine = SimpleNamespace(enter=lambda _: slot), SimpleNamespace(lent=lambda name: name)
    leases, heard = Leases(residency, engine, owner), asyncio.Queue[Any]()  # type: ignore[arg-type]
    owner.handlers = {"borrow": leases.borrow}
    follower.handlers = {"recall": lambda *key: heard.put_nowait(key)}
    runs = [asyncio.create_task(link.run()) for link in (owner, follower)]
    borrowed = asyncio.create_task(follower.ask("borrow", "brief", 1, seconds=SLOW))
    borrowed.add_done_callback(heard.put_nowait)
    await until(lambda: bool(owner._tasks._tasks))
    slot.state = "draining"
    leases.recall(("brief", 1))
    slot.ready.set_result(loaded)
    async with asyncio.timeout(SLOW):
        assert {await heard.get(), await heard.get()} == {borrowed, ("brief", 1)}
    for link in (owner, follower):
        await link.close()
    await asyncio.gather(*runs)


async def test_what_cannot_be_served_says_why_in_both(pair: TwoServe, two_briefs: Store) -> None:
    (weights,) = Path(two_briefs.place).glob("brief/versions/2/*.safetensors")  # noqa: ASYNC240
    weights.write_bytes(b"damaged" + weights.read_bytes()[7:])
    async with pair() as two:
        answers = [await ask(client, "brief@2") for client in two.both]
        assert [answer.status_code for answer in answers] == [503, 503]
        refused = [
            await client.post("/v1/adapters/brief/releases", json={"stable": 2}) for client in (two.follower, two.owner)
        ]
        assert [answer.json()["code"] for answer in refused] == ["invalid_adapter"] * 2
        assert [await version(client, "brief") for client in two.both] == [1, 1]


async def test_what_is_new_in_the_store_is_found_and_what_is_retired_is_refused(
    pair: TwoServe, stocked: Store, make_adapter: Any, summary_task: Any, tiny: Any
) -> None:
    async with pair(poll_seconds=30) as two:
        add_version(stocked, "fresh", make_adapter(seed=5), summary_task, tiny)
        assert await version(two.follower, "fresh@1") == 1
        assert await version(two.owner, "fresh@1") == 1
        stocked.retire("fresh", 1)
        assert (await shown(two.follower, "fresh"))["versions"][0]["state"] == "retired"
        assert [(await ask(client, "fresh@1")).status_code for client in two.both] == [404, 404]


async def test_a_key_has_one_rate_whichever_process_it_asks(pair: TwoServe, tmp_path: Path) -> None:
    key, line = new_key("name=team rate=5/hour scopes=predict,metrics")
    (tmp_path / "keys").write_text(line)
    async with pair(api_keys=tmp_path / "keys") as two:
        for client in two.both:
            client.headers["Authorization"] = f"Bearer {key}"
        left = [
            (await ask(client, "mood")).headers["RateLimit-Remaining"] for client in (*two.both, *two.both, two.owner)
        ]
        assert left == ["4", "3", "2", "1", "0"]
        refused = [await ask(client, "mood") for client in two.both]
        assert [answer.status_code for answer in refused] == [429, 429]
        assert all(answer.headers["Retry-After"] for answer in refused)


async def test_feedback_finds_a_prediction_in_the_other_process(pair: TwoServe) -> None:
    async with pair() as two:
        for maker, teller in (two.both, two.both[::-1]):
            answer = (await ask(maker, "mood")).json()
            said = {"id": answer["id"], "correct": True}
            told = [await client.post("/v1/feedback", json=said) for client in (teller, maker)]
            assert [each.status_code for each in told] == [200, 200]
            wrong = await teller.post("/v1/feedback", json={"id": answer["id"], "better": "no summary"})
            assert wrong.status_code == 422
        assert await metric(two.owner, "hotswap_feedback_total", adapter="mood", outcome="right") == 2
        for client in two.both:
            unknown = await client.post("/v1/feedback", json={"id": "pred_" + "0" * 26, "correct": True})
            assert unknown.status_code == 404


async def test_a_canary_is_judged_by_what_both_answer(pair: TwoServe, two_briefs: Store) -> None:
    guard = Guard(seconds=1000, samples=1000)
    two_briefs.release("brief", NewRelease(stable=1, canary=Share(version=2, percent=50), guard=guard))
    async with pair() as two:
        tally = two.running.state.answering._tally
        await until(lambda: "brief" in tally._watched)
        callers = [f"user-{number}" for number in range(20)]
        chosen = []
        for client in two.both:
            answers = [(await ask(client, "brief", caller=caller)).json()["adapter"]["version"] for caller in callers]
            chosen.append(answers)
        assert chosen[0] == chosen[1]
        await until(lambda: tally.of("brief", 1).answers + tally.of("brief", 2).answers == 40)


async def test_one_scrape_has_what_both_have_counted(pair: TwoServe, tmp_path: Path) -> None:
    async with pair() as two:
        for client, count in zip(two.both, (2, 3), strict=True):
            for _ in range(count):
                await version(client, "mood")
        for client in two.both:
            assert await metric(client, "hotswap_requests_total", adapter="mood", outcome="ok") == 5
            assert await metric(client, "hotswap_request_seconds_count", adapter="mood") == 5
            assert await metric(client, "hotswap_ready") == 1
            assert await metric(client, "hotswap_served_generation", adapter="mood") == 1
        two.hold()
        held = [asyncio.create_task(ask(client, "mood")) for client in two.both]
        await eventually(lambda: in_flight(two, 2))
        assert await metric(two.follower, "hotswap_batch_occupancy") == 2 / 64
        assert await metric(two.follower, "vllm:num_requests_running") == 2
        two.let_go()
        assert {(await answer).status_code for answer in held} == {200}
        await eventually(lambda: in_flight(two, 0))
        text = (await two.follower.get("/metrics", headers={"Accept": "application/openmetrics-text"})).text
        assert text.count("# TYPE hotswap_requests counter") == 1
        assert text.endswith("# EOF\n")


async def test_what_the_engine_takes_is_divided(pair: TwoServe) -> None:
    async with pair(max_concurrency=2, max_queue=0, max_batched_tokens=2048) as two:
        two.hold()
        held = [asyncio.create_task(ask(client, "mood")) for client in two.both]
        await eventually(lambda: in_flight(two, 2))
        refused = [await ask(client, "mood") for client in two.both]
        assert [answer.status_code for answer in refused] == [429, 429]
        two.let_go()
        assert {(await answer).status_code for answer in held} == {200}


async def test_a_follower_that_is_killed_is_replaced(pair: TwoServe, two_briefs: Store) -> None:
    async with pair() as two:
        for _ in range(3):
            await version(two.follower, "brief")
        assert await metric(two.owner, "hotswap_requests_total", adapter="brief", outcome="ok") == 3
        two.hold()
        lost = asyncio.create_task(ask(two.follower, "brief"))
        await eventually(lambda: in_flight(two, 1))
        killed = two.process
        killed.kill()
        with pytest.raises(httpx.TransportError):
            await lost
        two.let_go()
        # What it used holds up nobody, and what it had counted stays counted.
        await two.owner.post("/v1/adapters/brief/releases", json={"stable": 2})
        await until(lambda: "brief@1" not in two.resident)
        assert await metric(two.owner, "hotswap_requests_total", adapter="brief", outcome="ok") == 3
        assert await version(two.owner, "brief") == 2
        await until(lambda: killed.returncode is not None)
        await eventually(lambda: replaced(two, killed))
        await two.joined()
        assert await version(two.follower, "brief") == 2
        assert await metric(two.follower, "hotswap_requests_total", adapter="brief", outcome="ok") == 5


async def replaced(two: Pair, before: Any) -> bool:
    followers = two.running.fleet._followers  # type: ignore[union-attr]
    return bool(followers) and followers[0].process is not before


async def test_a_follower_that_is_stopped_holds_up_no_release(pair: TwoServe, two_briefs: Store) -> None:
    async with pair(engine_seconds=1) as two:
        await version(two.follower, "brief")
        stopped = two.process
        os.kill(stopped.pid, signal.SIGSTOP)
        told = await two.owner.post("/v1/adapters/brief/releases", json={"stable": 2})
        assert told.status_code == 201

        async def served() -> bool:
            return (await shown(two.owner, "brief"))["served_generation"] == 2

        await eventually(served)
        assert stopped.returncode == -signal.SIGKILL
        assert await version(two.owner, "brief") == 2
        await until(lambda: "brief@1" not in two.resident)
        await two.joined()
        assert await version(two.follower, "brief") == 2


async def test_followers_that_end_again_and_again_end_the_service(
    pair: TwoServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleets, "DEATHS", 1)
    async with pair() as two:
        two.running.fleet._deaths = type(two.running.fleet._deaths)(maxlen=1)  # type: ignore[union-attr]
        two.process.kill()
        async with asyncio.timeout(SLOW):
            await two.running.failed.wait()
        assert (await two.owner.get("/livez")).status_code == 503


async def test_an_engine_that_dies_is_started_again_for_both(pair: TwoServe) -> None:
    async with pair() as two:
        assert [await version(client, "mood") for client in two.both] == [1, 1]
        two.hold()
        held = [asyncio.create_task(ask(client, "mood")) for client in two.both]
        await eventually(lambda: in_flight(two, 2))
        process = two.process
        two.running.engine.die()
        assert {(await answer).status_code for answer in held} == {503}
        two.let_go()

        async def ready() -> bool:
            return all([(await client.get("/readyz")).status_code == 200 for client in two.both])

        await eventually(ready)
        assert [await version(client, "mood") for client in two.both] == [1, 1]
        assert two.process is process


async def test_who_is_being_answered_by_a_follower_is_answered_before_the_service_ends(pair: TwoServe) -> None:
    async with pair() as two:
        two.hold()
        held = asyncio.create_task(ask(two.follower, "mood"))
        await eventually(lambda: in_flight(two, 1))
        process = two.process
        two.running.server.should_exit = True
        await until(lambda: two.running.fleet._leaving)  # type: ignore[union-attr]
        assert not held.done()
        two.let_go()
        assert (await held).status_code == 200
        await until(lambda: process.returncode is not None)
        assert process.returncode == 0


def test_no_process_outlives_its_owner(tmp_path: Path, tiny_folder: Path, stocked: Store) -> None:
    given = {"engine": "fake", "base_model": str(tiny_folder), "store": stocked.place, "cache": str(tmp_path / "cache")}
    with serving(tmp_path / "log", api_processes="3", **given) as server:
        server.predict("mood", "A film.")
        children = psutil.Process(server.process.pid).children()
        assert len(children) == 2
        children[0].suspend()
        server.process.kill()
        gone, alive = psutil.wait_procs(children, 30)
        assert (len(gone), alive) == (2, [])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_real_engine_and_who_uses_it_are_replaced(tmp_path: Path, tiny_folder: Path, stocked: Store) -> None:
    given = {"base_model": str(tiny_folder), "store": stocked.place, "cache": str(tmp_path / "cache")}
    given |= {"max_loras": "4", "kv_cache_gib": "0.25", "max_model_len": "256"}

    def wait_for(times: int, words: str) -> None:
        while len(re.findall(words, (tmp_path / "log").read_text())) < times:
            time.sleep(0.05)

    def answers() -> list[Any]:
        """Ask on connections of their own: some are the follower's."""
        said = []
        for _ in range(8):
            answer = httpx.post(f"{server.url}/v1/predict", json={"adapter": "mood", "input": "A film."}, timeout=60)
            assert answer.status_code == 200, answer.text
            said.append(answer.json()["outputs"])
        return said

    with serving(tmp_path / "log", api_processes="2", **given) as server:
        service = psutil.Process(server.process.pid)
        before = answers()
        assert before == [before[0]] * 8
        (follower,) = [child for child in service.children() if "follower" in " ".join(child.cmdline())]
        follower.kill()
        wait_for(2, r"API process 1 answers")
        assert answers() == before
        (engine,) = [child for child in service.children() if "EngineCore" in " ".join(child.cmdline())]
        engine.kill()
        wait_for(3, r"API process 1 answers")
        while httpx.get(f"{server.url}/readyz", timeout=60).status_code != 200:
            time.sleep(0.05)
        assert answers() == before
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"API_PROCESSES": "0"}, "HOTSWAP_API_PROCESSES"),
        ({"API_PROCESSES": "65"}, "HOTSWAP_API_PROCESSES"),
        ({"API_PROCESSES": "3", "MAX_CONCURRENCY": "2"}, "HOTSWAP_MAX_CONCURRENCY"),
        ({"API_PROCESSES": "2", "DATA_PARALLEL": "2"}, "HOTSWAP_DATA_PARALLEL"),
    ],
)
def test_numbers_of_processes_that_cannot_be_are_refused(given: dict[str, str], named: str) -> None:
    with pytest.raises(HotswapError, match=named) as refused:
        Settings.read({f"HOTSWAP_{name}": value for name, value in given.items()})
    assert "\n" not in str(refused.value)
