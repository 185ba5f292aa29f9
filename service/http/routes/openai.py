"""What OpenAI's clients speak: models, chats, completions, responses. An adapter is a model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from adapters.reference import Reference
from service.engine.openai import Kind, sequences
from service.errors import BadRequest, ServiceError
from service.http import problems
from service.http.body import JsonRoute, parse
from service.http.decisions import DecisionRequest
from service.http.routes.adapters import current
from service.http.streams import begun, unless_gone
from service.serving.conversing import Reply, reference_of

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": ERROR}}}
    for status, text in (
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error; come back after Retry-After seconds"),
        (503, "server_error; come back after Retry-After seconds"),
        (504, "server_error"),
    )
}
router = APIRouter(route_class=JsonRoute, tags=["OpenAI's API"], responses=ERRORS)


def _document(required: str, example: dict[str, Any]) -> dict[str, Any]:
    """Describe a body. Its fields are OpenAI's, and what vLLM adds to sampling."""
    model = {"type": "string", "description": "an adapter, such as sentiment@3, or the base model's id"}
    schema = {"type": "object", "required": ["model", required], "properties": {"model": model}, "example": example}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _answered(name: str) -> dict[int | str, dict[str, Any]]:
    kinds = {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {"schema": {"type": "string"}}}
    return {200: {"description": f"{name}, in OpenAI's shape", "content": kinds}}


MESSAGES = [{"role": "user", "content": "Name a colour."}]


@router.post(
    "/v1/chat/completions",
    responses=_answered("a chat completion"),
    openapi_extra=_document("messages", {"model": "assistant", "messages": MESSAGES}),
)
async def chat(request: Request) -> Response:
    """Go on with a conversation, in the base model's chat template. `X-Hotswap-Version` says who answered."""
    return await _converse(request, "chat")


@router.post(
    "/v1/completions",
    responses=_answered("a completion"),
    openapi_extra=_document("prompt", {"model": "sentiment@3", "prompt": "Review: A moving film.\nSentiment:"}),
)
async def completions(request: Request) -> Response:
    """Go on with a text as it stands."""
    return await _converse(request, "completions")


@router.post(
    "/v1/responses",
    responses=_answered("a response"),
    openapi_extra=_document("input", {"model": "assistant", "input": "Name a colour."}),
)
async def responses(request: Request) -> Response:
    """Respond; nothing is stored, so that every request brings what was said before."""
    return await _converse(request, "responses")


@router.post("/v1/decisions", response_model=None, responses=_answered("a decision"))
async def decisions(request: Request, body: DecisionRequest) -> Response:
    """Answer questions about a text: whether something is true of it, which choice fits, how it scores."""
    state, caller = request.app.state, request.state.caller
    headers = await state.quota.take(caller.name, caller.rate, len(body.questions))
    model, digest, decision = await unless_gone(request, state.deciding.answer(body, caller))
    return JSONResponse(decision, headers={**headers, "X-Hotswap-Version": model, "X-Hotswap-Digest": digest})


@router.get("/v1/models")
async def models(request: Request) -> dict[str, Any]:
    """The base model, and the adapters that the key may use, loaded or not."""
    state, caller = request.app.state, request.state.caller
    listed = [
        _model(state, entry) for entry in state.routing.catalogue if entry.versions and caller.may_use(entry.name)
    ]
    return {"object": "list", "data": [_base(state), *listed]}


@router.get("/v1/models/{model:path}")
async def model(request: Request, model: str) -> dict[str, Any]:
    """One model: the base, or an adapter by any of its names."""
    state = request.app.state
    named = reference_of(model, state.base.name)
    if named is None:
        return _base(state)
    reference = Reference.parse(named)
    entry = await current(request, reference.name)
    choice = state.routing.choose(reference, request.state.caller.name)
    return _model(state, entry) | {"id": model, "root": str(choice)}


def _base(state: Any) -> dict[str, Any]:
    more = {"max_model_len": state.engine.limits.max_model_len}
    return {"id": state.base.name, "object": "model", "created": 0, "owned_by": "hotswap", **more}


def _model(state: Any, entry: Any) -> dict[str, Any]:
    release = entry.release
    root = f"{entry.name}@{release.stable if release else entry.versions[-1]}"
    created = int(release.at.timestamp()) if release else 0
    return {**_base(state), "id": entry.name, "created": created, "root": root, "parent": state.base.name}


async def _converse(request: Request, kind: Kind) -> Response:
    document = parse(await request.body())
    if not isinstance(document, dict):
        raise BadRequest("The body must be a JSON object.")
    state, caller = request.app.state, request.state.caller
    headers = await state.quota.take(caller.name, caller.rate, sequences(document))
    first, following = await begun(request, state.conversing.answer(kind, document, caller))
    assert isinstance(first, Reply)
    headers |= {"X-Hotswap-Version": first.model, "X-Hotswap-Digest": first.digest}
    if first.document is not None:
        return JSONResponse(first.document, headers=headers)
    headers["X-Accel-Buffering"] = "no"
    return StreamingResponse(_events(following), headers=headers, media_type="text/event-stream")


async def _events(following: AsyncGenerator[Any]) -> AsyncIterator[str]:
    """Yield a stream's events, and what ends it early as one."""
    async with aclosing(following):
        try:
            async for event in following:
                yield event
        except ServiceError as error:
            yield f"data: {problems.openai(error)}\n\n"
