"""The example for Alertmanager: valid, without secrets, and right about who is woken and what is left unsaid."""

from __future__ import annotations

import re

import pytest
import yaml

from tests.monitoring import ALERTS, MONITORING, run

FILE = MONITORING / "alertmanager.yaml"
EXAMPLE = yaml.safe_load(FILE.read_text())
NAMES = {alert["alert"] for alert in ALERTS}


def test_amtool_accepts_it() -> None:
    assert "SUCCESS" in run("amtool", "check-config", FILE)


@pytest.mark.parametrize(("severity", "receiver"), [("critical", "page"), ("warning", "ticket")])
def test_critical_wakes_someone_and_a_warning_is_a_ticket(severity: str, receiver: str) -> None:
    told = run("amtool", "config", "routes", "test", f"--config.file={FILE}", f"severity={severity}", "adapter=mood")
    assert told.split() == [receiver]


def test_no_secret_is_in_it() -> None:
    secrets = re.findall(r"^ *\S*(?:password|key|secret|token|url)(\w*): ", FILE.read_text(), re.MULTILINE)
    assert secrets
    assert set(secrets) == {"_file"}


@pytest.mark.parametrize("rule", EXAMPLE["inhibit_rules"])
def test_what_silences_and_what_is_silenced_exists(rule: dict) -> None:
    named = re.findall(r"Hotswap\w+", str(rule))
    assert set(named) <= NAMES
    assert named or "severity = critical" in rule["source_matchers"]


def test_alerts_of_one_cause_come_in_one_message() -> None:
    assert EXAMPLE["route"]["group_by"] == ["alertname", "adapter", "version"]
