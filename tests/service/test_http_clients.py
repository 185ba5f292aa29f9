"""What stands between a client and us: parsers, proxies, pools, upgrades, browsers."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from typing import Any

import pytest

from service.http import connection
from service.http.connection import Connection
from tests.service.conftest import Running, Serve, until

pytestmark = pytest.mark.anyio
BODY = json.dumps({"adapter": "mood", "input": "A film."}).encode()
HOST = b"Host: [::1]\r\n"


def post(*headers: bytes, path: bytes = b"/v1/predict", body: bytes = BODY, version: bytes = b"1.1") -> bytes:
    """Return a request with a Content-Length, as bytes."""
    lines = [b"POST %s HTTP/%s" % (path, version), b"Host: [::1]", b"Content-Type: application/json", *headers]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body), b"", body])


def chunked(*headers: bytes) -> bytes:
    lines = [b"POST /v1/predict HTTP/1.1", b"Host: [::1]", b"Content-Type: application/json", *headers]
    pieces = [b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (BODY[:7], BODY[7:])]
    return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", b"", b"".join(pieces)]) + b"0\r\n\r\n"


async def connect(service: Running) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = service.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def respond(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """Read one response."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    return int(head[0].split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def answers(service: Running, *requests: bytes) -> list[int]:
    """Send all at once on one connection, and return the status of each response."""
    reader, writer = await connect(service)
    writer.write(b"".join(requests))
    statuses = [(await respond(reader))[0] for _ in requests]
    writer.close()
    return statuses


async def refusal(service: Running, sent: bytes) -> tuple[int, dict[str, str], Any]:
    """Return the response to what is no request, after which nothing more comes."""
    reader, writer = await connect(service)
    writer.write(sent)
    status, headers, body = await respond(reader)
    assert await asyncio.wait_for(reader.read(), 10) == b"", "the connection is closed"
    writer.close()
    return status, headers, json.loads(body)


