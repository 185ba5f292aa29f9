"""Every metric and label of the service, declared here and nowhere else.

The number of label values is bounded: beyond ``CAP`` adapter versions in use, or labels, it is
``other``, so that nobody can fill the memory of the monitoring by inventing names.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.metrics import MetricWrapperBase

from adapters.profile import CONFIDENCE_BOUNDS, TOKEN_BOUNDS
from service.engine.base import Timing

disable_created_metrics()  # type: ignore[no-untyped-call]  # a series for every series, which nobody reads
CAP = 200
# Of two gauges each: what an operator must see is which one of all does not follow.
ADAPTERS_CAP = 5000
# Prometheus has read what nobody used for so long.
UNUSED_SECONDS = 600.0
OTHER = "other"
TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
VERSION = ("adapter", "version")
DRIFT = (*VERSION, "feature", "bin")
# How a gauge is read where several processes answer: their sum or the least of them; of all others the largest, for
# one process alone sets them, or all know the same.
ACROSS = {
    "hotswap_in_flight": "sum",
    "hotswap_waiting": "sum",
    "hotswap_batch_occupancy": "sum",
    "hotswap_answer_cache_bytes": "sum",
    "hotswap_feedback_queue": "sum",
    "hotswap_feedback_database_up": "min",
}
AnyMetric = TypeVar("AnyMetric", bound=MetricWrapperBase)


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._versions = _Bounded(CAP, lambda values: self.forget(*values))
        self._adapters = _Bounded(ADAPTERS_CAP, lambda values: self.forget_adapter(*values))
        self._labels: dict[tuple[str, str], set[str]] = {}
        self._series: dict[tuple[str, str], Series] = {}
        self.forgetting: list[Callable[[str, str], None]] = []  # told whose series are dropped
        self.requests = Counter(
            "hotswap_requests",
            "Requests by what became of them: ok, or the code of the error.",
            ("route", *VERSION, "channel", "outcome"),
            registry=registry,
        )
        self.responses = Counter(
            "hotswap_http_responses",
            "Every response but those to probes, also to what was refused unread: keys, rates, bodies.",
            ("route", "status"),
            registry=registry,
        )
        self.request_seconds = Histogram(
            "hotswap_request_seconds",
            "From the parsed request to its answer.",
            ("route", *VERSION),
            buckets=SECONDS,
            registry=registry,
        )
        self.queue_seconds = Histogram(
            "hotswap_queue_seconds", "Wait of a text for its turn in the engine.", buckets=SECONDS, registry=registry
        )
        self.engine_seconds = Histogram(
            "hotswap_engine_seconds", "One text in the engine.", VERSION, buckets=SECONDS, registry=registry
        )
        self.prefill_seconds = Histogram(
            "hotswap_prefill_seconds",
            "From a text's first step in the engine to its first token.",
            VERSION,
            buckets=SECONDS,
            registry=registry,
        )
        self.decode_seconds = Histogram(
            "hotswap_decode_seconds",
            "From a text's first token to its last one.",
            VERSION,
            buckets=SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "hotswap_first_token_seconds",
            "From a text's turn to its first token.",
            VERSION,
            buckets=SECONDS,
            registry=registry,
        )
        self.inter_token_seconds = Histogram(
            "hotswap_inter_token_seconds",
            "Mean time between the tokens of an answer of two or more.",
            VERSION,
            buckets=TOKEN_SECONDS,
            registry=registry,
        )
        self.cached_tokens = Counter(
            "hotswap_cached_prompt_tokens",
            "Tokens in that were not computed again: the prompt's beginning was known.",
            VERSION,
            registry=registry,
        )
        self.answer_cache_lookups = Counter(
            "hotswap_answer_cache_lookups",
            "Texts looked up in the answer cache: hit, or miss and then answered by the engine.",
            (*VERSION, "outcome"),
            registry=registry,
        )
        self.answer_cache_bytes = Gauge(
            "hotswap_answer_cache_bytes", "Memory that the answer cache takes, by estimate.", registry=registry
        )
        self.prompt_tokens = Counter("hotswap_prompt_tokens", "Tokens in.", VERSION, registry=registry)
        self.completion_tokens = Counter("hotswap_completion_tokens", "Tokens out.", VERSION, registry=registry)
        self.input_tokens = Histogram(
            "hotswap_input_tokens", "Length of a text before cutting.", VERSION, buckets=TOKEN_BOUNDS, registry=registry
        )
        self.truncated = Counter("hotswap_truncated_inputs", "Texts that were cut to fit.", VERSION, registry=registry)
        self.predictions = Counter(
            "hotswap_predictions", "Classifications by answer.", (*VERSION, "label"), registry=registry
        )
        self.confidence = Histogram(
            "hotswap_prediction_confidence",
            "Score of the chosen label.",
            VERSION,
            buckets=CONFIDENCE_BOUNDS,
            registry=registry,
        )
        self.drift_bin = Counter(
            "hotswap_drift_bin", "Answered texts by bin of each feature.", DRIFT, registry=registry
        )
        self.drift_reference_share = Gauge(
            "hotswap_drift_reference_share", "Share of the held-out rows in each bin.", DRIFT, registry=registry
        )
        self.drift_reference_rows = Gauge(
            "hotswap_drift_reference_rows", "Held-out rows behind the reference.", VERSION, registry=registry
        )
        self.drift_evidence = Gauge(
            "hotswap_drift_evidence",
            "1 and more: the answers are not those of the reference. A sequential test, of this replica's answers.",
            (*VERSION, "feature"),
            registry=registry,
        )
        self.feedback = Counter(
            "hotswap_feedback", "Answers that someone judged.", (*VERSION, "outcome"), registry=registry
        )
        self.feedback_writes = Counter(
            "hotswap_feedback_writes",
            "Predictions and judgements on their way to the database: written, shed for want of room, or failed.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("written", "shed", "failed"):
            self.feedback_writes.labels(outcome)
        self.feedback_queue = Gauge(
            "hotswap_feedback_queue", "Predictions and judgements that wait to be written.", registry=registry
        )
        self.feedback_database_up = Gauge(
            "hotswap_feedback_database_up", "1 while the feedback database takes what is written.", registry=registry
        )
        self.shadow = Counter(
            "hotswap_shadow",
            "Copied texts by what the shadow made of them: agree, differ, failed, or shed for want of time.",
            (*VERSION, "outcome"),
            registry=registry,
        )
        self.refused_tokens = Counter(
            "hotswap_refused_tokens", "Estimated tokens of what was refused as too much.", registry=registry
        )
        self.in_flight = Gauge("hotswap_in_flight", "Texts in the engine now.", registry=registry)
        self.waiting = Gauge("hotswap_waiting", "Texts that wait for the engine now.", registry=registry)
        self.adapters = Gauge("hotswap_adapters", "Adapter versions by state.", ("state",), registry=registry)
        self.load_seconds = Histogram(
            "hotswap_adapter_load_seconds",
            "Fetch, verify, lint and load of a version.",
            VERSION,
            buckets=SECONDS,
            registry=registry,
        )
        self.probe_seconds = Histogram(
            "hotswap_probe_seconds",
            "Asking a loaded version before it is served.",
            buckets=SECONDS,
            registry=registry,
        )
        self.loads = Counter("hotswap_adapter_loads", "Loads by outcome.", (*VERSION, "outcome"), registry=registry)
        self.evictions = Counter(
            "hotswap_adapter_evictions", "Times that it was unloaded to make room.", VERSION, registry=registry
        )
        self.resident = Gauge("hotswap_adapter_resident", "1 while it is in the engine.", VERSION, registry=registry)
        self.batch_occupancy = Gauge(
            "hotswap_batch_occupancy",
            "Texts in the engine, of those that it takes at once (HOTSWAP_MAX_CONCURRENCY).",
            registry=registry,
        )
        self.jobs = Gauge(
            "hotswap_jobs",
            "Fine-tuning jobs in the queue's database, by state: every replica shows all of them.",
            ("state",),
            registry=registry,
        )
        self.jobs_seconds = Gauge(
            "hotswap_jobs_seconds",
            "What those that ended took together, from being asked for on.",
            ("state",),
            registry=registry,
        )
        self.jobs_waited = Gauge(
            "hotswap_jobs_oldest_queued_seconds", "How long the oldest queued job has waited.", registry=registry
        )
        self.swap_seconds = Histogram(
            "hotswap_swap_seconds",
            "From seeing a release to serving it.",
            buckets=SECONDS,
            registry=registry,
        )
        self.store_generation = Gauge(
            "hotswap_store_generation", "Newest release in the store.", ("adapter",), registry=registry
        )
        self.served_generation = Gauge(
            "hotswap_served_generation", "Release that is being served.", ("adapter",), registry=registry
        )
        self.adapters_behind = Gauge(
            "hotswap_adapters_behind", "Adapters whose newest release is not served here yet.", registry=registry
        )
        self.store_errors = Counter("hotswap_store_errors", "Store reads that failed.", registry=registry)
        self.engine_restarts = Counter(
            "hotswap_engine_restarts", "Engines that died and were replaced.", registry=registry
        )
        self.ready = Gauge("hotswap_ready", "1 while this replica answers requests.", registry=registry)

    def version(self, name: str, version: str) -> tuple[str, str]:
        """Return the labels of an adapter's version: its own, or ``other`` while the last ``CAP`` are all in use."""
        return self._versions.take((name, version)) or (OTHER, OTHER)

    def series(self, name: str, version: str) -> Series:
        """Return the series of an adapter's version, for now: they may be dropped at any ``await``."""
        labels = self.version(name, version)
        if labels not in self._series:
            self._series[labels] = Series(*labels)
        return self._series[labels]

    def unasked(self, name: str, version: str) -> tuple[str, str]:
        """Return the labels of a version that nobody asked for yet: half of the places are for those that answer."""
        if (name, version) not in self._versions and len(self._versions) >= CAP // 2:
            return OTHER, OTHER
        return self.version(name, version)

    def moved(self, name: str, version: str, *, resident: bool) -> None:
        """Note that a version came into the engine, or left it; one that is forgotten already has left."""
        if resident and self.unasked(name, version) == (OTHER, OTHER):
            return  # one number cannot stand for many
        if (name, version) in self._versions:
            self.resident.labels(name, version).set(resident)
            self.evictions.labels(name, version)  # a rate begins at 0

    def label(self, name: str, version: str, label: str) -> str:
        """Return the label value of a version's answer ``label``."""
        labels = self._labels.setdefault((name, version), set())
        if label not in labels and len(labels) >= CAP:
            return OTHER
        labels.add(label)
        return label

    def timed(self, series: Series, timing: Timing, tokens: int) -> None:
        """Write what the engine measured of an answer of so many tokens."""
        series.of(self.prefill_seconds).observe(timing.prefill)
        series.of(self.decode_seconds).observe(timing.decode)
        series.of(self.first_token_seconds).observe(timing.queued + timing.prefill)
        series.of(self.cached_tokens).inc(timing.cached_tokens)
        if tokens > 1:
            series.of(self.inter_token_seconds).observe(timing.decode / (tokens - 1))

    def generation(self, gauge: Gauge, name: str, generation: int) -> None:
        """Set one adapter's generation; those beyond the cap have none, for one number cannot stand for many."""
        if labels := self._adapters.take((name,)):
            gauge.labels(*labels).set(generation)

    def forget(self, name: str, version: str) -> None:
        """Drop the series of a version that is not served any more."""
        self._versions.drop((name, version))
        self._remove({"adapter": name, "version": version})
        for told in self.forgetting:
            told(name, version)

    def forget_adapter(self, name: str) -> None:
        """Drop the series of an adapter that is not in the store any more."""
        self._adapters.drop((name,))
        for version in [version for adapter, version in self._versions if adapter == name]:
            self.forget(name, version)
        for gauge in (self.store_generation, self.served_generation):
            gauge.remove_by_labels({"adapter": name})

    def _remove(self, labels: dict[str, str]) -> None:
        self._labels.pop((labels["adapter"], labels["version"]), None)
        self._series.pop((labels["adapter"], labels["version"]), None)
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase) and set(labels) <= set(metric._labelnames):
                metric.remove_by_labels(labels)


