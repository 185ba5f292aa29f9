"""What is right goes a short way, past FastAPI: it is the same service, whichever way a request goes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.routes.predict import _to_json
from service.http.schemas import AdapterUsed, Classification, Prediction, Summary, Usage
from tests.properties import quick
from tests.service.conftest import Running, Serve
from tests.service.test_bad_input import MISTAKES
from tests.service.test_http_clients import BODY

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
