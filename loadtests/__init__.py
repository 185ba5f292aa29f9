"""Load on a running server; ``run_locust`` is what the tests and scripts call."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

LOCUSTFILE = Path(__file__).with_name("locustfile.py")
# For tests of answers: how fast this machine is, is none of their business.
PATIENT = MappingProxyType({"HOTSWAP_LOAD_P95_MS": "300000"})


def run_locust(
    host: str,
    seconds: int,
    environment: Mapping[str, str] = MappingProxyType({}),
    users: Sequence[str] = ("Classify", "Summarize"),
    more: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """Run the load test on ``host`` and return the finished process: 0 within the thresholds, 1 beyond.

    ``users`` are classes of loadtests/callers.py, ``more`` are options of Locust's; ``environment`` is added to this
    process's own. Locust gets a process of its own because it replaces the standard library's sockets in the one that
    imports it.
    """
    command = [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--headless", "--only-summary"]
    command += ["--users", "8", "--spawn-rate", "8", "--run-time", f"{seconds}s", "--host", host, *more, *users]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=seconds + 120, check=False
    )
