"""The rules by promtool, Prometheus' own test of rules: when each alert fires and when not, and what is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy.spatial.distance import jensenshannon
from scipy.stats import chi2
from statsmodels.stats.proportion import proportion_confint

from tests.monitoring import ALERTS, GROUPS, MONITORING, RULE_FILES, run, selectors

SITUATIONS = sorted((Path(__file__).parent / "rules").glob("*.yaml"))
MODELS = MONITORING / "rules" / "models.yaml"
MINUTES = {"1h": 60, "6h": 360, "1d": 1440}


def test_promtool_accepts_the_rules() -> None:
    assert "SUCCESS" in run("promtool", "check", "rules", *RULE_FILES)


@pytest.mark.parametrize("file", SITUATIONS, ids=lambda file: file.stem)
def test_alerts_fire_and_stay_silent_as_each_situation_says(file: Path) -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", file)


@pytest.mark.parametrize("name", sorted({alert["alert"] for alert in ALERTS}))
def test_every_alert_is_seen_firing_and_silent(name: str) -> None:
    samples = [
        bool(asked["exp_samples"])
        for file in SITUATIONS
        for situation in yaml.safe_load(file.read_text())["tests"]
        for asked in situation.get("promql_expr_test", ())
        for selector in selectors(asked["expr"])
        for matcher in selector.matchers.matchers
        if matcher.name == "alertname" and matcher.value == name
    ]
    assert set(samples) == {True, False}


def test_sums_that_count_by_the_minute_are_evaluated_every_minute() -> None:
    assert {group["interval"] for group in GROUPS} == {"1m"}


def computed(folder: Path, series: dict[str, str], expected: dict[str, float], at: str) -> None:
    """Have promtool find ``expected`` in what models.yaml makes of ``series``.

    To 0.4 %: a range holds both of its ends before Prometheus 3, and one of them since.
    """
    asked = [
        {"expr": f"abs({name} - {value}) < bool {1e-6 + 0.004 * value}", "eval_time": at}
        | {"exp_samples": [{"labels": "{" + name.partition("{")[2], "value": 1}]}
        for name, value in expected.items()
    ]
    given = [{"series": name, "values": values} for name, values in series.items()]
    test = {"interval": "1m", "input_series": given, "promql_expr_test": asked}
    file = folder / "test.yaml"
    file.write_text(yaml.safe_dump({"rule_files": [str(MODELS)], "evaluation_interval": "1m", "tests": [test]}))
    run("promtool", "test", "rules", file)


def smooth(counts: Sequence[float]) -> np.ndarray:
    return (np.array(counts) + 0.5) / (sum(counts) + 0.5 * len(counts))


def drift(live: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """Return PSI, Jensen-Shannon divergence in bits, and the threshold of PSI."""
    p, q, rows = smooth(live), smooth(reference), 1 / sum(live) + 1 / sum(reference)
    psi = float(np.sum((p - q) * np.log(p / q)))
    freedom = len(live) - 1
    cube = (1 - 2 / (9 * freedom) + 4.7534 * np.sqrt(2 / (9 * freedom))) ** 3
    return psi, float(jensenshannon(p, q, 2) ** 2), max(float(freedom * cube * rows), 0.1)


# Answers a minute on each of two replicas, and rows of the reference, by bin.
CASES = {
    "the same": ([3, 5, 2], [300, 500, 200]),
    "another mix": ([9, 1, 2], [300, 500, 200]),
    "empty bins on both sides": ([1, 0, 0, 4, 0, 2, 0, 1], [40, 0, 10, 120, 30, 0, 25, 15]),
    "two bins": ([1, 1], [99, 1]),
}


def test_psi_and_js_over_two_replicas_are_those_of_numpy_and_scipy(tmp_path: Path) -> None:
    given, expected = {}, {}
    for adapter, (a_minute, reference) in CASES.items():
        version = f'adapter="{adapter}",version="1"'
        given[f'hotswap_drift_reference_rows{{{version},instance="a"}}'] = f"{sum(reference)}x1510"
        for number, (live, rows) in enumerate(zip(a_minute, reference, strict=True)):
            of_bin = f'{version},feature="input_tokens",bin="{number}"'
            for replica in ("a", "b"):
                given[f'hotswap_drift_bin_total{{{of_bin},instance="{replica}"}}'] = f"0+{live}x1510"
                share = f"{rows / sum(reference)}x1510"
                given[f'hotswap_drift_reference_share{{{of_bin},instance="{replica}"}}'] = share
        for window, minutes in MINUTES.items():
            psi, js, threshold = drift([2 * live * minutes for live in a_minute], reference)
            values = {"psi": psi, "js": js, "psi_threshold": threshold, "rows": 2 * sum(a_minute) * minutes}
            of_window = f'{{{version},feature="input_tokens",window="{window}"}}'
            expected |= {f"hotswap:drift:{name}{of_window}": value for name, value in values.items()}
    computed(tmp_path, given, expected, "1505m")


def test_without_drift_psi_exceeds_its_threshold_as_often_as_was_promised() -> None:
    """Once in a million by the approximation; with few rows in the reference, at most some times in 100,000."""
    dice = np.random.default_rng(0)
    for shares in ([0.5, 0.5], [0.95, 0.05], [0.125] * 8, [0.01, 0.02, 0.03, 0.04, 0.1, 0.1, 0.2, 0.5]):
        for rows in (100, 400):
            for live in (5 * len(shares), 1000):
                p = dice.multinomial(live, shares, 50_000) + 0.5
                q = dice.multinomial(rows, shares, 50_000) + 0.5
                p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
                threshold = drift([live / len(shares)] * len(shares), [rows / len(shares)] * len(shares))[2]
                assert np.mean(np.sum((p - q) * np.log(p / q), 1) > threshold) <= 1e-4


def test_the_cube_root_is_near_the_quantile_of_chi_squared() -> None:
    for bins in (3, 5, 10, 30):
        threshold = drift([1] * bins, [1] * bins)[2] / (2 / bins)
        assert 1 <= threshold / chi2.isf(1e-6, bins - 1) < 1.1


def test_the_interval_of_realized_accuracy_is_wilson_s(tmp_path: Path) -> None:
    given, expected = {}, {}
    for right, wrong in ((9, 1), (1, 0), (1, 3)):
        version = f'adapter="{right} of {right + wrong}",version="1"'
        given[f'hotswap_feedback_total{{{version},outcome="right"}}'] = f"0+{right}x1510"
        given[f'hotswap_feedback_total{{{version},outcome="wrong"}}'] = f"0+{wrong}x1510"
        given[f"hotswap_prediction_confidence_sum{{{version}}}"] = "0+7x1510"
        given[f"hotswap_prediction_confidence_count{{{version}}}"] = "0+10x1510"
        judged = 1440 * (right + wrong)
        low, high = proportion_confint(1440 * right, judged, alpha=0.001, method="wilson")
        expected |= {
            f"hotswap:feedback:judged{{{version}}}": judged,
            f"hotswap:accuracy:realized{{{version}}}": right / (right + wrong),
            f"hotswap:accuracy:realized_low{{{version}}}": low,
            f"hotswap:accuracy:realized_high{{{version}}}": high,
            f'hotswap:accuracy:estimated{{{version},window="1d"}}': 0.7,
        }
    computed(tmp_path, given, expected, "1505m")
