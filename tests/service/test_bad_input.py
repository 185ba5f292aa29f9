"""What users get wrong: each mistake has its answer, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import HotswapError
from adapters.intake import add_version
from adapters.releases import NewRelease
from service.engine.base import EngineDown, EngineRefused
from service.errors import ServiceError, from_lower
from tests.conftest import MakeAdapter
from tests.service.conftest import Serve, until

pytestmark = pytest.mark.anyio

MISTAKES: list[tuple[str, dict[str, Any], int, str]] = [
    ("unknown adapter", {"adapter": "nobody", "input": "x"}, 404, "adapter_not_found"),
    ("unknown version", {"adapter": "mood@99", "input": "x"}, 404, "version_not_found"),
    ("version of an unknown adapter", {"adapter": "nobody@1", "input": "x"}, 404, "adapter_not_found"),
    ("no canary", {"adapter": "mood@canary", "input": "x"}, 404, "version_not_found"),
    ("a path as a name", {"adapter": "../../etc/passwd", "input": "x"}, 422, "invalid_request"),
    ("an odd channel", {"adapter": "mood@latest", "input": "x"}, 422, "invalid_request"),
    ("empty text", {"adapter": "mood", "input": "  \n"}, 422, "invalid_request"),
    ("no text", {"adapter": "mood"}, 422, "invalid_request"),
    ("both input and inputs", {"adapter": "mood", "input": "x", "inputs": ["x"]}, 422, "invalid_request"),
    ("no inputs", {"adapter": "mood", "inputs": []}, 422, "invalid_request"),
    ("300 inputs", {"adapter": "mood", "inputs": ["x"] * 300}, 422, "invalid_request"),
    ("a number for a text", {"adapter": "mood", "input": 5}, 422, "invalid_request"),
    ("a text for a list", {"adapter": "mood", "inputs": "x"}, 422, "invalid_request"),
    ("null among inputs", {"adapter": "mood", "inputs": ["x", None]}, 422, "invalid_request"),
    ("misspelt field", {"adapter": "mood", "input": "x", "paramaters": {}}, 422, "invalid_request"),
    ("max_words of 0", {"adapter": "brief", "input": "x", "parameters": {"max_words": 0}}, 422, "invalid_request"),
    ("half a surrogate pair", {"adapter": "mood", "input": "\ud800"}, 422, "invalid_request"),
    ("too long a text", {"adapter": "mood", "input": "x" * 200_000}, 422, "input_too_long"),
    ("streaming a batch", {"adapter": "brief", "inputs": ["x"], "stream": True}, 422, "invalid_request"),
]


@pytest.mark.parametrize(("body", "status", "code"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
async def test_a_mistake_gets_its_code_as_a_problem_document(
    serve: Serve, body: dict[str, Any], status: int, code: str
) -> None:
    async with serve() as service:
        content = json.dumps(body)
        response = await service.client.post(
            "/v1/predict", content=content, headers={"Content-Type": "application/json"}
        )
        problem = response.json()
        assert (response.status_code, problem["code"]) == (status, code)
        assert response.headers["content-type"] == "application/problem+json"
        assert problem["status"] == status
        assert problem["detail"]
        assert (await service.predict("mood")).status_code == 200


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [(b"{not json", 400, "bad_request"), (b'{"adapter": "mood", "input": "\xff\xfe"}', 400, "bad_request"),
     (b"", 422, "invalid_request"), (b"[1]", 422, "invalid_request"), (b"[" * 100_000, 400, "bad_request")],
    ids=["not JSON", "invalid UTF-8", "empty", "not an object", "deeply nested"],
)  # fmt: skip
async def test_a_body_that_cannot_be_read(serve: Serve, content: bytes, status: int, code: str) -> None:
    async with serve() as service:
        response = await service.client.post(
            "/v1/predict", content=content, headers={"Content-Type": "application/json"}
        )
        assert (response.status_code, response.json()["code"]) == (status, code)


@pytest.mark.parametrize(("announced", "size"), [(True, 50_000), (False, 1000), (False, 50_000)])
async def test_a_body_over_the_limit_is_refused_announced_or_not(serve: Serve, announced: bool, size: int) -> None:
    async def pieces():
        for _ in range(50_000 // size):
            yield b" " * size

    async with serve(max_body_bytes=2000) as service:
        content: Any = b" " * size if announced else pieces()
        response = await service.client.post("/v1/predict", content=content)
        assert (response.status_code, response.json()["code"]) == (413, "body_too_large")


async def test_zero_shot_needs_two_different_labels(serve: Serve) -> None:
    async with serve() as service:
        for labels in (["one"], ["a", "a"], ["a", ""], ["a {text}", "b"]):
            response = await service.client.post("/v1/classify", json={"labels": labels, "input": "x"})
            assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


@pytest.mark.parametrize(
    "spoil", ["flipped bit", "truncated file", "missing file", "pickle", "rank above the limit", "another base"]
)
async def test_a_bad_adapter_fails_alone_and_says_why(
    serve: Serve, stocked, make_adapter: MakeAdapter, tiny, sentiment_task, tmp_path: Path, spoil: str
) -> None:
    from dataclasses import replace

    base = replace(tiny, digest="sha256:" + "0" * 64) if spoil == "another base" else tiny
    folder = make_adapter(rank=32 if spoil == "rank above the limit" else 4)
    add_version(stocked, "bad", folder, sentiment_task, base)
    stocked.release("bad", NewRelease(stable=1))
    place = tmp_path / "store" / "bad" / "versions" / "1" / "adapter_model.safetensors"
    content = place.read_bytes()
    if spoil == "flipped bit":
        place.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif spoil == "truncated file":
        place.write_bytes(content[: len(content) // 2])
    elif spoil in ("missing file", "pickle"):
        place.unlink()
    if spoil == "pickle":
        place.with_name("adapter_model.bin").write_bytes(b"\x80\x04.")
    async with serve() as service:
        response = await service.predict("bad")
        assert (response.status_code, response.json()["code"]) == (503, "adapter_failed")
        assert int(response.headers["retry-after"]) > 0
        (version,) = (await service.client.get("/v1/adapters/bad")).json()["versions"]
        assert version["state"] == "failed"
        assert version["reason"] in response.json()["detail"]
        assert (await service.predict("mood")).status_code == 200
        assert not [name for name in service.engine.resident if name.startswith("bad")]


async def test_unknown_addresses_and_methods_are_problems_too(serve: Serve) -> None:
    async with serve() as service:
        assert (await service.client.get("/nothing")).json()["code"] == "not_found"
        assert (await service.client.get("/v1/predict")).json()["code"] == "method_not_allowed"


async def test_a_request_id_is_kept_if_it_is_harmless_and_made_if_not(serve: Serve) -> None:
    async with serve() as service:
        kept = await service.client.get("/livez", headers={"X-Request-Id": "order-17"})
        made = await service.client.get("/livez", headers={"X-Request-Id": "a b\tc"})
        assert kept.headers["x-request-id"] == "order-17"
        assert made.headers["x-request-id"].startswith("req_")


async def test_what_is_refused_is_counted_too(serve: Serve) -> None:
    async with serve(max_body_bytes=1000) as service:
        await service.client.post("/v1/predict", json={"adapter": "mood"})
        await service.client.post("/v1/predict", json={"adapter": "mood", "input": "x" * 2000})
        await service.client.get("/v1/adapters/nobody")
        await service.client.get("/invented/by/somebody")
        for route, status in (("/v1/predict", 422), ("none", 413), ("/v1/adapters/{name}", 404), ("none", 404)):
            assert await service.metric("hotswap_http_responses_total", route=route, status=str(status)) == 1


async def test_answers_are_kept_by_no_cache_and_taken_for_nothing_else(serve: Serve) -> None:
    async with serve() as service:
        stream = {"adapter": "brief", "input": "A film.", "stream": True}
        answers = [
            await service.predict("mood"),
            await service.predict("nobody"),
            await service.client.post("/v1/summarize", json=stream),
        ]
        for answer in answers:
            assert answer.headers.get_list("cache-control") == ["no-store"]
            assert answer.headers["x-content-type-options"] == "nosniff"


async def test_with_keys_only_their_holders_are_answered(serve: Serve, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# team a\nsecret-a\nsecret-b  # team b\n")
    async with serve(api_keys=keys) as service:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret-a"}):
            response = await service.client.get("/v1/adapters", headers=headers)
            assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
        answered = await service.client.get("/v1/adapters", headers={"Authorization": "Bearer secret-b"})
        assert answered.status_code == 200
        assert (await service.client.get("/readyz")).status_code == 200


def _family(error: type[Exception]) -> list[type[Exception]]:
    return [error, *(below for child in error.__subclasses__() for below in _family(child))]


@pytest.mark.parametrize("error", [*_family(HotswapError), EngineDown, EngineRefused, TimeoutError])
async def test_every_lower_error_has_a_meaning_for_the_caller(error: type[Exception]) -> None:
    assert from_lower(error("inner detail")).code != ServiceError.code


async def test_an_unknown_error_reveals_nothing() -> None:
    problem = from_lower(RuntimeError("password=hunter2")).problem()
    assert "hunter2" not in str(problem)
    assert problem["status"] == 500


async def test_a_body_that_does_not_arrive_is_refused_and_holds_nothing_up(serve: Serve) -> None:
    async with serve(body_seconds=0.2) as service:
        host, port = service.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = "POST /v1/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        writer.write(head.encode() + b'{"adapter": ')
        answer = (await asyncio.wait_for(reader.read(), 10)).decode()
        assert answer.startswith("HTTP/1.1 400 ")
        assert "did not arrive within 0.2 s" in answer
        writer.close()
        # An answer may take longer than the body may.
        service.engine.gate.clear()
        asked = asyncio.create_task(service.predict("mood"))
        await until(lambda: service.engine.active == 1)
        assert (await service.client.get("/livez")).status_code == 200
        await asyncio.sleep(0.4)
        service.engine.gate.set()
        assert (await asked).status_code == 200