class Series:
    """One version's series, each looked up once: that takes longer than to count."""

    def __init__(self, adapter: str, version: str) -> None:
        self.labels = adapter, version
        self._found: dict[tuple[object, ...], Any] = {}

    def of(self, metric: AnyMetric, **more: str) -> AnyMetric:
        """Return the version's own series of ``metric``, with ``more`` labels."""
        key = metric, *more.values()
        found: AnyMetric | None = self._found.get(key)
        if found is None:
            adapter, version = self.labels
            found = self._found[key] = metric.labels(adapter=adapter, version=version, **more)
        return found


class _Bounded:
    """Label values, at most so many: a new one takes the place of one that was not used for long, if there is one."""

    def __init__(self, most: int, dropped: Callable[[tuple[str, ...]], None]) -> None:
        self._most, self._dropped = most, dropped
        self._used: OrderedDict[tuple[str, ...], float] = OrderedDict()

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        return iter(self._used)

    def __len__(self) -> int:
        return len(self._used)

    def __contains__(self, values: tuple[str, ...]) -> bool:
        return values in self._used

    def take(self, values: tuple[str, ...]) -> Any:
        """Return ``values``, or None where there is no room for them."""
        now = time.monotonic()
        if values not in self._used and len(self._used) >= self._most:
            oldest, used = next(iter(self._used.items()))
            if now - used < UNUSED_SECONDS:
                return None
            self._dropped(oldest)
        self._used[values] = now
        self._used.move_to_end(values)
        return values

    def drop(self, values: tuple[str, ...]) -> None:
        self._used.pop(values, None)
