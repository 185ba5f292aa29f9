"""One scrape of several processes: what each has counted, added up."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from service.metrics import ACROSS
from service.monitoring.engine import RUNNING, WAITING

COUNTED = ("counter", "histogram", "summary")
Key = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True)
class Told:
    """One process's metrics. ``measured``: when it was last told the engine's own gauges."""

    measured: float
    families: list[Metric]

    @classmethod
    def of(cls, measured: float, registry: CollectorRegistry) -> Told:
        return cls(measured, list(registry.collect()))


def merged(all_told: Sequence[Told]) -> list[Metric]:
    """Return the metrics of all processes, the owner's first, as one process would have written them."""
    families: dict[str, tuple[Metric, dict[Key, Sample]]] = {}
    # The engine tells one process at a time how it is: the last one knows.
    for told in sorted(all_told, key=lambda told: told.measured):
        for family in told.families:
            empty = Metric(family.name, family.documentation, family.type, family.unit)
            _, samples = families.setdefault(family.name, (empty, {}))
            combine = _rule(family)
            for sample in family.samples:
                key = sample.name, tuple(sorted(sample.labels.items()))
                known = samples.get(key)
                samples[key] = sample if known is None else _together(known, sample, combine)
    for family, samples in families.values():
        family.samples = list(samples.values())
    return [family for family, _ in families.values()]


def counted(told: Sequence[Told]) -> Told:
    """Return what stays of processes that are gone: counts go on, what was true of a process does not."""
    return Told(0.0, [family for family in merged(told) if family.type in COUNTED])


def without(told: Told, adapter: str, version: str) -> Told:
    """Return the metrics without one version's series."""
    for family in told.families:
        family.samples = [
            sample
            for sample in family.samples
            if (sample.labels.get("adapter"), sample.labels.get("version")) != (adapter, version)
        ]
    return told


class Scraped(Collector):
    """Metrics that were asked of all processes."""

    def __init__(self, families: Callable[[], Iterable[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families()

    def describe(self) -> Iterator[Metric]:
        return iter(())


def registry(families: Iterable[Metric] | Callable[[], Iterable[Metric]]) -> CollectorRegistry:
    """Return a registry that shows ``families``, or what they return when it is asked."""
    made = CollectorRegistry()
    made.register(Scraped(families if callable(families) else lambda: families))
    return made


def _rule(family: Metric) -> Callable[[float, float], float]:
    if family.type in COUNTED or family.name in (RUNNING, WAITING):
        return _add
    if family.name.startswith("vllm:"):
        return _last
    return RULES[ACROSS.get(family.name, "max")]


def _together(one: Sample, other: Sample, combine: Callable[[float, float], float]) -> Sample:
    return one._replace(value=combine(one.value, other.value), exemplar=other.exemplar or one.exemplar)


def _add(one: float, other: float) -> float:
    return one + other


def _least(one: float, other: float) -> float:
    return min(one, other)


def _most(one: float, other: float) -> float:
    return max(one, other)


def _last(_: float, other: float) -> float:
    return other


RULES = {"sum": _add, "min": _least, "max": _most}
