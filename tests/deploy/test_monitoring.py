"""Metrics, rules and dashboards name each other rightly, and whoever is alerted finds what to do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from promql_parser import VectorSelector

from scripts.metrics import PAGE, page
from service.errors import ServiceError
from tests.monitoring import (
    ALERTS,
    METRICS,
    OWN_LABELS,
    OWN_SERIES,
    QUERIES,
    RECORDED,
    ROOT,
    RULES,
    exposed,
    grouped_by,
    nodes,
    selectors,
    series,
)

USED = [rule["expr"] for rule in RULES] + QUERIES
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
GUIDE = (ROOT / "docs" / "monitoring.md").read_text()
NAMES = sorted({alert["alert"] for alert in ALERTS})
WRITES = {"inc", "dec", "set", "observe", "set_function", "labels"}


def test_the_page_of_metrics_is_what_make_docs_writes() -> None:
    assert PAGE.read_text() == page(), "make docs"


def written(tree: ast.AST) -> Iterator[str]:
    """Yield the attributes ``metrics.NAME`` that are written to, or handed to a function that does."""
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        target = call.func if isinstance(call.func, ast.Attribute) and call.func.attr in WRITES else None
        for part in [target, *call.args]:
            for node in ast.walk(part) if part is not None else ():
                if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(("metrics", "self")):
                    yield node.attr


def test_every_declared_metric_is_written_somewhere() -> None:
    found = {name for file in Path("service").rglob("*.py") for name in written(ast.parse(file.read_text()))}
    assert METRICS.keys() - found == set()


@pytest.mark.parametrize("expression", USED)
def test_every_series_and_label_used_is_one_that_the_service_shows_or_a_rule_records(expression: str) -> None:
    assert series(expression) <= exposed().keys() | RECORDED | OWN_SERIES.keys()
    for selector in selectors(expression):
        if selector.name in exposed():
            assert {matcher.name for matcher in selector.matchers.matchers} <= exposed()[selector.name] | OWN_LABELS


@pytest.mark.parametrize("expression", USED)
def test_what_is_summed_up_by_a_label_has_it(expression: str) -> None:
    set_by_rules = {label for rule in RULES for label in rule.get("labels", {})}
    if (names := series(expression)) and names <= exposed().keys():
        assert grouped_by(expression) <= set.union(*(exposed()[name] for name in names)) | OWN_LABELS
    labels = set.union(*exposed().values(), *OWN_SERIES.values()) | OWN_LABELS | set_by_rules
    assert grouped_by(expression) <= labels
    assert {matcher.name for selector in selectors(expression) for matcher in selector.matchers.matchers} <= labels


def test_every_bound_asked_for_is_one_of_the_histogram_s_buckets() -> None:
    for expression in USED:
        for selector in selectors(expression):
            for matcher in selector.matchers.matchers:
                if matcher.name == "le":
                    (metric,) = [m for m in METRICS.values() if f"{m._name}_bucket" == selector.name]
                    assert float(matcher.value) in metric._upper_bounds


def test_every_metric_of_the_service_is_on_a_dashboard_or_in_a_rule() -> None:
    used = {name for expression in USED for name in series(expression)}
    families = {family.name for metric in METRICS.values() for family in metric.describe()}
    assert not {family for family in families if not any(name.startswith(family) for name in used)}


def test_every_recorded_series_is_used() -> None:
    used = {name for expression in USED for name in series(expression)}
    assert used >= RECORDED


def test_failures_are_exactly_those_that_are_the_service_s_own() -> None:
    errors: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
    own = {error.code for error in errors if error.status >= 500}
    assert outcomes("hotswap:failures:rate5m") == own
    assert outcomes("hotswap:valid:rate5m") == own | {"ok"}


def outcomes(record: str) -> set[str]:
    (rule,) = [rule for rule in RULES if rule.get("record") == record]
    return {
        code
        for node in nodes(rule["expr"])
        if isinstance(node, VectorSelector)
        for matcher in node.matchers.matchers
        if matcher.name == "outcome"
        for code in matcher.value.split("|")
    }


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_is_wrong_how_bad_what_to_do_and_where_that_is_explained(alert: dict) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"]["summary"]
    assert alert["annotations"]["action"]
    assert alert["annotations"]["runbook_url"] == f"docs/runbook.md#{alert['alert'].lower()}"
    assert alert["for"] not in {"", "0m", "0s"}, "one bad minute is no reason to call anyone"


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_has_its_section_in_the_runbook_and_its_line_in_the_guide(name: str) -> None:
    section = re.search(rf"^## {name}\n(.+?)(?=^## |\Z)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert section is not None
    for part in ("**Means**", "**Look at**", "**Do**"):
        assert part in section[1]
    assert f"| `{name}`" in GUIDE


def test_the_runbook_explains_no_alert_that_is_gone() -> None:
    assert sorted(re.findall(r"^## (Hotswap\w+)$", RUNBOOK, re.MULTILINE)) == NAMES
