"""What every request passes: its id, and the limit on its body."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from contextlib import suppress
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from ulid import ULID

from service.errors import BadRequest, BodyTooLarge, ServiceError
from service.metrics import Metrics

logger = logging.getLogger("hotswap.access")
DISCARD_BYTES = 16 << 20
# What a caller may name a request: nothing that could break a log line or a header.
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

# Answers are for the one who asked, and are what their content type says, whatever a browser makes of them.
SECURITY = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff")]


class RequestId:
    """Give every response an ``X-Request-Id``, the caller's own if it sent a sane one; count it and log one line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = dict(scope["headers"]).get(b"x-request-id", b"")
        request_id = asked if REQUEST_ID.fullmatch(asked) else f"req_{ULID()}".encode()
        started, status = time.monotonic(), 499

        async def tagged(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = dict(message["headers"])
                missing = [header for header in SECURITY if header[0] not in given]
                message["headers"] = [*message["headers"], *missing, (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        finally:
            if scope["path"] not in ("/livez", "/readyz", "/metrics"):
                # The route's pattern, not the path: whoever invents paths must not fill the monitoring's memory.
                route = getattr(scope.get("route"), "path", "none")
                self._metrics.responses.labels(route, str(status)).inc()
                took = 1000 * (time.monotonic() - started)
                path = quote(scope["path"])  # decoded, it may hold a new line
                logger.info("%s %s %d %.0f ms %s", scope["method"], path, status, took, request_id.decode())


class BodyLimit:
    """Refuse a body that is too large (413), announced or not, or too slow (400), and keep none of it."""

    def __init__(self, app: ASGIApp, limit: int, seconds: float) -> None:
        self._app, self._limit, self._seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        give_up = asyncio.get_running_loop().time() + self._seconds
        too_large = BodyTooLarge(f"The limit is {self._limit} bytes; send fewer texts at once.")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._limit:
            more = int(announced) > 0 if announced.isdigit() else False
            await self._refuse(too_large, receive, send, give_up, more)
            return
        read, more = 0, True
        refusal: ServiceError | None = None

        async def counted() -> Message:
            nonlocal read, refusal, more
            try:
                # Once the body is there, whoever receives waits for the client to hang up, as long as it takes.
                async with asyncio.timeout_at(give_up if more else None):
                    message = await receive()
            except TimeoutError:
                refusal = BadRequest(f"The body did not arrive within {self._seconds:g} s.")
                raise refusal from None
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
            if read > self._limit:
                refusal = too_large
            if refusal:
                raise refusal
            return message

        async def silenced(message: Message) -> None:
            # The application takes the exception for a body it cannot parse: its answer is not sent.
            if not refusal:
                await send(message)

        with suppress(ServiceError):
            await self._app(scope, counted, silenced)
        if refusal:
            await self._refuse(refusal, receive, send, give_up, more)

    async def _refuse(self, error: ServiceError, receive: Receive, send: Send, give_up: float, more: bool) -> None:
        # Most clients read the answer only after the last byte is sent; hung up on, they never see it. So a
        # bounded rest is taken and thrown away.
        discarded = 0
        with suppress(TimeoutError):
            async with asyncio.timeout_at(give_up):
                while more and discarded < DISCARD_BYTES:
                    message = await receive()
                    discarded += len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
        body = json.dumps(error.problem()).encode()
        headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
        # What is still unread makes the connection unfit for another request.
        headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": error.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
