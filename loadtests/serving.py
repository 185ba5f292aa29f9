"""A service in processes of its own, for load tests: started on a free port, ended with all that it started."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import psutil

from loadtests.bench.process import Process


@contextmanager
def service(log: Path, **settings: object) -> Iterator[tuple[str, Process]]:
    """Start ``python -m service`` with ``HOTSWAP_…`` settings; yield its address at once: see :func:`ready`."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {f"HOTSWAP_{name.upper()}": str(value) for name, value in {"port": port, **settings}.items()}
    process = Process("service", [], environment, log, piped=False)
    try:
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.stop()


def ready(url: str) -> bool:
    """Return whether the service answers requests by now."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5, trust_env=False).status_code == 200
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def memory(root: int) -> dict[str, int]:
    """Return the resident bytes of the service's process, and of all that it started."""
    server, engine = psutil.Process(root), 0
    for child in server.children(recursive=True):
        with suppress(psutil.Error):
            engine += child.memory_info().rss
    return {"service": server.memory_info().rss, "engine": engine}


def say(text: str) -> None:
    """Print progress where it is in nobody's way."""
    print(text, file=sys.stderr, flush=True)
