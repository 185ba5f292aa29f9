"""Input that means harm: it gets an answer like any other mistake, or none, and holds nobody up."""

from __future__ import annotations

import asyncio
import importlib
import logging
import pkgutil
import re
from collections.abc import Iterator

import pytest

import adapters
import service
from adapters.manifest import NAME_PATTERN
from service.http.connection import Connection
from tests.service.conftest import Running, Serve, until

pytestmark = pytest.mark.anyio
HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\n"


def patterns() -> Iterator[tuple[str, re.Pattern]]:
    yield "NAME_PATTERN", re.compile(NAME_PATTERN)
    for package in (adapters, service):
        for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            # Programs, what needs an engine, and what alembic runs.
            if not re.search(r"__main__$|\.engine\.|\.migrations\.", found.name):
                for name, value in vars(importlib.import_module(found.name)).items():
                    if isinstance(value, re.Pattern):
                        yield f"{found.name}.{name}", value


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("name", "pattern"), patterns(), ids=[name for name, _ in patterns()])
def test_no_pattern_takes_long_for_a_long_text(name: str, pattern: re.Pattern) -> None:
    """What backtracks takes days for a megabyte; the test's timeout is the proof."""
    parts = ["a", "a.", "a-_", "0", "@", " ", "\n", "name=", "sha256:", ".lora_", "base_model.model."]
    for part in parts:
        text: str | bytes = "a" + part * (1_000_000 // len(part)) + "!"
        text = text.encode() if isinstance(pattern.pattern, bytes) else text
        for match in (pattern.fullmatch, pattern.match):
            match(text)


@pytest.mark.parametrize(
    "name",
    ["..", "..%2F..%2Fetc%2Fpasswd", "%2e%2e", "mood%00", "mood%0A", "mood%2Fversions", "%F0%9F%92%A9", "-", "~"],
)
async def test_a_name_that_is_a_path_leads_nowhere(serve: Serve, name: str) -> None:
    async with serve() as service:
        for method, tail in (("GET", ""), ("POST", "/releases"), ("POST", "/rollback")):
            raw = f"{method} /v1/adapters/{name}{tail} HTTP/1.1\r\nHost: [::1]\r\nContent-Type: application/json\r\n"
            body = b'{"stable": 1}' if tail == "/releases" else b""
            answer = await tell(
                service, raw.encode() + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
            )
            assert answer.split(b" ")[1] in (b"404", b"405"), answer
            assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    "sent",
    [
        b"a\x0bb",
        b"a b",
        b"a\tb",
        b"\xff\xfe",
        "ü".encode(),
        b"%0d%0aSet-Cookie:x",
        b"<script>",
        b"x" * 129,
        b"\x1b[31m",
    ],
)
async def test_a_request_id_cannot_carry_anything_into_headers_or_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture, sent: bytes
) -> None:
    caplog.set_level(logging.INFO, "hotswap.access")
    async with serve() as service:
        path = b"/nothing%0aINFO%20forged"
        answer = await tell(
            service, b"GET %s HTTP/1.1\r\nHost: [::1]\r\nX-Request-Id: %s\r\nConnection: close\r\n\r\n" % (path, sent)
        )
        if not answer.startswith(b"HTTP/1.1 400"):  # no header at all, for uvicorn
            (given,) = re.findall(rb"(?im)^x-request-id: (.*)\r$", answer)
            assert re.fullmatch(rb"req_[0-9A-Z]{26}", given)
        for record in caplog.records:
            assert re.fullmatch(r"[ -~]+", record.getMessage())
            assert "forged" not in record.getMessage() or "%0A" in record.getMessage()


async def test_a_caller_s_words_cannot_begin_a_line_in_the_log(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "hotswap")
    async with serve() as service:
        forged = "x\nERROR forged\r\x1b[31m"
        await service.predict(forged, forged, caller=forged)
        await service.predict("mood", forged, caller=forged)
        await service.client.post("/v1/adapters/mood/releases", json={"stable": 1, "why": forged})
        await until(lambda: service.state.routing.served("mood").generation == 2)
    for record in caplog.records:
        if record.name.startswith("hotswap"):
            assert re.fullmatch(r"[ -~…]+", record.getMessage()), record.getMessage()


async def test_connections_that_never_say_what_they_want_stop_nobody_and_are_closed(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [b"", b"POST", HEAD, HEAD + b"X-Slow: ", HEAD + b'Content-Length: 100\r\n\r\n{"adapter": ']
    async with serve(body_seconds=3600) as service:
        opened = [await connect(service) for _ in range(200)]
        for number, (_, writer) in enumerate(opened):
            writer.write(starts[number % len(starts)])
        answers = await asyncio.gather(*(service.predict("mood", f"text {n}") for n in range(50)))
        assert {answer.status_code for answer in answers} == {200}
        for _, writer in opened:
            writer.close()

        monkeypatch.setattr(Connection, "head_seconds", 0.05)
        for start in starts[:4]:
            reader, writer = await connect(service)
            writer.write(start)
            assert await asyncio.wait_for(reader.read(), 10) == b"", "it is closed without a word"
            writer.close()


async def test_a_head_that_stalls_after_an_answer_is_not_waited_for_either(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "head_seconds", 0.05)
    async with serve() as service:
        reader, writer = await connect(service)
        writer.write(b"GET /livez HTTP/1.1\r\nHost: [::1]\r\n\r\n")
        assert (await reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
        writer.write(HEAD)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_an_answer_may_take_longer_than_a_head(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "head_seconds", 0.05)
    async with serve() as service:
        service.engine.gate.clear()
        asked = asyncio.create_task(service.predict("mood"))
        await until(lambda: service.engine.active == 1)
        loop = asyncio.get_running_loop()
        passed = loop.time() + 0.2
        await until(lambda: loop.time() > passed)
        service.engine.gate.set()
        assert (await asked).status_code == 200


async def connect(service: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = service.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def tell(service: Running, said: bytes) -> bytes:
    """Say exactly that, and return all that is answered."""
    reader, writer = await connect(service)
    writer.write(said)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer
