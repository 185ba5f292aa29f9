"""Too much work, too slow work, clients that leave, engines that die, and going down in order."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from service.engine.base import Chunk
from service.errors import Overloaded
from service.metrics import Metrics
from service.serving.admission import Admission, estimated_tokens
from tests.service.conftest import Serve, until

pytestmark = pytest.mark.anyio


async def test_beyond_the_queue_a_request_is_refused_with_an_honest_retry_after(serve: Serve) -> None:
    async with serve(max_concurrency=2, max_queue=3) as service:
        service.engine.gate.clear()
        admitted = [asyncio.create_task(service.predict("mood", f"text {n}")) for n in range(5)]
        await until(lambda: service.engine.active == 2)
        await until(lambda: service.state.answering._admission._texts == 5)
        refused = await service.predict("mood")
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        service.engine.gate.set()
        assert [(await task).status_code for task in admitted] == [200] * 5
        assert (await service.predict("mood")).status_code == 200


async def test_a_batch_that_does_not_fit_the_queue_is_refused_whole(serve: Serve) -> None:
    async with serve(max_concurrency=2, max_queue=3) as service:
        service.engine.gate.clear()
        first = asyncio.create_task(service.predict("mood"))
        await until(lambda: service.engine.active == 1)
        response = await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": ["x"] * 5})
        assert response.status_code == 429
        assert service.engine.active == 1
        service.engine.gate.set()
        assert (await first).status_code == 200


async def test_a_batch_that_never_fits_is_told_the_limit(serve: Serve) -> None:
    async with serve(max_concurrency=2, max_queue=3) as service:
        response = await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": ["x"] * 6})
        assert (response.status_code, response.json()["code"]) == (422, "invalid_request")
        assert "at most 5 texts" in response.json()["detail"]


class Clock:
    """A clock that the test sets."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


async def answer(admission: Admission, clock: Clock, text: str, seconds: float) -> None:
    async with admission.admit([text]), admission.turn(estimated_tokens([text])):
        clock.now += seconds


