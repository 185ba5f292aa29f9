"""vLLM's own metrics beside ours, and the adapters in the engine as routers in front of many replicas look for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client import REGISTRY
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

ADAPTERS = "vllm:lora_requests_info"


class EngineCollector(Collector):
    """What vLLM's stat logger has put into the process's registry, but for ADAPTERS: vLLM knows the running requests'
    adapters by names of ours, and leaves a series for every mixture of them that there ever was.

    The Gateway API's inference extension sends a request to a replica that has its adapter, by these labels.
    """

    def __init__(self, named: Callable[[], tuple[list[str], list[str]]] | None, most: int) -> None:
        """``named`` gives what clients call the versions in the engine and those on their way; ``most`` fit. None: that
        is for another process to say."""
        self._named, self._most = named, most

    def collect(self) -> Iterator[Metric]:
        yield from (
            family for family in REGISTRY.collect() if family.name.startswith("vllm:") and family.name != ADAPTERS
        )
        if self._named is None:
            return
        there, coming = self._named()
        labels = ("max_lora", "running_lora_adapters", "waiting_lora_adapters")
        family = GaugeMetricFamily(ADAPTERS, "Adapters in the engine, and those waited for.", labels=labels)
        family.add_metric([str(self._most), ",".join(there), ",".join(coming)], time.time())
        yield family

    def describe(self) -> Iterator[Metric]:
        return iter(())  # names are not known before the engine runs
