"""A real ``python -m service`` in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass
class Server:
    client: httpx.Client
    process: subprocess.Popen[str]
    log: Path

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    def predict(self, adapter: str, *inputs: str) -> dict:
        response = self.client.post("/v1/predict", json={"adapter": adapter, "inputs": list(inputs)})
        assert response.status_code == 200, response.text
        return response.json()

    def stop(self) -> int:
        """Ask it to go, as an orchestrator does, and return its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(log: Path, module: Sequence[str] = ("service",), **settings: str) -> Iterator[Server]:
    """Start the service on a free port; its own words on standard output say when it is ready."""
    environment = {
        **os.environ,
        "HOTSWAP_PORT": "0",
        "HOTSWAP_FEEDBACK_DATABASE": "off",
        "HOTSWAP_ENGINE_SECONDS": "60",  # a machine that stands still for 20 s is no fault of an engine
        "CXX": "not-to-be-had",  # as on laptops, and in images
        **{f"HOTSWAP_{k.upper()}": v for k, v in settings.items()},
    }
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", *module], env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        address = re.search(r"http://[\d.:]+", process.stdout.readline())
        assert address is not None, f"the service did not start:\n{log.read_text()[-4000:]}"
        # A pipe that nobody reads would fill up and stop the server.
        threading.Thread(target=process.stdout.read, daemon=True).start()
        with httpx.Client(base_url=address[0], timeout=120) as client:
            yield Server(client, process, log)
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