async def test_work_that_would_wait_too_long_is_refused_though_the_queue_is_short(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr("service.serving.admission.time", clock)
    admission, text = Admission(1, 1000, 2.0, Metrics()), "x" * (84 * 4)  # 100 tokens, by estimate
    for _ in range(20):
        await answer(admission, clock, text, 0.5)  # 200 tokens a second
    async with AsyncExitStack() as admitted:
        for _ in range(4):
            await admitted.enter_async_context(admission.admit([text]))
        with pytest.raises(Overloaded) as refused:
            await admitted.enter_async_context(admission.admit([text]))
        assert refused.value.retry_after == 1  # half a second's work is over
        with pytest.raises(Overloaded) as refused:
            await admitted.enter_async_context(admission.admit([text] * 50))
        assert refused.value.retry_after == 2  # until there is nothing to wait for
        assert "takes about 2.0 s" in refused.value.detail
    async with admission.admit([text] * 50):
        pass  # alone it is taken, however long it is


async def test_what_is_not_known_refuses_nobody(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr("service.serving.admission.time", clock)
    text = "x" * (84 * 4)
    idle, was_slow = Admission(64, 1000, 2.0, Metrics()), Admission(1, 1000, 2.0, Metrics())
    for _ in range(20):
        await answer(idle, clock, text, 5)  # one at a time: nothing is known of what many at once take
        await answer(was_slow, clock, text, 5)
    clock.now += 61  # and a minute ago is long ago
    for admission in (idle, was_slow):
        async with AsyncExitStack() as admitted:
            for _ in range(60):
                await admitted.enter_async_context(admission.admit([text]))


async def test_what_the_engine_gets_done_is_measured_anew_when_the_texts_change(monkeypatch) -> None:
    clock = Clock()
    monkeypatch.setattr("service.serving.admission.time", clock)
    admission, text = Admission(1, 1000, 2.0, Metrics()), "x" * (84 * 4)
    for seconds, rate in ((0.5, 200), (0.05, 2000), (2.0, 50)):
        for _ in range(2000 if seconds < 0.1 else 100):
            await answer(admission, clock, text, seconds)
            clock.now += 3  # without work no time counts
        assert admission._throughput.rate == pytest.approx(rate, rel=0.2)


async def test_a_request_past_its_deadline_is_aborted(serve: Serve) -> None:
    async with serve(deadline_seconds=0.1) as service:
        service.engine.gate.clear()
        response = await service.predict("mood")
        assert (response.status_code, response.json()["code"]) == (504, "deadline_exceeded")
        await until(lambda: service.engine.active == 0)


async def test_a_client_that_leaves_frees_the_engine(serve: Serve) -> None:
    async with serve() as service:
        service.engine.gate.clear()
        asked = asyncio.create_task(service.predict("mood"))
        await until(lambda: service.engine.active == 1)
        asked.cancel()
        await until(lambda: service.engine.active == 0)
        service.engine.gate.set()
        assert (await service.predict("mood")).status_code == 200
        assert await service.metric("hotswap_requests_total", outcome="client_closed") == 1


async def test_a_client_that_leaves_a_stream_frees_the_engine(serve: Serve) -> None:
    async with serve() as service:
        service.engine.gate.clear()
        asked = {"adapter": "brief", "input": "text", "stream": True}
        request = asyncio.create_task(service.client.post("/v1/summarize", json=asked))
        await until(lambda: service.engine.active == 1)
        request.cancel()
        await until(lambda: service.engine.active == 0)


async def test_when_the_engine_dies_requests_in_flight_get_503_and_the_probes_turn(serve: Serve) -> None:
    async with serve() as service:
        service.engine.gate.clear()
        asked = asyncio.create_task(service.predict("mood"))
        await until(lambda: service.engine.active == 1)
        service.engine.die()
        response = await asked
        assert (response.status_code, response.json()["code"]) == (503, "engine_down")
        assert int(response.headers["retry-after"]) > 0


async def test_an_engine_that_dies_is_started_again_with_what_is_released(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as service:
        held, start = asyncio.Event(), service.engine.start

        async def slowly() -> None:
            await held.wait()
            await start()

        monkeypatch.setattr(service.engine, "start", slowly)
        service.engine.die()
        await until(lambda: service.state.supervisor.phase == "restarting its engine")
        assert (await service.client.get("/readyz")).status_code == 503
        assert (await service.client.get("/livez")).status_code == 200  # whoever restarted us now would lose time
        assert (await service.predict("mood")).json()["code"] == "not_ready"
        held.set()
        await until(lambda: service.state.supervisor.phase == "serving")
        assert len(service.engine.resident) == 2
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
        assert await service.metric("hotswap_engine_restarts_total") == 1


async def test_an_engine_that_dies_again_and_again_ends_the_process(serve: Serve) -> None:
    async with serve() as service:
        for _ in range(2):
            service.engine.die()
            await until(lambda: not service.engine.alive)
            await until(lambda: service.engine.alive and service.state.supervisor.phase == "serving")
        service.engine.die()
        await until(lambda: service.state.supervisor.phase == "failed")
        assert service.failed.is_set()
        for probe in ("/readyz", "/livez"):
            assert (await service.client.get(probe)).status_code == 503


async def test_without_its_store_a_replica_serves_what_it_has_and_says_so(serve: Serve, tmp_path: Path) -> None:
    async with serve() as service:

        async def reachable() -> bool:
            ready = await service.client.get("/readyz")
            assert ready.status_code == 200
            return ready.json()["store_reachable"]

        assert await reachable()
        (tmp_path / "store").rename(tmp_path / "away")
        await until(lambda: not service.state.reconciler.store_reachable)
        assert not await reachable()
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
        assert await service.metric("hotswap_store_errors_total") > 0
        (tmp_path / "away").rename(tmp_path / "store")
        await until(lambda: service.state.reconciler.store_reachable)
        assert await reachable()


async def test_a_load_under_way_when_the_engine_dies_is_begun_again(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serve() as service:
        load, loading = service.engine.load, asyncio.Event()

        async def never(name: str, folder: Path) -> None:
            loading.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(service.engine, "load", never)
        asked = asyncio.create_task(service.predict("mood@2"))
        await loading.wait()
        monkeypatch.setattr(service.engine, "load", load)
        service.engine.die()
        assert (await asked).status_code == 503
        await until(lambda: service.state.supervisor.phase == "serving")
        assert (await service.predict("mood@2")).json()["adapter"]["version"] == 2


async def test_shutting_down_finishes_what_was_admitted(serve: Serve) -> None:
    async with serve() as service:
        service.engine.gate.clear()
        asked = [asyncio.create_task(service.predict("mood", f"text {n}")) for n in range(4)]
        await until(lambda: service.engine.active == 4)
        service.server.should_exit = True
        await until(lambda: not service.server.servers or not service.server.servers[0].is_serving())
        service.engine.gate.set()
        assert [(await task).status_code for task in asked] == [200] * 4


async def test_metrics_tell_requests_apart_by_version_and_outcome(serve: Serve) -> None:
    async with serve() as service:
        await service.predict("mood")
        await service.predict("mood@2")
        await service.predict("mood", " ")
        await service.predict("nobody")
        by = {"route": "predict", "adapter": "mood"}
        assert await service.metric("hotswap_requests_total", **by, version="1", outcome="ok") == 1
        assert await service.metric("hotswap_requests_total", **by, version="2", outcome="ok") == 1
        assert await service.metric("hotswap_requests_total", **by, outcome="invalid_request") == 1
        assert await service.metric("hotswap_requests_total", outcome="adapter_not_found") == 1
        assert await service.metric("hotswap_predictions_total", adapter="mood") == 2
        assert await service.metric("hotswap_prediction_confidence_count", adapter="mood") == 2
        assert await service.metric("hotswap_in_flight") == 0


async def test_inventing_names_does_not_grow_the_metrics(serve: Serve) -> None:
    async with serve() as service:
        await service.predict("nobody-0")
        before = len((await service.client.get("/metrics")).text)
        for n in range(30):
            await service.predict(f"nobody-{n}")
        assert len((await service.client.get("/metrics")).text) <= before + 100


async def test_a_stream_past_its_deadline_ends_with_an_error(serve: Serve) -> None:
    async def stalls(*_: object, **__: object):
        yield Chunk(text=" one", tokens=1)
        await asyncio.Event().wait()

    async with serve(deadline_seconds=0.3) as service:
        service.engine.generate = stalls
        asked = {"adapter": "brief", "input": "text", "stream": True}
        text = (await service.client.post("/v1/summarize", json=asked)).text
        assert "event: delta" in text
        assert "deadline_exceeded" in text.split("event: error")[1]


async def test_a_turn_is_given_back_however_the_text_ends() -> None:
    metrics = Metrics()
    admission = Admission(1, 10, 2.0, metrics)
    for error in (RuntimeError(), asyncio.CancelledError(), TimeoutError()):
        with pytest.raises(type(error)):
            async with admission.admit(["a"]), admission.turn(16):
                raise error
    async with admission.admit(["a"]), asyncio.timeout(5), admission.turn(16):
        waiting = asyncio.create_task(_turn(admission))
        await asyncio.sleep(0)
        assert metrics.registry.get_sample_value("hotswap_waiting") == 1
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        assert metrics.registry.get_sample_value("hotswap_in_flight") == 1
    assert metrics.registry.get_sample_value("hotswap_in_flight") == 0
    assert metrics.registry.get_sample_value("hotswap_waiting") == 0
    async with asyncio.timeout(5):
        await _turn(admission)
    assert admission._queued_tokens == 0
    assert admission.has_time


async def _turn(admission: Admission) -> None:
    async with admission.turn(16):
        pass


async def test_who_is_not_answered_before_the_service_goes_is_told_to_ask_again(serve: Serve) -> None:
    async with serve(drain_seconds=1) as service:
        service.engine.gate.clear()
        asked = [asyncio.create_task(service.predict("mood", f"text {n}")) for n in range(3)]
        await until(lambda: service.engine.active == 3)
        service.server.should_exit = True
        for answer in await asyncio.gather(*asked):
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert int(answer.headers["retry-after"]) >= 1
        assert service.engine.active == 0
