"""How a failure looks on the wire: problem+json (RFC 9457), and never an exception's text."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from adapters.errors import HotswapError
from service.errors import BadRequest, InvalidRequest, MethodNotAllowed, NotFound, ServiceError, from_lower


def install(app: FastAPI) -> None:
    """Have ``app`` send every failure as a problem document."""
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_http)
    app.exception_handler(ServiceError)(_known)
    app.exception_handler(Exception)(_known)
    app.exception_handler(HotswapError)(_known)


def response(error: ServiceError) -> JSONResponse:
    """Return what is sent for ``error``."""
    headers = {**error.headers, **({"WWW-Authenticate": "Bearer"} if error.status == 401 else {})}
    return JSONResponse(error.problem(), error.status, headers, media_type="application/problem+json")


async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    faults = error.errors()
    if any(fault["type"] == "json_invalid" for fault in faults):
        return response(BadRequest("The body is not valid JSON."))
    return response(InvalidRequest("; ".join(_fault(fault) for fault in faults[:5])))


async def _http(_: Request, error: HTTPException) -> JSONResponse:
    match error.status_code:
        case 404:
            return response(NotFound("See /docs for what there is."))
        case 405:
            refusal = response(MethodNotAllowed("See /docs for what there is."))
            refusal.headers.update(error.headers or {})
            return refusal
        case 400:
            return response(BadRequest("The body is not valid JSON in UTF-8."))
    return response(ServiceError())


async def _known(_: Request, error: Exception) -> JSONResponse:
    return response(from_lower(error))


def _fault(fault: Any) -> str:
    if fault["loc"] == ("body",) and not isinstance(fault.get("input"), dict):
        return "the body must be a JSON object, sent with Content-Type: application/json"
    where = ".".join(str(part) for part in fault["loc"] if part != "body") or "body"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')}"
