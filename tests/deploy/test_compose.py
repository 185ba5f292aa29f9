"""compose.yaml without Docker: what it mounts is there, where the images look for it, and the parts find each other."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from service.settings import Settings
from tests.monitoring import BOARDS, MONITORING, ROOT

COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
MOUNTS = [mount.split(":")[:2] for service in SERVICES.values() for mount in service.get("volumes", [])]
PUBLISHED = {int(port.split(":")[1]) for port in SERVICES["hotswap"]["ports"]}


def read(name: str) -> dict:
    return yaml.safe_load((MONITORING / name).read_text())


@pytest.mark.parametrize(("source", "target"), MOUNTS)
def test_every_mount_is_of_a_file_that_is_there_or_of_a_declared_volume(source: str, target: str) -> None:
    assert (ROOT / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
    assert target.startswith("/")


def test_everything_listens_on_this_machine_only() -> None:
    assert all(port.startswith("127.0.0.1:") for port in SERVICES["hotswap"]["ports"])
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"hotswap"}


def test_all_share_the_network_in_which_the_configuration_finds_them() -> None:
    others = SERVICES.keys() - {"hotswap"}
    assert {SERVICES[name]["network_mode"] for name in others} == {"service:hotswap"}
    prometheus, grafana = read("prometheus.yaml"), read("grafana/datasource.yaml")
    asked = re.findall(r"127\.0\.0\.1:(\d+)", json.dumps([prometheus, grafana]))
    assert {int(port) for port in asked} == {8000, 9090, 9093}
    assert {int(port) for port in asked} < PUBLISHED


def test_every_image_is_of_one_version() -> None:
    for service in SERVICES.values():
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_the_service_starts_with_these_settings_and_shows_its_metrics() -> None:
    settings = Settings.read({"HOTSWAP_HOST": "0.0.0.0", **SERVICES["hotswap"]["environment"]})
    assert settings.allow_anonymous
    assert settings.metrics_port is None


def test_prometheus_finds_the_rules_and_grafana_the_dashboards_where_they_are_mounted() -> None:
    mounted = dict(MOUNTS)
    assert read("prometheus.yaml")["rule_files"] == ["rules/*.yaml"]
    assert mounted["./k8s/monitoring/rules"] == "/etc/prometheus/rules"
    (provider,) = read("grafana/dashboards.yaml")["providers"]
    assert mounted["./k8s/monitoring/dashboards"] == provider["options"]["path"]
    (source,) = read("grafana/datasource.yaml")["datasources"]
    assert source["type"] == "prometheus"
    assert all("id" not in board for board in BOARDS.values()), "a provisioned board gets its number from Grafana"
