"""JSON bodies: read once, strictly, and never for longer than a moment.

Parsing and validating happen in the event loop, where everybody else waits meanwhile.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import BadRequest, InvalidRequest

VALUES = 5_000
DEPTH = 32
STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
BRACKET = re.compile(r"[\[\]{}]")


def parse(body: bytes) -> Any:
    """Return what ``body`` says. Raises :class:`BadRequest` and :class:`InvalidRequest`."""
    try:
        text = body.decode()
    except UnicodeDecodeError:
        raise BadRequest("The body is not valid JSON in UTF-8.") from None
    _bounded(text)
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    except ValueError:  # a number of thousands of digits is one, too
        raise BadRequest("The body is not valid JSON.") from None


class JsonRoute(APIRoute):
    """A route whose JSON is read by :func:`parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            return await handler(_JsonRequest(request.scope, request.receive))

        return handle


class _JsonRequest(Request):
    async def json(self) -> Any:
        return parse(await self.body())


def _bounded(text: str) -> None:
    """Refuse what has too many values, or too deep ones, before any of them is built."""
    if text.count(",") + text.count("[") + text.count("{") <= DEPTH:
        return
    bare = STRING.sub("", text)
    depth = 0
    for bracket in islice(BRACKET.finditer(bare), 2 * VALUES):
        depth += 1 if bracket[0] in "[{" else -1
        if depth > DEPTH:
            raise BadRequest(f"The body is nested deeper than {DEPTH} levels.")
    if bare.count(",") + bare.count("[") + bare.count("{") > VALUES:
        raise InvalidRequest(f"The body has more than {VALUES:,} values; send less at once.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise BadRequest("The body has the same field twice.")
    return fields


def _no_number(constant: str) -> Any:
    raise BadRequest(f"The body is not valid JSON: {constant} is no JSON number.")
