"""What /metrics says of the engine: who is in it, how full it is, and vLLM's own names for routers in front."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

import service.monitoring.engine
from adapters.releases import NewRelease, Share
from adapters.store import Store
from service.engine.base import Timing
from service.metrics import Metrics
from tests.service.conftest import Serve, until

PICKER = Path(__file__).parents[2] / "k8s" / "components" / "gateway" / "picker-config.yaml"
pytestmark = pytest.mark.anyio
ADAPTERS = re.compile(
    r'vllm:lora_requests_info\{max_lora="(\d+)",running_lora_adapters="([^"]*)",waiting_lora_adapters="([^"]*)"\}'
)

LOADED = re.compile(
    r'vllm:lora_adapter_loaded\{adapter_name="([^"]+)",level="(\w+)",pinned="(\w+)",rank="(\d+)"\} 1\.0'
)


@pytest.fixture(autouse=True)
def of_the_process(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    """The registry that vLLM writes to, without what engines of other tests have left in it."""
    registry = CollectorRegistry()
    monkeypatch.setattr(service.monitoring.engine, "REGISTRY", registry)
    return registry


async def test_routers_find_resident_adapters_by_every_name_that_clients_send(serve: Serve, stocked: Store) -> None:
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=10)))
    async with serve(max_cpu_loras=5) as service:
        for reference in ("mood@1", "mood@2", "brief"):
            assert (await service.predict(reference)).status_code == 200
        (found,) = ADAPTERS.findall((await service.client.get("/metrics")).text)
        most, there, coming = found
        assert (most, coming) == ("5", "")
        assert sorted(there.split(",")) == ["brief", "brief@1", "mood", "mood@1", "mood@2", "mood@canary"]


async def test_routers_find_each_adapter_with_its_rank_and_whether_it_stays(serve: Serve, stocked: Store) -> None:
    async with serve(max_loras=2, max_cpu_loras=5, warm=("mood",)) as service:
        for reference in ("brief", "mood@2", "mood"):
            assert (await service.predict(reference)).status_code == 200
        found = {
            name: (level, pinned, int(rank))
            for name, level, pinned, rank in LOADED.findall((await service.client.get("/metrics")).text)
        }
        rank = stocked.manifest("mood", 1)[0].rank
        assert found["mood"] == found["mood@1"] == ("gpu", "true", rank), "asked last, and warm"
        assert found["mood@2"] == ("gpu", "false", rank)
        assert found["brief"] == ("cpu", "false", rank), "two are where the engine computes: the last used ones"


async def test_routers_see_how_many_texts_wait_for_a_replica(serve: Serve) -> None:
    async with serve(max_concurrency=2) as service:
        assert await service.metric("vllm:num_requests_waiting") == 0
        assert await service.metric("vllm:kv_cache_usage_perc") == 0
        service.engine.gate.clear()
        body = {"adapter": "mood", "inputs": ["one", "two", "three", "four", "five"]}
        asked = asyncio.create_task(service.client.post("/v1/predict", json=body))
        await until(lambda: service.engine.active == 2)
        assert await service.metric("vllm:num_requests_running") == 2
        assert await service.metric("vllm:num_requests_waiting") == 3
        service.engine.gate.set()
        assert (await asked).status_code == 200
        assert await service.metric("vllm:num_requests_running") == 0


def picked(model: str, replicas: dict[str, str]) -> str:
    """Choose among replicas by their /metrics, as the inference extension's endpoint picker does with our weights."""
    (profile,) = yaml.safe_load(PICKER.read_text())["schedulingProfiles"]
    weights = {plugin["pluginRef"]: plugin.get("weight", 0) for plugin in profile["plugins"]}
    seen = {
        name: {sample.name: sample for family in text_string_to_metric_families(text) for sample in family.samples}
        for name, text in replicas.items()
    }
    queues = [samples["vllm:num_requests_waiting"].value for samples in seen.values()]

    def affinity(samples: dict[str, Sample]) -> float:
        labels = samples["vllm:lora_requests_info"].labels
        there, coming = (set(labels[f"{kind}_lora_adapters"].split(",")) - {""} for kind in ("running", "waiting"))
        if model in there:
            return 1.0
        return 0.8 if len(there | coming) < int(labels["max_lora"]) else 0.6 if model in coming else 0.0

    def score(name: str) -> float:
        samples = seen[name]
        longer = max(queues) - samples["vllm:num_requests_waiting"].value
        return (
            weights["lora-affinity-scorer"] * affinity(samples)
            + weights["queue-scorer"] * (longer / (max(queues) - min(queues)) if max(queues) > min(queues) else 1.0)
            + weights["kv-cache-utilization-scorer"] * (1 - samples["vllm:kv_cache_usage_perc"].value)
        )

    return max(replicas, key=score)


