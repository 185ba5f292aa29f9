"""What k8s/monitoring holds, and the programs that read it."""

from __future__ import annotations

import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from promql_parser import AggregateExpr, Expr, VectorSelector, parse, walk

from loadtests.dashboards import expressions
from scripts.metrics import declared
from service.metrics import Metrics

ROOT = Path(__file__).parents[1]
MONITORING = ROOT / "k8s" / "monitoring"
RULE_FILES = sorted((MONITORING / "rules").glob("*.yaml"))
GROUPS = [group for file in RULE_FILES for group in yaml.safe_load(file.read_text())["groups"]]
RULES: list[dict[str, Any]] = [rule for group in GROUPS for rule in group["rules"]]
ALERTS = [rule for rule in RULES if "alert" in rule]
RECORDED = {rule["record"] for rule in RULES if "record" in rule}
BOARDS = {file.stem: json.loads(file.read_text()) for file in sorted((MONITORING / "dashboards").glob("*.json"))}
PANELS = [panel for board in BOARDS.values() for panel in board["panels"]]
QUERIES = [expression for board in BOARDS.values() for _, expression in expressions(board)]
METRICS = declared(Metrics())
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# What Prometheus itself adds, to every series and to those of a firing alert.
OWN_LABELS, OWN_SERIES = {"instance", "job"}, {"ALERTS": {"alertname", "alertstate", "severity"}}


@cache
def exposed() -> dict[str, set[str]]:
    """Return the labels of every series that the service shows."""
    found = {}
    for metric in METRICS.values():
        (family,) = metric.describe()
        for suffix in SUFFIXES[family.type]:
            found[family.name + suffix] = set(metric._labelnames) | ({"le"} if suffix == "_bucket" else set())
    return found


def nodes(expression: str) -> list[Expr]:
    """Return the parts of a PromQL expression, whatever values variables have. Raises ValueError where it is none."""
    found: list[Expr] = []
    walk(parse(expression.replace("$__rate_interval", "5m")), found.append)
    return found


def selectors(expression: str) -> list[VectorSelector]:
    return [node for node in nodes(expression) if isinstance(node, VectorSelector)]


def series(expression: str) -> set[str]:
    return {node.name or "" for node in selectors(expression)}


def grouped_by(expression: str) -> set[str]:
    """Return the labels that the expression's aggregations keep."""
    found = [node.modifier for node in nodes(expression) if isinstance(node, AggregateExpr) and node.modifier]
    return {label for modifier in found for label in modifier.labels}


def run(program: str, *arguments: str | Path) -> str:
    """Run a program that Debian has, and return what it says."""
    if shutil.which(program) is None:
        pytest.fail(f"{program} is needed: apt-get install prometheus prometheus-alertmanager")
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
