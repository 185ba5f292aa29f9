"""What every request passes: its id, and the limit on its body."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from urllib.parse import quote

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import tracing
from service.errors import BadRequest, BodyTooLarge, NotReady, ServiceError
from service.http import problems
from service.metrics import Metrics

logger = logging.getLogger("hotswap.access")
PROBES = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")
DISCARD_BYTES = 16 << 20
# What a caller may name a request: nothing that could break a log line or a header.
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


class RequestId:
    """Give every response an ``X-Request-Id``, the caller's own if it sent a sane one; count it and log one line."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "").encode("latin-1")
        request_id = given if REQUEST_ID.fullmatch(given) else problems.new_request_id()
        if scope["path"] in PROBES:
            await self._answer(scope, receive, send, request_id, {})
            return
        with tracing.request(scope["method"], headers, request_id.decode()) as known:
            started = time.monotonic()
            try:
                await self._answer(scope, receive, send, request_id, known)
            finally:
                # The route's pattern, not the path: whoever invents paths must not fill the monitoring's memory.
                known["route"] = getattr(scope.get("route"), "path", "none")
                self._metrics.responses.labels(known["route"], known["status"]).inc()
                took = 1000 * (time.monotonic() - started)
                path = quote(scope["path"])  # decoded, it may hold a new line
                line = scope["method"], path, known["status"], took, request_id.decode()
                logger.info("%s %s %s %.0f ms %s", *line, extra={"milliseconds": round(took, 1)})

    async def _answer(
        self, scope: Scope, receive: Receive, send: Send, request_id: bytes, known: dict[str, str]
    ) -> None:
        """Have the request answered, whatever fails; say in ``known`` with which status."""
        known["status"] = "499"

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                known["status"] = str(message["status"])
                headers = [header for header in message["headers"] if header[0] != b"x-request-id"]
                present = dict(headers)
                missing = [header for header in problems.SECURITY if header[0] not in present]
                message["headers"] = [*headers, *missing, (b"x-request-id", request_id)]
            await send(message)

        try:
            await self._app(scope, receive, tagged)
        except Exception:
            # Here and not in Starlette, whose own catch-all sits outside of this: its answers would bear no id.
            logger.exception("%s failed", request_id.decode())
            if known["status"] != "499":
                raise  # the answer has begun; the connection is closed, which says that it is not whole
            await problems.send(ServiceError(), tagged, scope["path"])
        except asyncio.CancelledError:
            # The time to drain is over. Left alone, uvicorn would blame the service's code (500) for it.
            if known["status"] != "499":
                raise
            await problems.send(NotReady("The service stops; ask again."), tagged, scope["path"])


class BodyLimit:
    """Refuse a body that is too large (413), announced or not, or too slow (400), and keep none of it."""

    def __init__(
        self, app: ASGIApp, limit: int, seconds: float, uploads: Mapping[str, tuple[int, float]] | None = None
    ) -> None:
        """``uploads`` are paths with limits of their own, in bytes and seconds."""
        self._app, self._usual, self._uploads = app, (limit, seconds), uploads or {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit, seconds = self._uploads.get(scope["path"], self._usual)
        give_up = asyncio.get_running_loop().time() + seconds
        headers = dict(scope["headers"])
        if int(headers.get(b"content-length", b"0")) > limit:
            # Who asks first (Expect: 100-continue) has sent nothing yet, and must not be bidden to.
            await self._refuse(_too_large(limit), receive, send, give_up, scope["path"], more=b"expect" not in headers)
            return
        read, more = 0, True
        refusal: ServiceError | None = None

        async def counted() -> Message:
            nonlocal read, refusal, more
            if not more:  # whoever receives waits for the client to hang up, as long as it takes
                return await receive()
            try:
                async with asyncio.timeout_at(give_up):
                    message = await receive()
            except TimeoutError:
                refusal = BadRequest(f"The body did not arrive within {seconds:g} s.")
                raise refusal from None
            read, more = read + len(message.get("body", b"")), message.get("more_body", False)
            if read > limit:
                refusal = _too_large(limit)
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
            await self._refuse(refusal, receive, send, give_up, scope["path"], more)

    async def _refuse(
        self, error: ServiceError, receive: Receive, send: Send, give_up: float, path: str, more: bool
    ) -> None:
        # Most clients read the answer only after the last byte is sent; hung up on, they never see it. So a
        # bounded rest is taken and thrown away.
        discarded = 0
        with suppress(TimeoutError):
            async with asyncio.timeout_at(give_up):
                while more and discarded < DISCARD_BYTES:
                    message = await receive()
                    discarded += len(message.get("body", b""))
                    more = message["type"] == "http.request" and message.get("more_body", False)
        await problems.send(error, send, path)


def _too_large(limit: int) -> ServiceError:
    return BodyTooLarge(f"The limit is {limit} bytes; send fewer texts at once.")
