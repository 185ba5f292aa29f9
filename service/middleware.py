"""What every request passes: its id, and the limit on its body."""

from __future__ import annotations

import json
import logging
import re
import time
from contextlib import suppress
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from service.errors import BodyTooLarge

logger = logging.getLogger("hotswap.access")
DISCARD_BYTES = 16 << 20
# What a caller may name a request: nothing that could break a log line or a header.
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class RequestId:
    """Give every response an ``X-Request-Id``, the caller's own if it sent a sane one, and log one line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = given if REQUEST_ID.fullmatch(given) else f"req_{ULID()}".encode()
        started, status = time.monotonic(), 499

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        finally:
            if scope["path"] not in ("/livez", "/readyz", "/metrics"):
                took = 1000 * (time.monotonic() - started)
                path = quote(scope["path"])  # decoded, it may hold a new line
                logger.info("%s %s %d %.0f ms %s", scope["method"], path, status, took, request_id.decode())


class BodyLimit:
    """Answer 413 to a body that is too large, announced or not, and keep none of it."""

    def __init__(self, app: ASGIApp, limit: int) -> None:
        self._app, self._limit = app, limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._limit:
            await self._refuse(receive, send, more=int(announced) > 0 if announced.isdigit() else False)
            return
        read, over, more = 0, False, True

        async def counted() -> Message:
            nonlocal read, over, more
            message = await receive()
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
            over = over or read > self._limit
            if over:
                raise BodyTooLarge
            return message

        async def silenced(message: Message) -> None:
            # The application takes the exception for a body it cannot parse: its answer is not sent.
            if not over:
                await send(message)

        with suppress(BodyTooLarge):
            await self._app(scope, counted, silenced)
        if over:
            await self._refuse(receive, send, more)

    async def _refuse(self, receive: Receive, send: Send, more: bool) -> None:
        # Most clients read the answer only after the last byte is sent; hung up on, they never see it. So a
        # bounded rest is taken and thrown away.
        discarded = 0
        while more and discarded < DISCARD_BYTES:
            message = await receive()
            discarded += len(message.get("body", b""))
            more = message["type"] == "http.request" and message.get("more_body", False)
        body = json.dumps(
            BodyTooLarge(f"The limit is {self._limit} bytes; send fewer texts at once.").problem()
        ).encode()
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
        # What is still unread makes the connection unfit for another request.
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": BodyTooLarge.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