async def test_an_endpoint_picker_finds_the_replica_that_has_an_adapter_unless_its_queue_is_long(serve: Serve) -> None:
    async with (
        serve(max_concurrency=1, max_loras=1, max_cpu_loras=1) as one,
        serve(max_concurrency=1, max_loras=1, max_cpu_loras=1) as other,
    ):
        await one.predict("mood@1")
        await other.predict("brief@1")

        async def pick(model: str) -> str:
            texts = [(await each.client.get("/metrics")).text for each in (one, other)]
            return picked(model, dict(zip(("one", "other"), texts, strict=True)))

        assert await pick("mood@1") == "one"
        assert await pick("brief@1") == "other"
        one.engine.gate.clear()
        body = {"model": "mood@1", "inputs": ["text"] * 200}
        asked = asyncio.create_task(one.client.post("/v1/predict", json=body))
        await until(lambda: one.engine.active == 1)
        assert await pick("mood@1") == "other", "many wait where it is"
        one.engine.gate.set()
        assert (await asked).status_code == 200


async def test_vllms_count_of_what_waits_is_not_shown_beside_ours(
    serve: Serve, of_the_process: CollectorRegistry
) -> None:
    labels = ["model_name", "engine"]
    theirs = Gauge("vllm:num_requests_waiting", "Of vLLM's scheduler alone.", labels, registry=of_the_process)
    theirs.labels("tiny", "0").set(7)
    async with serve() as service:
        text = (await service.client.get("/metrics")).text
        assert re.findall(r"^vllm:num_requests_waiting.*$", text, re.M) == ["vllm:num_requests_waiting 0.0"]


async def test_vllms_own_metrics_are_shown_under_their_own_names(
    serve: Serve, of_the_process: CollectorRegistry
) -> None:
    labels = ["model_name", "engine"]
    theirs = Gauge("vllm:as_its_stat_logger_does", "In the process's registry.", labels, registry=of_the_process)
    Gauge("process_cpu_seconds_total", "Not vLLM's.", registry=of_the_process)
    theirs.labels("tiny", "0").set(3)
    async with serve() as service:
        text = (await service.client.get("/metrics")).text
        assert 'vllm:as_its_stat_logger_does{engine="0",model_name="tiny"} 3.0' in text
        assert "process_cpu_seconds_total" not in text, "of the process's registry, only what is vLLM's"


async def test_a_version_is_resident_until_it_is_unloaded(serve: Serve) -> None:
    async with serve(max_loras=1, max_cpu_loras=1) as service:
        await service.predict("mood@1")
        assert await service.metric("hotswap_adapter_resident", adapter="mood", version="1") == 1
        await service.predict("mood@2")
        assert await service.metric("hotswap_adapter_resident", adapter="mood", version="1") == 0
        assert await service.metric("hotswap_adapter_resident", adapter="mood", version="2") == 1
        assert await service.metric("hotswap_adapter_evictions_total", adapter="mood", version="1") >= 1
        assert await service.metric("hotswap_adapter_loads_total", adapter="mood", version="2", outcome="ok") == 1
        assert await service.metric("hotswap_adapter_load_seconds_count", adapter="mood", version="2") == 1


async def test_an_engine_that_dies_leaves_nothing_resident(serve: Serve) -> None:
    async with serve() as service:
        await service.predict("mood@2")
        service.engine.die()
        await until(lambda: service.state.supervisor.phase != "serving")
        await until(lambda: service.state.supervisor.phase == "serving")
        assert await service.metric("hotswap_adapter_resident", adapter="mood", version="2") == 0


async def test_the_batch_is_as_full_as_there_are_texts_in_the_engine(serve: Serve) -> None:
    async with serve(max_concurrency=4) as service:
        service.engine.gate.clear()
        body = {"adapter": "mood", "inputs": ["one", "two", "three"]}
        asked = asyncio.create_task(service.client.post("/v1/predict", json=body))
        await until(lambda: service.engine.active == 3)
        assert await service.metric("hotswap_batch_occupancy") == 0.75
        service.engine.gate.set()
        assert (await asked).status_code == 200
        assert await service.metric("hotswap_batch_occupancy") == 0


def test_an_answers_time_in_the_engine_is_told_apart_by_version() -> None:
    metrics = Metrics()
    metrics.timed(metrics.series("mood", "1"), Timing(queued=1.0, prefill=0.5, decode=0.2, cached_tokens=7), tokens=3)
    metrics.timed(metrics.series("mood", "1"), Timing(queued=0.0, prefill=0.5, decode=0.0), tokens=1)

    def value(name: str) -> float | None:
        return metrics.registry.get_sample_value(name, {"adapter": "mood", "version": "1"})

    assert value("hotswap_first_token_seconds_sum") == 2.0
    assert value("hotswap_prefill_seconds_sum") == 1.0
    assert value("hotswap_decode_seconds_sum") == pytest.approx(0.2)
    assert value("hotswap_inter_token_seconds_sum") == pytest.approx(0.1)
    assert value("hotswap_inter_token_seconds_count") == 1, "one token has no time between tokens"
    assert value("hotswap_cached_prompt_tokens_total") == 7
