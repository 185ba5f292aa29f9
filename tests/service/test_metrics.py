"""Label values are bounded, and what is not served any more has none."""

from __future__ import annotations

import re

import pytest
from prometheus_client.metrics import MetricWrapperBase

from service import metrics as module
from service.metrics import CAP, OTHER, Metrics


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def series(metrics: Metrics, name: str) -> set[str]:
    """Return the values of the label ``adapter`` of a metric's series."""
    (family,) = [family for family in metrics.registry.collect() if family.name == name]
    return {sample.labels["adapter"] for sample in family.samples}


def test_a_version_has_as_many_labels_as_the_cap_and_then_other() -> None:
    metrics = Metrics()
    labels = [metrics.label("mood", "1", f"label-{n}") for n in range(CAP + 5)]
    assert labels == [f"label-{n}" for n in range(CAP)] + [OTHER] * 5
    assert metrics.label("mood", "1", "label-0") == "label-0"
    assert metrics.label("mood", "2", "label-x") == "label-x"
    metrics.forget("mood", "1")
    assert metrics.label("mood", "1", "label-x") == "label-x"


def test_beyond_the_cap_a_new_version_takes_the_place_of_one_unused_for_long(clock: Clock) -> None:
    metrics = Metrics()
    for n in range(CAP):
        metrics.requests.labels("predict", *metrics.version(f"a{n}", "1"), "stable", "ok").inc()
        clock.now += 1
    assert metrics.version("new", "1") == (OTHER, OTHER)
    assert metrics.version("a1", "1") == ("a1", "1")
    clock.now = module.UNUSED_SECONDS
    assert metrics.version("new", "1") == ("new", "1")  # in the place of a0, not of a1, which was used since
    assert series(metrics, "hotswap_requests") == {f"a{n}" for n in range(1, CAP)}
    assert metrics.version("a1", "1") == ("a1", "1")


def test_an_adapter_that_is_gone_takes_all_its_series_along_and_leaves_the_others() -> None:
    metrics = Metrics()
    for name in ("mood", "brief"):
        for version in ("1", "2"):
            metrics.prompt_tokens.labels(*metrics.version(name, version)).inc()
        for gauge in (metrics.store_generation, metrics.served_generation):
            metrics.generation(gauge, name, 3)
    metrics.forget_adapter("mood")
    for name in ("hotswap_prompt_tokens", "hotswap_store_generation", "hotswap_served_generation"):
        assert series(metrics, name) == {"brief"}


def test_a_generation_beyond_the_cap_is_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADAPTERS_CAP", 2)
    metrics = Metrics()
    for number, name in enumerate(("a", "b", "c"), start=1):
        metrics.generation(metrics.store_generation, name, number)
    assert series(metrics, "hotswap_store_generation") == {"a", "b"}
    assert metrics.registry.get_sample_value("hotswap_store_generation", {"adapter": "b"}) == 2


def test_every_metric_is_exposed() -> None:
    metrics = Metrics()
    declared = {metric._name for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)}
    assert all(re.fullmatch("hotswap_[a-z_]+", name) for name in declared)
    assert declared == {family.name for family in metrics.registry.collect()}
