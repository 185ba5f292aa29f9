"""How a failure looks on the wire: problem+json (RFC 9457), and never an exception's text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Send
from ulid import ULID

from adapters.errors import HotswapError
from adapters.validation import explain
from service.errors import BadRequest, InvalidRequest, MethodNotAllowed, NotFound, ServiceError, from_lower

# Answers are for the one who asked, and are what their content type says, whatever a browser makes of them.
SECURITY = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]
SHOWN = 5


def install(app: FastAPI) -> None:
    """Have ``app`` send every failure as a problem document. What cannot be expected is RequestId's to catch."""
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(ServiceError)(_known)
    app.exception_handler(HotswapError)(_known)


def response(error: ServiceError) -> JSONResponse:
    """Return what is sent for ``error``."""
    headers = {**error.headers, **({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})}
    return JSONResponse(error.problem(), error.status, headers, media_type="application/problem+json")


def encoded(error: ServiceError) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body for where no request reaches the application."""
    body = json.dumps(error.problem()).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    return [*headers, *SECURITY, (b"x-request-id", new_request_id())], body


async def send(error: ServiceError, send: Send) -> None:
    """Send ``error`` from outside the application, and close the connection: what came with it is left unread."""
    headers, body = encoded(error)
    given = [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    start = {"type": "http.response.start", "status": error.status}
    await send({**start, "headers": [*headers, *given, (b"connection", b"close")]})
    await send({"type": "http.response.body", "body": body})


def new_request_id() -> bytes:
    return f"req_{ULID()}".encode()


async def _invalid(request: Request, error: RequestValidationError) -> JSONResponse:
    _charge(request)
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return response(BadRequest("The body is not valid JSON."))
    shown = _explained(faults[:SHOWN])
    more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
    return response(InvalidRequest(shown + more))


async def _http(request: Request, error: HTTPException) -> JSONResponse:
    match error.status_code:
        case 404:
            return response(NotFound("See /docs for what there is."))
        case 405:
            refusal = response(MethodNotAllowed("See /docs for what there is."))
            refusal.headers.update(error.headers or {})
            return refusal
        case 400:
            # FastAPI's word for whatever goes wrong where a body is read.
            _charge(request)
            cause = error.__cause__
            return response(cause if isinstance(cause, ServiceError) else BadRequest("The body cannot be read."))
    return response(ServiceError())


def _charge(request: Request) -> None:
    """Count a body that is refused as one text: to read and explain it is work, too."""
    caller = getattr(request.state, "caller", None)
    if caller is not None:
        request.app.state.quota.charge(caller.name, caller.rate)


async def _known(_: Request, error: Exception) -> JSONResponse:
    return response(from_lower(error))


def _explained(faults: Sequence[Any]) -> str:
    if any(fault["loc"] == ("body",) and not isinstance(fault.get("input"), dict) for fault in faults):
        return "the body must be a JSON object, sent with Content-Type: application/json"
    return explain(faults, place=_place)


def _place(location: tuple[Any, ...]) -> str:
    return ".".join(str(part)[:80] for part in location if part != "body") or "body"
