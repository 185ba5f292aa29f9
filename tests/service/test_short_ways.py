"""What is plain goes a short way, past h11 and past FastAPI: it is the same service, whichever way a request goes."""

from __future__ import annotations

import json
from typing import Any

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from service.http import plain
from service.http.connection import HEAD_BYTES, _Strict
from service.http.routes.predict import _to_json
from service.http.schemas import AdapterUsed, Classification, Prediction, Summary, Usage
from tests.properties import quick
from tests.service.conftest import Running, Serve
from tests.service.test_bad_input import MISTAKES
from tests.service.test_http_clients import BODY, connect, post, respond

anyio = pytest.mark.anyio
# FastAPI takes both for JSON; only the first is plainly right.
SHORT, LONG = "application/json", "application/vnd.any+json"
DOCUMENTS: list[Any] = [body for _, body, _, _ in MISTAKES if len(str(body)) < 10_000]
DOCUMENTS += [
    {"adapter": "mood", "input": "A film."},
    {"adapter": "mood", "inputs": ["A film.", " ", "Another."]},
    {"adapter": "mood", "inputs": ["x" * 5000, "y"], "parameters": {"truncate": False}},
    {"adapter": "mood@2", "input": "A film.", "caller": "user-17", "stream": False},
    {"adapter": "brief", "inputs": ["A film.", ""], "parameters": {"max_words": 2}},
    {"adapter": "mood", "input": "A film.", "parameters": None},
    {"adapter": "mood", "input": None, "inputs": ["A film."]},
    {"labels": ["a", "b"], "input": "A film."},
    [],
    "mood",
    None,
]
RAW = [b"", b"{", b'{"adapter": "mood", "input": "x", "input": "y"}', b'{"adapter": "mood", "input": NaN}', b"\xff"]


async def answered(service: Running, path: str, kind: str, content: bytes) -> tuple[int, str, Any]:
    response = await service.client.post(path, content=content, headers={"Content-Type": kind})
    body = response.json()
    body.pop("id", None)
    return response.status_code, response.headers["content-type"], body


@anyio
@pytest.mark.parametrize("path", ["/v1/predict", "/v1/classify", "/v1/summarize"])
async def test_a_document_is_answered_or_refused_alike_with_fastapi_and_without(serve: Serve, path: str) -> None:
    async with serve() as service:
        for content in [*RAW, *(json.dumps(document).encode() for document in DOCUMENTS)]:
            short = await answered(service, path, SHORT, content)
            assert short == await answered(service, path, LONG, content), content[:200]


@anyio
async def test_a_key_that_may_not_ask_is_refused_before_its_document_is(serve: Serve, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("only-metrics-key-0123456789 name=m scopes=metrics\n")
    async with serve(api_keys=keys) as service:
        for kind in (SHORT, LONG):
            headers = {"Authorization": "Bearer only-metrics-key-0123456789", "Content-Type": kind}
            for content in (BODY, b"{}"):
                response = await service.client.post("/v1/predict", content=content, headers=headers)
                assert (response.status_code, response.json()["code"]) == (403, "forbidden")


def pieces(*some: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(some)


HEADER = st.builds(
    lambda name, between, value, after: name + between + value + after,
    pieces(b"Host", b"host", b"Content-Length", b"Connection", b"Expect", b"Transfer-Encoding", b"X A", b"", b" X"),
    pieces(b":", b": ", b" : ", b":\t", b""),
    pieces(b"3", b"03", b"+3", b"3, 3", b"a", b"keep-alive", b"close", b"chunked", b"a b\tc", b"\xe9", b"\x00", b""),
    pieces(b"", b" ", b"\t", b"\r"),
)  # fmt: skip


def complete(line: bytes, *headers: bytes) -> dict[str, Any]:
    return {"line": line, "headers": list(headers), "end": b"\r\n", "body": b"abcd", "whole": True}


@quick
@given(
    line=st.builds(
        b" ".join,
        st.tuples(
            pieces(b"POST", b"GET", b"post"),
            pieces(b"/v1/predict", b"/a?b=%20", b"*", b"/\xe9", b"http://a/b", b"/a b"),
            pieces(b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0"),
        ),
    ),
    headers=st.lists(HEADER, max_size=4),
    end=pieces(b"\r\n", b"\n"),
    body=pieces(b"abc", b"", b"abcPOST / HTTP/1.1\r\n"),
    whole=st.booleans(),
)
@example(**complete(b"POST /v1/predict HTTP/1.1", b"Host: a", b"Content-Length: 3"))
@example(**complete(b"POST /a?b=%20 HTTP/1.1", b"HOST:a \t", b"content-length:\t3", b"X-A: a b\tc "))
@example(**complete(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 3", b"Host: b"))
@example(**complete(b"POST / HTTP/1.1", b"Host: a", b"Content-Length: 3", b" folded"))
def test_what_is_plain_is_read_as_h11_reads_it(
    line: bytes, headers: list[bytes], end: bytes, body: bytes, whole: bool
) -> None:
    data = end.join([line, *headers, b"" if whole else b"X-More", b"", body])
    found = plain.read(data)
    if found is None:
        return
    strict = _Strict(h11.SERVER, HEAD_BYTES)
    strict.receive_data(data)
    request = strict.next_event()
    target, fields, rest = found
    assert (request.method, request.target) == (b"POST", target)
    assert list(request.headers) == fields
    assert strict.trailing_data[0] == rest


def test_the_usual_request_is_plain() -> None:
    assert plain.read(post(b"Connection: keep-alive", b"User-Agent: any")) is not None


@anyio
async def test_a_plain_request_may_come_in_pieces_and_others_right_behind_it(serve: Serve) -> None:
    async with serve() as service:
        reader, writer = await connect(service)
        request, other = post(), post(b"Connection: Keep-Alive")  # the second is h11's
        for cut in (10, request.index(BODY), request.index(BODY) + 5, len(request) - 1):
            writer.write(request[:cut])
            await writer.drain()
            await service.client.get("/livez")  # by then the first piece has been read
            writer.write(request[cut:] + other + request)
            assert [(await respond(reader))[0] for _ in range(3)] == [200] * 3
        writer.close()


@anyio
async def test_a_body_that_comes_after_its_refusal_is_no_request(serve: Serve, tmp_path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough-01 name=a\n")
    async with serve(api_keys=keys) as service:
        reader, writer = await connect(service)
        request = post()
        writer.write(request[: -len(BODY)])
        assert (await respond(reader))[0] == 401
        writer.write(BODY + post(b"Authorization: Bearer a-key-that-is-long-enough-01"))
        assert (await respond(reader))[0] == 200
        writer.close()


@quick
@given(
    label=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20),
    score=st.floats(0, 1),
    held=st.booleans(),
    truncated=st.none() | st.just(True),
    summary=st.text(st.characters(codec="utf-8"), max_size=50),
)
def test_json_is_what_the_models_say_without_what_says_nothing(
    label: str, score: float, held: bool, truncated: bool | None, summary: str
) -> None:
    used = AdapterUsed(name="mood", version=1, channel="stable", digest="sha256:0") if held else None
    outputs = [
        Classification(label=label, score=score, scores={label: score}, truncated=truncated),
        Summary(summary=summary, finish_reason="stop"),
    ]
    prediction = Prediction(
        id="pred_1", adapter=used, task="classification", model="m", outputs=outputs, usage=Usage(prompt_tokens=3)
    )
    body = prediction.model_dump(exclude_none=True)
    assert json.loads(_to_json(prediction)) == {**body, "adapter": body.get("adapter")}
