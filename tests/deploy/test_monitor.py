"""make monitor: the shipped configuration beside a service, as the programs themselves check it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml

from scripts.monitor import configure
from tests.monitoring import MONITORING, ROOT, RULE_FILES, run


def test_prometheus_accepts_the_shipped_configuration() -> None:
    assert f"{len(RULE_FILES)} rule files found" in run("promtool", "check", "config", MONITORING / "prometheus.yaml")


def test_another_service_changes_only_where_to_look(tmp_path: Path) -> None:
    made = configure(tmp_path, ["http://127.0.0.1:1234", "http://127.0.0.1:1235"], 9093, None)
    run("promtool", "check", "config", made)
    shipped, ours = yaml.safe_load((MONITORING / "prometheus.yaml").read_text()), yaml.safe_load(made.read_text())
    shipped["scrape_configs"][0]["static_configs"][0]["targets"] = ["127.0.0.1:1234", "127.0.0.1:1235"]
    assert ours == shipped
    for file in RULE_FILES:
        assert (tmp_path / "rules" / file.name).read_text() == file.read_text()


def test_whoever_lacks_the_programs_is_told_what_to_install(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "scripts.monitor"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "apt-get install prometheus prometheus-alertmanager" in done.stdout