UPGRADES = {
    "Java's h2c": [b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAEAAEAAAAIAAAAB"],
    "a web socket": [b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Key: dGhlIHNhbXBsZQ=="],
    "TLS": [b"Connection: upgrade", b"Upgrade: TLS/1.3, HTTP/1.1"],
}


@pytest.mark.parametrize("offer", UPGRADES.values(), ids=UPGRADES)
async def test_an_upgrade_is_an_offer_that_is_not_taken_up(serve: Serve, offer: list[bytes]) -> None:
    async with serve() as service:
        assert await answers(service, post(*offer), chunked(*offer), post(*offer), post()) == [200] * 4


async def test_requests_may_follow_each_other_unanswered(serve: Serve) -> None:
    async with serve() as service:
        assert await answers(service, *[post(), chunked()] * 5) == [200] * 10


async def test_a_body_is_asked_for_by_whoever_expects_it(serve: Serve) -> None:
    async with serve() as service:
        reader, writer = await connect(service)
        head, body = post(b"Expect: 100-continue").split(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(body)
        assert (await respond(reader))[0] == 200
        writer.write(
            b"POST /v1/predict HTTP/1.1\r\nHost: [::1]\r\nExpect: 100-continue\r\nContent-Length: 99999999\r\n\r\n"
        )
        assert (await respond(reader))[0] == 413, "and not asked for, where it would not be read"
        writer.close()


async def test_http_1_0_is_answered_without_chunks_and_closed(serve: Serve) -> None:
    async with serve() as service:
        stream = json.dumps({"adapter": "brief", "input": "A film.", "stream": True}).encode()
        for request in (
            post(version=b"1.0"),
            post(b"Connection: keep-alive", version=b"1.0"),
            post(body=stream, version=b"1.0"),
        ):
            reader, writer = await connect(service)
            writer.write(request)
            response = await asyncio.wait_for(reader.read(), 10)
            assert response.startswith(b"HTTP/1.1 200")
            assert b"transfer-encoding" not in response.lower()
            writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(path=b"http://localhost/v1/predict"),
        post(path=b"HTTP://localhost:8000/v1/predict?x=1"),
        post(b"X-Folded: one\r\n two"),
        post(b"Connection: keep-alive, TE", b"TE: trailers"),
        post(b"X-Empty:"),
        post().replace(b"Content-Type: application/json", b"content-type:application/json;charset=UTF-8"),
        b"\r\n" + post(),
    ],
    ids=["absolute target", "absolute target, port", "folded", "TE", "empty header", "charset", "empty line before"],
)
async def test_what_is_odd_and_legal_is_answered(serve: Serve, request_bytes: bytes) -> None:
    async with serve() as service:
        assert await answers(service, request_bytes, post()) == [200, 200]


async def test_a_target_s_host_counts_before_the_header_s(serve: Serve) -> None:
    async with serve() as service:
        target = b"http://evil.example/v1/adapters/mood/rollback"
        assert await answers(service, post(path=target, body=b"")) == [403]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET http://[::1/livez HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET  /livez HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /liv\x00ez HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET livez HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"Bad Name: x\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"X: a\x00b\r\n\r\n", 400),
        (post(b"Content-Length: 5"), 400),
        (post(b"Content-Length: -5"), 400),
        (post().replace(b"Content-Length: ", b"Content-Length: " + b"1" * 5000), 400),
        (post().replace(b"Content-Length: ", b"Content-Length: " + b"1" * 4000), 400),
        (post(b"Transfer-Encoding: chunked"), 400),
        (post().replace(b"Content-Length: %d" % len(BODY), b"Transfer-Encoding: gzip, chunked"), 400),
        (chunked().replace(b"\r\n\r\n7\r\n", b"\r\n\r\nzz\r\n"), 400),
        (chunked().replace(b"\r\n\r\n7\r\n", b"\r\n\r\n" + b"f" * 30 + b"\r\n"), 400),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 70_000 + b"\r\n\r\n", 431),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 9_000_000, 431),
        (b"GET /livez HTTP/1.1\r\n" + HOST + b"X: a\r\n" * 200 + b"\r\n", 431),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431),
    ],
)  # fmt: skip
async def test_what_is_no_request_is_a_problem_and_ends_the_connection(
    serve: Serve, sent: bytes, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as service:
        got, headers, problem = await refusal(service, sent)
        assert (got, problem["status"], headers["content-type"]) == (status, status, "application/problem+json")
        assert headers["x-request-id"].startswith("req_")
        assert headers["connection"] == "close"
    assert "Traceback" not in caplog.text


async def test_a_body_that_goes_wrong_under_way_leaves_no_trace_in_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    async with serve() as service:
        reader, writer = await connect(service)
        head, _, rest = chunked().partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n" + rest[:10])
        requests = lambda: service.server.server_state.tasks  # noqa: E731
        await until(lambda: bool(requests()))
        writer.write(b"\r\nnonsense\r\n")
        assert (await respond(reader))[0] == 400
        writer.close()
        await until(lambda: not requests())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_at_the_limit_the_connection_that_idles_longest_makes_room(serve: Serve) -> None:
    async with serve(max_connections=3) as service:
        opened = [await connect(service) for _ in range(6)]
        await until(lambda: len(service.server.server_state.connections) == 3)
        for reader, _ in opened[:2]:
            assert await asyncio.wait_for(reader.read(), 10) == b""
        opened[-1][1].write(post())
        assert (await respond(opened[-1][0]))[0] == 200
        for _, writer in opened:
            writer.close()


async def test_where_every_connection_is_at_work_probes_are_still_answered(serve: Serve) -> None:
    async with serve(max_connections=2) as service:
        service.engine.gate.clear()
        busy = [await connect(service) for _ in range(2)]
        for _, writer in busy:
            writer.write(post())
        await until(lambda: service.engine.active == 2)
        for probe in (b"/livez", b"/readyz"):
            reader, writer = await connect(service)
            writer.write(b"GET %s HTTP/1.1\r\n" % probe + HOST + b"Connection: close\r\n\r\n")
            assert (await respond(reader))[0] == 200
            writer.close()
        status, headers, problem = await refusal(service, post())
        assert (status, problem["code"], "retry-after" in headers) == (503, "too_many_connections", True)
        held = [await connect(service) for _ in range(connection.SPARE + 20)]
        await until(lambda: len(service.server.server_state.connections) <= 2 + connection.SPARE)
        service.engine.gate.set()
        for reader, writer in busy:
            assert (await respond(reader))[0] == 200, "and who came first is answered"
            writer.close()
        for _, writer in held:
            writer.close()


async def test_an_idle_connection_is_kept_as_long_as_is_set(serve: Serve) -> None:
    async with serve() as service:
        assert service.server.config.timeout_keep_alive == 75, "longer than load balancers keep theirs (60)"


async def test_who_does_not_read_an_answer_is_not_waited_for(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Connection, "stall_seconds", 0.05)
    async with serve() as service:
        _, writer = await connect(service)
        writer.transport.pause_reading()
        ask = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n"
        writer.write(ask * 20)
        await until(lambda: not service.server.server_state.connections)
        writer.close()


NAMES = [f"k{n}" for n in range(99_999)]
BODIES = {
    "150,000 unknown fields": json.dumps({"adapter": "mood", "input": "x", **{f"k{n}": 1 for n in range(150_000)}}),
    "as many as may be": json.dumps({"adapter": "mood", "input": "x", **{f"k{n}": 1 for n in range(4_990)}}),
    "as many wrong texts": json.dumps({"adapter": "mood", "inputs": [1] * 4_900}),
    "numbers for texts": json.dumps({"adapter": "mood", "inputs": [1] * 500_000}),
    "numbers for labels": json.dumps({"labels": [1] * 500_000, "input": "x"}),
    "unknown parameters": json.dumps({"adapter": "mood", "input": "x", "parameters": dict.fromkeys(NAMES)}),
    "one key of 1.9 MB": json.dumps({"adapter": "mood", "input": "x", "k" * 1_900_000: 1}),
    "deep": '{"adapter": "mood", "input": ' + "[" * 900_000 + "]" * 900_000 + "}",
    "open": "[" * 1_900_000,
    "flat": "[" + "[]," * 600_000 + "[]]",
    "strings": '["' + '","' * 600_000 + '"]',
    "quotes": '"' * 1_900_001,
    "backslashes": '{"input": "' + "\\" * 1_900_000,
    "4,000 digits": '{"adapter": "mood", "input": "x", "parameters": {"max_words": ' + "9" * 4000 + "}}",
    "a million digits": '{"adapter": "mood", "input": "x", "parameters": {"max_words": ' + "9" * 1_000_000 + "}}",
    "a million decimals": '{"adapter": "mood", "input": "x", "parameters": {"max_words": 0.' + "9" * 1_000_000 + "}}",
    "NaN": '{"adapter": "mood", "input": "x", "parameters": {"max_words": NaN}}',
    "infinity": '{"adapter": "mood", "input": "x", "parameters": {"max_words": -Infinity}}',
    "the same twice": '{"adapter": "mood", "adapter": "brief", "input": "x"}',
    "half a pair": '{"adapter": "mood", "input": "\\ud800"}',
    "an escape": '{"adapter": "mood", "input": "x", "k\\u001b[31m\\n": 1}',
}  # fmt: skip


@pytest.mark.parametrize(
    "body", [*map(str.encode, BODIES.values()), BODY.decode().encode("utf-16")], ids=[*BODIES, "UTF-16"]
)
async def test_no_body_holds_up_everybody_else(serve: Serve, body: bytes) -> None:
    gc.freeze()  # what other tests have imported is not the service's to look through
    async with serve() as service:
        pauses: list[float] = []

        async def tick() -> None:
            while True:
                began = time.thread_time()  # what the loop computes: a busy machine makes it no longer
                await asyncio.sleep(0.001)
                pauses.append(time.thread_time() - began)

        ticking = asyncio.create_task(tick())
        for path in ("/v1/predict", "/v1/classify"):
            response = await service.client.post(path, content=body, headers={"Content-Type": "application/json"})
            assert response.status_code in (400, 422)
            assert response.headers["content-type"] == "application/problem+json"
            assert len(response.content) < 2000
            assert json.loads(response.text)["detail"].isprintable()
        ticking.cancel()
        assert max(pauses, default=0) < 0.25  # 0.1 and less on an idle machine


async def test_texts_may_hold_what_json_is_made_of(serve: Serve) -> None:
    async with serve() as service:
        for text in ("[" * 20_000, ', "a": {' * 5_000, '\\"' * 9_000, "\\" * 8_001):
            assert (await service.predict("mood", text)).status_code == 200
