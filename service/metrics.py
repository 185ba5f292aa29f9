"""Every metric and label of the service, declared here and nowhere else.

The number of label values is bounded: beyond ``CAP`` distinct adapter versions, or labels, it is
``other``, so that nobody can fill the memory of the monitoring by inventing names.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from adapters.manifest import CONFIDENCE_BOUNDS, TOKEN_BOUNDS

CAP = 200
OTHER = "other"
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
VERSION = ("adapter", "version")


class Metrics:
    """The service's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._seen: dict[str, set[tuple[str, ...]]] = {}
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
        self.feedback = Counter(
            "hotswap_feedback", "Answers that someone judged.", (*VERSION, "outcome"), registry=registry
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
            buckets=SECONDS,
            registry=registry,
        )
        self.probe_seconds = Histogram(
            "hotswap_probe_seconds",
            "Asking a loaded version before it is served.",
            buckets=SECONDS,
            registry=registry,
        )
        self.loads = Counter("hotswap_adapter_loads", "Loads by outcome.", ("outcome",), registry=registry)
        self.evictions = Counter("hotswap_adapter_evictions", "Versions unloaded to make room.", registry=registry)
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
        self.store_errors = Counter("hotswap_store_errors", "Store reads that failed.", registry=registry)
        self.engine_restarts = Counter(
            "hotswap_engine_restarts", "Engines that died and were replaced.", registry=registry
        )
        self.ready = Gauge("hotswap_ready", "1 while this replica answers requests.", registry=registry)

    def bounded(self, what: str, *values: str) -> tuple[str, ...]:
        """Return ``values``, or ``other`` for each once ``what`` has had ``CAP`` different ones."""
        seen = self._seen.setdefault(what, set())
        if values not in seen:
            if len(seen) >= CAP:
                return (OTHER,) * len(values)
            seen.add(values)
        return values
