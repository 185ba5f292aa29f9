"""The short way to an answer: past FastAPI, whose general way takes longer than all of our own code.

Only what is right in every respect is answered here, by the functions and the models that FastAPI has. Whatever else
comes to the same addresses is passed on as it came, and refused in the one place that explains refusals.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import HotswapError
from service.errors import ServiceError, from_lower
from service.http import problems
from service.http.body import parse
from service.http.keys import Scope as KeyScope

Answer = Callable[[Request, Any], Awaitable[Response]]


class Address:
    """A path, who may ask there, and the function and model that answer."""

    def __init__(self, path: str, scope: KeyScope, model: type[BaseModel], answer: Answer) -> None:
        self.path, self.scope, self.answer = path, scope, answer
        self._validate = model.__pydantic_validator__.validate_python

    def read(self, body: bytes) -> Any:
        """Return what ``body`` asks. Raises :class:`ServiceError`, :class:`ValidationError`."""
        return self._validate(parse(body))


class Direct:
    """Answer at ``addresses``; pass on everything else, and what is not plainly right."""

    def __init__(self, app: ASGIApp, addresses: Mapping[str, Address]) -> None:
        self._app, self._addresses = app, addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        address = self._addresses.get(scope["path"]) if scope["type"] == "http" else None
        if (
            address is None
            or scope["method"] != "POST"
            or not _is_json(scope)
            or not scope["state"]["caller"].may(address.scope)
        ):
            await self._app(scope, receive, send)
            return
        body = _Body(receive)
        try:
            content = address.read(await body.read())
        except (ServiceError, ValidationError, _Gone):
            await self._app(scope, body.again, send)
            return
        scope["route"] = address
        try:
            response = await address.answer(Request(scope, receive), content)
        except (ServiceError, HotswapError) as error:
            response = problems.response(from_lower(error), scope["path"])
        await response(scope, receive, send)


def _is_json(scope: Scope) -> bool:
    kind: bytes = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    return kind == b"application/json" or kind.partition(b";")[0].strip().lower() == b"application/json"


class _Gone(Exception):
    """The client left before its body was here."""


class _Body:
    """A body that can be received again, up to what went wrong with it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message | ServiceError] = []

    async def read(self) -> bytes:
        while True:
            try:
                message = await self._receive()
            except ServiceError as error:
                self._messages.append(error)
                raise
            self._messages.append(message)
            if message["type"] != "http.request":
                raise _Gone
            if not message.get("more_body"):
                break
        return b"".join(each.get("body", b"") for each in self._messages if not isinstance(each, ServiceError))

    async def again(self) -> Message:
        if not self._messages:
            return await self._receive()
        message = self._messages.pop(0)
        if isinstance(message, ServiceError):
            raise message
        return message
