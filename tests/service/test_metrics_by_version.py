"""What is measured is told apart by version for as long as there is something to tell."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from adapters.releases import NewRelease
from adapters.store import Store
from service import metrics
from service.metrics import CAP, OTHER, UNUSED_SECONDS, Metrics
from service.serving.answering import Answering
from tests.service.conftest import Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def count(measured: Metrics, name: str, version: int) -> tuple[str, str]:
    labels = measured.version(name, str(version))
    measured.requests.labels("predict", *labels, "stable", "ok").inc()
    return labels


def series(measured: Metrics) -> list[Any]:
    return [sample for metric in measured.registry.collect() for sample in metric.samples]


def test_250_versions_one_after_the_other_have_their_own_names() -> None:
    measured = Metrics()
    for version in range(1, 251):
        assert count(measured, "mood", version) == ("mood", str(version))
        if version > 2:
            measured.forget("mood", str(version - 2))
    versions = {s.labels["version"] for s in series(measured) if s.name == "hotswap_requests_total"}
    assert versions == {"249", "250"}, "series of a version go when it is retired"


def test_250_versions_over_months_have_their_own_names_though_nobody_retires_any(monkeypatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock, measured = Clock(), None
    monkeypatch.setattr(metrics, "time", clock)
    measured = Metrics()
    for version in range(1, 251):
        assert count(measured, "mood", version) == ("mood", str(version))
        clock.now += 3600
    assert len({s.labels.get("version") for s in series(measured)}) <= CAP + 1


def test_who_invents_names_at_once_gets_other_and_no_more_series() -> None:
    measured = Metrics()
    for version in range(CAP):
        count(measured, "mood", version)
    before = len(series(measured))
    assert {count(measured, "mood", CAP + n) for n in range(50)} == {(OTHER, OTHER)}
    assert len(series(measured)) <= before + 4
    assert UNUSED_SECONDS > 60, "Prometheus must have read what goes"


async def test_generations_are_told_by_adapter_whatever_number_there_is(serve: Serve, stocked: Store) -> None:
    async with serve() as service:
        for _ in range(3):
            stocked.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("mood").generation == 4)
        for gauge in ("hotswap_store_generation", "hotswap_served_generation"):
            assert await service.metric(gauge, adapter="mood") == 4
            assert await service.metric(gauge, adapter="brief") == 1
        await service.until(lambda behind: not behind, "hotswap_adapters_behind")  # as of the last look


def test_generations_beyond_the_cap_have_none_rather_than_one_for_many(monkeypatch) -> None:
    monkeypatch.setattr(metrics, "ADAPTERS_CAP", 2)
    measured = Metrics()
    for n in range(5):
        measured.generation(measured.store_generation, f"adapter-{n}", n + 1)
    told = {s.labels["adapter"]: s.value for s in series(measured) if s.name == "hotswap_store_generation"}
    assert told == {"adapter-0": 1, "adapter-1": 2}


async def test_series_go_when_a_version_is_retired(serve: Serve, stocked: Store) -> None:
    async with serve() as service:
        for reference in ("mood", "mood@2"):
            assert (await service.predict(reference)).status_code == 200
        assert await service.metric("hotswap_requests_total", adapter="mood", version="2") == 1
        stocked.retire("mood", 2)
        async with asyncio.timeout(10):
            while 'version="2"' in (await service.client.get("/metrics")).text:
                await asyncio.sleep(0.01)
        assert await service.metric("hotswap_requests_total", adapter="mood", version="1") == 1


async def test_a_fault_of_our_own_is_a_500_that_is_counted_and_reveals_nothing(
    serve: Serve, monkeypatch, caplog
) -> None:
    async with serve() as service:

        async def failing(*_: Any, **__: Any) -> Any:
            raise KeyError("/etc/secret")

        monkeypatch.setattr(Answering, "_outputs", failing)
        for asked in ({"input": "x"}, {"inputs": ["x", "y"]}):
            response = await service.client.post("/v1/predict", json={"adapter": "mood", **asked})
            assert (response.status_code, response.json()["code"]) == (500, "internal")
            assert "secret" not in response.text
        by = {"adapter": "mood", "version": "1", "channel": "stable", "outcome": "internal"}
        assert await service.metric("hotswap_requests_total", **by) == 2
        assert await service.metric("hotswap_http_responses_total", status="500") == 2
        assert any(record.exc_info for record in caplog.records if "mood@1" in record.getMessage())


async def test_a_fault_outside_of_predictions_is_counted_as_well(serve: Serve, monkeypatch) -> None:
    async with serve() as service:

        async def failing(*_: Any) -> Any:
            raise KeyError("/etc/secret")

        monkeypatch.setattr(service.state.reconciler, "refresh", failing)
        response = await service.client.get("/v1/adapters/mood")
        assert (response.status_code, response.json()["code"]) == (500, "internal")
        assert "secret" not in response.text
        assert await service.metric("hotswap_http_responses_total", status="500") == 1
