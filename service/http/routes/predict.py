"""Ask an adapter: ``/v1/predict``, and its typed twins."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response
from sse_starlette import EventSourceResponse

from adapters.tasks import Kind
from service.errors import InvalidRequest, ServiceError
from service.http.body import JsonRoute
from service.http.direct import Address
from service.http.keys import Caller
from service.http.quota import Quota
from service.http.schemas import ClassifyRequest, Inputs, Prediction, PredictRequest, Problem, SummarizeRequest
from service.http.streams import begun, unless_gone
from service.serving.answering import Answering

T = TypeVar("T")
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/problem+json": {"schema": Problem.model_json_schema()}}}
    for status, text in (
        (400, "bad_request"),
        (401, "unauthenticated"),
        (403, "forbidden"),
        (404, "adapter_not_found, version_not_found, prediction_not_found"),
        (409, "generation_conflict"),
        (413, "body_too_large"),
        (422, "invalid_request, task_mismatch, input_too_long"),
        (429, "overloaded, rate_limited; come back after Retry-After seconds"),
        (503, "not_ready, adapter_failed, engine_down, feedback_unavailable; come back after Retry-After seconds"),
        (504, "deadline_exceeded"),
    )
}
ANSWER: dict[int | str, dict[str, Any]] = {200: {"model": Prediction}}
EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {"event": {"enum": ["delta", "done", "error"]}, "data": {"type": "string", "description": "JSON"}},
}
STREAM: dict[int | str, dict[str, Any]] = {
    200: {"model": Prediction, "content": {"text/event-stream": {"schema": EVENT}}}
}
router = APIRouter(
    route_class=JsonRoute, tags=["prediction"], responses={status: ERRORS[status] for status in ERRORS if status != 409}
)


@router.post("/v1/predict", response_model=None, responses=STREAM)
async def predict(request: Request, body: PredictRequest) -> Response:
    """Ask an adapter to do its task: the answer names the exact version that gave it."""
    if body.stream:
        return await _stream(request, "predict", body, None)
    return await _answer(request, "predict", body, None)


@router.post("/v1/classify", response_model=None, responses=ANSWER)
async def classify(request: Request, body: ClassifyRequest) -> Response:
    """Classify with an adapter, or zero-shot with `labels` of your own and the base model."""
    return await _answer(request, "classify", body, "classification")


@router.post("/v1/summarize", response_model=None, responses=STREAM)
async def summarize(request: Request, body: SummarizeRequest) -> Response:
    """Summarize with an adapter; with `stream`, as server-sent events: `delta`, then `done` (or `error`)."""
    if body.stream:
        return await _stream(request, "summarize", body, "summarization")
    return await _answer(request, "summarize", body, "summarization")


ADDRESSES = {
    address.path: address
    for address in (
        Address("/v1/predict", "predict", PredictRequest, predict),
        Address("/v1/classify", "predict", ClassifyRequest, classify),
        Address("/v1/summarize", "predict", SummarizeRequest, summarize),
    )
}


async def _answer(request: Request, route: str, body: PredictRequest | ClassifyRequest, kind: Kind | None) -> Response:
    headers = await take(request, body)
    answering, caller = _answering(request), _caller(request)
    if isinstance(body, ClassifyRequest) and body.adapter is None:
        work = answering.zero_shot(route, body, body.labels or [])
    else:
        work = answering.predict(route, body, body.adapter or "", caller, kind)
    return Response(_to_json(await unless_gone(request, work)), headers=headers, media_type="application/json")


async def take(request: Request, body: Inputs) -> dict[str, str]:
    """Count the texts against the caller's rate; return what is left as headers."""
    caller = _caller(request)
    quota: Quota = request.app.state.quota
    return await quota.take(caller.name, caller.rate, len(body.texts))


async def _stream(request: Request, route: str, body: PredictRequest, kind: Kind | None) -> Response:
    if body.input is None:
        raise InvalidRequest("'stream' takes one 'input'.")
    headers = await take(request, body)
    stream = _answering(request).stream(route, body, body.adapter, _caller(request), kind)
    first, following = await begun(request, stream)
    return EventSourceResponse(_events(first, following), headers={"X-Accel-Buffering": "no", **headers})


async def _events(first: tuple[str, Any], following: AsyncGenerator[tuple[str, Any]]) -> AsyncIterator[dict[str, str]]:
    """Yield the pieces as events, ``done`` or ``error`` last."""
    async with aclosing(following):
        yield _event(*first)
        try:
            async for piece in following:
                yield _event(*piece)
        except ServiceError as error:
            yield _event("error", error)


def _event(event: str, content: Any) -> dict[str, str]:
    match event:
        case "delta":
            data = json.dumps({"delta": content})
        case "error":
            data = json.dumps(content.problem())
        case _:
            data = _to_json(content)
    return {"event": event, "data": data}


def _to_json(prediction: Prediction) -> str:
    """Leave out what says nothing (``truncated``), but not a null adapter, which says: the base model."""
    body = prediction.model_dump_json(exclude_none=True)
    return body if prediction.adapter else f'{body[:-1]},"adapter":null}}'


def _answering(request: Request) -> Answering:
    answering: Answering = request.app.state.answering
    return answering


def _caller(request: Request) -> Caller:
    caller: Caller = request.state.caller
    return caller
