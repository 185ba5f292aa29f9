"""A key's rate on all replicas together, counted in a real Redis; and what happens while that is away."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest

from adapters.errors import HotswapError
from service.errors import RateLimited
from service.http import quota
from service.http.quota import SharedQuota
from tests.service.conftest import Serve
from tests.service.test_keys import bearer, new_key

pytestmark = pytest.mark.anyio


class Redis:
    """A server on a port of its own, that keeps nothing."""

    def __init__(self) -> None:
        assert shutil.which("redis-server") is not None, "apt-get install redis-server (make setup does)"
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self._port = listener.getsockname()[1]
        self.address = f"redis://127.0.0.1:{self._port}/0"
        self.start()

    def start(self) -> None:
        command = ["redis-server", "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while not self._listens():
            assert time.monotonic() < end
            time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self._port)) == 0

    def hang(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        self._process.wait(30)


@pytest.fixture
def redis() -> Iterator[Redis]:
    server = Redis()
    try:
        yield server
    finally:
        server.stop()


async def ask(service, key: str, texts: int) -> httpx.Response:
    body = {"adapter": "brief", "inputs": ["A film."] * texts}
    return await service.client.post("/v1/predict", json=body, headers=bearer(key))


async def test_a_keys_rate_is_one_on_all_replicas(serve: Serve, tmp_path: Path, redis: Redis) -> None:
    key, line = new_key("name=a rate=5/day")
    (tmp_path / "keys").write_text(f"{line}\n")
    settings = {"api_keys": tmp_path / "keys", "rate_store": redis.address}
    async with serve(**settings) as one, serve(**settings) as other:
        first = await ask(one, key, 3)
        assert (first.status_code, first.headers["RateLimit-Remaining"]) == (200, "2")
        refused = await ask(other, key, 3)
        assert (refused.status_code, refused.json()["code"]) == (429, "rate_limited")
        assert "2 are left" in refused.json()["detail"]
        assert (await ask(other, key, 2)).status_code == 200
        assert (await ask(one, key, 1)).status_code == 429


async def test_while_it_is_away_each_replica_counts_by_itself_and_nobody_waits(
    serve: Serve, tmp_path: Path, redis: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "AWAY_SECONDS", 0.0)
    key, line = new_key("name=a rate=5/day")
    (tmp_path / "keys").write_text(f"{line}\n")
    settings = {"api_keys": tmp_path / "keys", "rate_store": redis.address}
    async with serve(**settings) as one, serve(**settings) as other:
        assert (await ask(one, key, 5)).status_code == 200
        redis.stop()
        for service in (one, other):
            assert (await ask(service, key, 5)).status_code == 200
            assert (await ask(service, key, 1)).status_code == 429
        assert caplog.text.count("rates are counted on this replica alone") == 2, "once for each"
        redis.start()
        assert (await ask(one, key, 5)).status_code == 200, "it keeps nothing"
        assert (await ask(other, key, 1)).status_code == 429
        assert "for all replicas together again" in caplog.text


async def test_one_that_hangs_is_waited_for_once_and_then_left_alone(redis: Redis) -> None:
    shared, rate = SharedQuota(redis.address), quota.read_rate("5/day")
    redis.hang()
    asked: list[str] = []
    hit = shared._shared.hit

    async def counted(*given: object, **more: object) -> bool:
        asked.append("once")
        return await hit(*given, **more)

    shared._shared.hit = counted
    for _ in range(5):
        await shared.take("a", rate, 1)
    assert asked == ["once"]
    with pytest.raises(RateLimited):
        await shared.take("a", rate, 1)


@pytest.mark.parametrize(
    "answer",
    [b"+OK\r\n" * 9, b"*1\r\n$2\r\nxx\r\n" * 9, b"*1\r\n" * 9000, b"$-1\r\n" * 9, b"HTTP/1.1 400 Bad\r\n\r\n", b""],
    ids=["words", "no numbers", "nested", "nothing", "http", "closes"],
)
async def test_what_answers_something_else_counts_as_away(answer: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async def other(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(10_000) and answer:
            writer.write(answer)
        writer.close()

    with closing(await asyncio.start_server(other, "127.0.0.1", 0)) as server:
        shared = SharedQuota(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        await shared.check("a", quota.read_rate("5/day"))
        assert (await shared.take("a", quota.read_rate("5/day"), 5))["RateLimit-Remaining"] == "0"
        with pytest.raises(RateLimited):
            await shared.check("a", quota.read_rate("5/day"))
    assert caplog.text.count("rates are counted on this replica alone") == 1


async def test_an_answer_in_many_small_pieces_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10_000)
        with suppress(ConnectionError):
            while True:
                writer.write(b"+OK\r\n")
                await writer.drain()
                await asyncio.sleep(0.2)

    with closing(await asyncio.start_server(dripping, "127.0.0.1", 0)) as server:
        shared = SharedQuota(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0")
        began = time.monotonic()
        await shared.take("a", quota.read_rate("5/day"), 1)
        assert time.monotonic() - began < 2 * quota.SHARED_SECONDS


def test_an_address_that_is_none_is_refused_at_the_start() -> None:
    with pytest.raises(HotswapError, match="write redis://host:6379/0"):
        SharedQuota("mongodb://host/0")
