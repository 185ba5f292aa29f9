"""Prometheus and Alertmanager beside a running service, as k8s/monitoring configures them, until Ctrl-C.

make monitor                                      for http://127.0.0.1:8000
python -m scripts.monitor --service http://127.0.0.1:8001 --every 1s    another service, looked at every second
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import yaml

ROOT = Path(__file__).parents[1]
CONFIGURATION = ROOT / "k8s" / "monitoring"
# By the names of Debian's packages and of the projects' own archives.
PROMETHEUS, ALERTMANAGER = ("prometheus",), ("prometheus-alertmanager", "alertmanager")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--service", action="append", metavar="URL", help="where /metrics is; once for each replica")
    parser.add_argument("--every", metavar="TIME", help="scrape and evaluate so often, as 1s; for tests")
    parser.add_argument("--port", type=int, default=9090, help="of Prometheus (9090)")
    parser.add_argument("--alertmanager-port", type=int, default=9093)
    parser.add_argument("--data", type=Path, default=ROOT / "var" / "monitor", help="where both keep what they know")
    given = parser.parse_args()
    services = given.service or ["http://127.0.0.1:8000"]
    prometheus, alertmanager = find(*PROMETHEUS), find(*ALERTMANAGER)
    if prometheus is None or alertmanager is None:
        print("monitor: Prometheus and Alertmanager are needed: apt-get install prometheus prometheus-alertmanager")
        return 1
    configuration = configure(given.data, services, given.alertmanager_port, given.every)
    watching = [
        prometheus,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={given.data / 'prometheus'}",
        f"--web.listen-address=127.0.0.1:{given.port}",
    ]
    telling = [
        alertmanager,
        f"--config.file={CONFIGURATION / 'alertmanager.yaml'}",
        f"--storage.path={given.data / 'alertmanager'}",
        f"--web.listen-address=127.0.0.1:{given.alertmanager_port}",
        "--cluster.listen-address=",
    ]
    print(f"Prometheus    http://127.0.0.1:{given.port}/alerts    watches {', '.join(services)}")
    print(f"Alertmanager  http://127.0.0.1:{given.alertmanager_port}    logs: {given.data}", flush=True)
    return run([watching, telling], given.data)


def find(*names: str) -> str | None:
    """Return the first program of these names that is installed."""
    return next((path for path in map(shutil.which, names) if path), None)


def configure(folder: Path, services: list[str], alertmanager_port: int, every: str | None) -> Path:
    """Write the shipped configuration with the services' addresses into ``folder``; return its file."""
    folder.mkdir(parents=True, exist_ok=True)
    shipped = yaml.safe_load((CONFIGURATION / "prometheus.yaml").read_text())
    (job,) = shipped["scrape_configs"]
    job["static_configs"] = [{"targets": [urlsplit(service).netloc for service in services]}]
    (manager,) = shipped["alerting"]["alertmanagers"]
    manager["static_configs"] = [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]
    rules = folder / "rules"
    shutil.copytree(CONFIGURATION / "rules", rules, dirs_exist_ok=True)
    if every is not None:
        shipped["global"] |= {"scrape_interval": every, "evaluation_interval": every}
        for file in rules.glob("*.yaml"):
            file.write_text(file.read_text().replace("    interval: 1m\n", f"    interval: {every}\n"))
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(shipped))
    return folder / "prometheus.yaml"


def run(commands: list[list[str]], logs: Path) -> int:
    """Run the commands until one ends or this process is told to; then end the others."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (logs / f"{Path(command[0]).name}.log").open("w") as log:
                running.append(subprocess.Popen(command, stderr=log, stdout=log))
        while all(process.poll() is None for process in running):
            time.sleep(0.5)
        print(f"monitor: one of them has ended; {logs}/*.log says why")
        return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
