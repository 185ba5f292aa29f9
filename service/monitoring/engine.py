"""vLLM's own metrics beside ours, and those by which routers in front of many replicas choose one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from service.serving.admission import Admission
from service.serving.residency import Named

RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"
ADAPTERS, LOADED = "vllm:lora_requests_info", "vllm:lora_adapter_loaded"
KV_CACHE = "vllm:kv_cache_usage_perc"
OURS = (RUNNING, WAITING, ADAPTERS, LOADED)


class EngineCollector(Collector):
    """What vLLM's stat logger has put into the process's registry, but for OURS, which say more when we do:

    - texts wait in our queue, not in vLLM's, so that a router would take a crowded replica for an idle one;
    - vLLM knows the running requests' adapters by names of ours, and leaves a series for every mixture of them that
      there ever was.

    The metrics of the Gateway API's inference extension (its docs/proposals/003-model-server-protocol), and the one
    for each adapter of vllm#54830. Names are those that clients send.
    """

    def __init__(self, admission: Admission, named: Callable[[], list[Named]], most: int, slots: int) -> None:
        """``named`` gives the versions in the engine, the last used first, and those on their way; ``most`` fit, and
        ``slots`` of them where the engine computes: as vLLM does, we take it for the last used ones."""
        self._admission, self._named, self._most, self._slots = admission, named, most, slots

    def collect(self) -> Iterator[Metric]:
        theirs = [each for each in REGISTRY.collect() if each.name.startswith("vllm:") and each.name not in OURS]
        yield from theirs
        if not any(family.name == KV_CACHE for family in theirs):
            yield GaugeMetricFamily(KV_CACHE, "The engine has no cache, or none yet.", value=0)
        yield GaugeMetricFamily(RUNNING, "Texts in the engine.", value=self._admission.running)
        yield GaugeMetricFamily(WAITING, "Texts that wait for the engine.", value=self._admission.waiting)
        yield from self._adapters()

    def _adapters(self) -> Iterator[Metric]:
        named = self._named()
        there = [each for each in named if each.resident]
        info = GaugeMetricFamily(
            ADAPTERS,
            "Adapters in the engine, and those waited for.",
            labels=("max_lora", "running_lora_adapters", "waiting_lora_adapters"),
        )
        coming = [name for each in named if not each.resident for name in each.names]
        running = [name for each in there for name in each.names]
        info.add_metric([str(self._most), ",".join(running), ",".join(coming)], time.time())
        yield info
        loaded = GaugeMetricFamily(
            LOADED, "1 for each adapter in the engine.", labels=("adapter_name", "level", "pinned", "rank")
        )
        for place, each in enumerate(there):
            level = "gpu" if place < self._slots else "cpu"
            for name in each.names:
                loaded.add_metric([name, level, str(each.pinned).lower(), str(each.rank)], 1)
        yield loaded

    def describe(self) -> Iterator[Metric]:
        return iter(())  # names are not known before the engine runs
