"""Rules and dashboard: valid, and about metrics that the service really has."""

from __future__ import annotations

import json
import shutil
import subprocess
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase
from promql_parser import AggregateExpr, Expr, VectorSelector, parse, walk

from service.errors import ServiceError
from service.metrics import Metrics

HERE = Path(__file__).parent
MONITORING = HERE.parents[1] / "k8s" / "monitoring"
RULES = [rule for group in yaml.safe_load((MONITORING / "rules.yaml").read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
METRICS = [metric for metric in vars(Metrics()).values() if isinstance(metric, MetricWrapperBase)]
SERIES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
EXPOSED = {family.name + suffix for metric in METRICS for family in metric.describe() for suffix in SERIES[family.type]}
# "instance" and "le" are Prometheus' own.
LABELS = {label for metric in METRICS for label in metric._labelnames} | {"instance", "le"}
USED = [rule["expr"] for rule in RULES] + [target["expr"] for panel in PANELS for target in panel["targets"]]


def nodes(expression: str) -> list[Expr]:
    """Return the parts of a PromQL expression. Raises ValueError where it is none."""
    found: list[Expr] = []
    walk(parse(expression.replace("$__rate_interval", "5m")), found.append)
    return found


def series(expression: str) -> set[str]:
    return {node.name or "" for node in nodes(expression) if isinstance(node, VectorSelector)}


@pytest.mark.parametrize("expression", USED)
def test_every_series_used_is_exposed_by_the_service_or_recorded_by_a_rule(expression: str) -> None:
    assert series(expression) <= EXPOSED | RECORDED


@pytest.mark.parametrize("expression", USED)
def test_every_label_used_is_one_that_the_service_sets(expression: str) -> None:
    used: set[str] = set()
    for node in nodes(expression):
        if isinstance(node, VectorSelector):
            used |= {matcher.name for matcher in node.matchers.matchers}
        elif isinstance(node, AggregateExpr) and node.modifier:
            used |= set(node.modifier.labels)
    assert used <= LABELS


def test_every_metric_of_the_service_is_on_the_dashboard_or_in_a_rule() -> None:
    used = {name for expression in USED for name in series(expression)}
    families = {family.name for metric in METRICS for family in metric.describe()}
    assert not {family for family in families if not any(name.startswith(family) for name in used)}


def test_every_recorded_series_is_used() -> None:
    used = {name for expression in USED for name in series(expression)}
    assert used >= RECORDED


def test_the_error_ratio_counts_exactly_the_failures_that_are_the_service_s_own() -> None:
    errors: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
    own = {error.code for error in errors if error.status >= 500}
    (rule,) = [rule for rule in RULES if rule.get("record") == "hotswap:errors:ratio5m"]
    counted = {
        code
        for node in nodes(rule["expr"])
        if isinstance(node, VectorSelector)
        for matcher in node.matchers.matchers
        if matcher.name == "outcome"
        for code in matcher.value.split("|")
    }
    assert counted == own


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_is_wrong_how_bad_and_what_to_do(alert: dict) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["runbook"]
    assert alert["for"]


def promtool(*arguments: str | Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed (Debian package: prometheus)")
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules() -> None:
    assert f"{len(RULES)} rules found" in promtool("check", "rules", MONITORING / "rules.yaml")


def test_the_rules_compute_and_the_alerts_fire_as_intended() -> None:
    assert "SUCCESS" in promtool("test", "rules", HERE / "rules_test.yaml")


def test_grafana_11_can_read_the_dashboard() -> None:
    assert DASHBOARD["schemaVersion"] >= 39
    assert DASHBOARD["uid"]
    assert DASHBOARD["templating"]["list"][0]["type"] == "datasource"
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows_in_which_unit_and_from_the_chosen_source(panel: dict) -> None:
    assert panel["title"]
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


def test_no_two_panels_overlap_and_none_leaves_the_grid() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)
