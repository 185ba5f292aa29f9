"""How a failure looks on the wire: problem+json (RFC 9457), and never an exception's text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match
from starlette.types import Send
from ulid import ULID

from adapters.errors import HotswapError
from adapters.validation import explain
from service.errors import BadRequest, InvalidRequest, MethodNotAllowed, NotFound, ServiceError, from_lower

# Answers are for the one who asked, and are what their content type says, whatever a browser makes of them.
SECURITY = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
SHOWN = 5
# Where errors have OpenAI's shape, its types and, where it has one for the same, its codes.
OPENAI = (
    "/v1/chat/",
    "/v1/completions",
    "/v1/responses",
    "/v1/models",
    "/v1/decisions",
    "/v1/files",
    "/v1/fine_tuning",
)
TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
CODES = {
    **{"unauthenticated": "invalid_api_key", "rate_limited": "rate_limit_exceeded"},
    **{"adapter_not_found": "model_not_found", "version_not_found": "model_not_found"},
    "input_too_long": "context_length_exceeded",
}


def install(app: FastAPI) -> None:
    """Have ``app`` send every failure as a problem document. What cannot be expected is RequestId's to catch."""
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(ServiceError)(_known)
    app.exception_handler(HotswapError)(_known)


def response(error: ServiceError, path: str) -> Response:
    """Return what is sent for ``error`` at ``path``."""
    status, kind, body = _written(error, path)
    headers = {**error.headers, **({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})}
    return Response(body, status, headers, media_type=kind)


def encoded(error: ServiceError, path: str = "") -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body for where no request reaches the application."""
    status, kind, body = _written(error, path)
    headers = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
    return status, [*headers, *SECURITY, (b"x-request-id", new_request_id())], body.encode()


def _written(error: ServiceError, path: str) -> tuple[int, str, str]:
    """Return status, content type and body: each API's clients know an error by its own shape."""
    if path.startswith(OPENAI):
        return 400 if error.status == 422 else error.status, "application/json", openai(error)
    if path == "/v2" or path.startswith("/v2/"):
        return 400 if error.status == 422 else error.status, "application/json", json.dumps({"error": _told(error)})
    return error.status, "application/problem+json", json.dumps(error.problem())


def openai(error: ServiceError) -> str:
    """Return ``error`` as OpenAI's clients read it."""
    kind = TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    code = CODES.get(error.code, error.code)
    return json.dumps({"error": {"message": _told(error), "type": kind, "param": error.param, "code": code}})


def _told(error: ServiceError) -> str:
    told = error.problem()
    return f"{told['title']}: {told['detail']}" if "detail" in told else str(told["title"])


async def send(error: ServiceError, send: Send, path: str) -> None:
    """Send ``error`` from outside the application, and close the connection: what came with it is left unread."""
    status, headers, body = encoded(error, path)
    given = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    start = {"type": "http.response.start", "status": status}
    await send({**start, "headers": [*headers, *given, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def new_request_id() -> bytes:
    return f"req_{ULID()}".encode()


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    await _charge(request)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return response(BadRequest("The body is not valid JSON."), request.url.path)
    shown = _explained(faults[:SHOWN])
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    field = next((str(part) for part in faults[0]["loc"][1:2]), None)
    return response(InvalidRequest(shown + more, param=field), request.url.path)


async def _http(request: Request, error: HTTPException) -> Response:
    match error.status_code:
        case 404:
            return response(NotFound("See /docs for what there is."), request.url.path)
        case 405:
            refusal = response(MethodNotAllowed("See /docs for what there is."), request.url.path)
            refusal.headers["Allow"] = ", ".join(sorted(_methods(request)))
            return refusal
        case 400:
            # FastAPI's word for whatever goes wrong where a body is read.
            await _charge(request)
            cause = error.__cause__
            return response(
                cause if isinstance(cause, ServiceError) else BadRequest("The body cannot be read."), request.url.path
            )
    return response(ServiceError(), request.url.path)


def _methods(request: Request) -> set[str]:
    """Return all methods that an address takes: each of its routes knows its own alone."""
    routes = [route for route in request.app.routes if route.matches(request.scope)[0] is not Match.NONE]
    return {method for route in routes for method in getattr(route, "methods", None) or ()}


async def _charge(request: Request) -> None:
    """Count a body that is refused as one text: to read and explain it is work, too."""
    caller = getattr(request.state, "caller", None)
    if caller is not None:
        await request.app.state.quota.charge(caller.name, caller.rate)


async def _known(request: Request, error: Exception) -> Response:
    return response(from_lower(error), request.url.path)


def _explained(faults: Sequence[Any]) -> str:
    if any(fault["loc"] == ("body",) and not isinstance(fault.get("input"), dict) for fault in faults):
        return "the body must be a JSON object, sent with Content-Type: application/json"
    return explain(faults, place=_place)


def _place(location: tuple[Any, ...]) -> str:
    return ".".join(str(part)[:80] for part in location if part != "body") or "body"
