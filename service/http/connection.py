"""Connections: what is read of HTTP/1.1, how much of it, how long, and from how many at once.

uvicorn's h11 parser, whatever else is installed. The other one (httptools) has no limit on heads, takes the body of a
request that offers an upgrade for another protocol, and sends chunks to HTTP/1.0.
"""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import h11
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from service.errors import BadRequest, HeadTooLarge, TooManyConnections
from service.http import problems
from service.processes.accepting import Loads, SharingServer
from service.settings import Settings

PROBES = ("/livez", "/readyz")
HEAD_BYTES = 64 << 10
HEADERS = 100
# A few more may ask how the server is when no other connection is taken.
SPARE = 16
OTHER_FILES = 256


def server(
    app: ASGIApp,
    settings: Settings,
    loads: Loads | None = None,
    on_leaving: Callable[[], None] = lambda: None,
) -> uvicorn.Server:
    """Return what serves ``app``, by ``settings``, on the sockets it is run with; with ``loads`` beside others, whom
    ``on_leaving`` tells that it is to end."""
    _allow_files(settings.max_connections + SPARE + OTHER_FILES)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http=Connection,
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=round(settings.keep_alive_seconds),
        timeout_graceful_shutdown=round(settings.drain_seconds),
    )
    return SharingServer(config, loads, on_leaving) if loads else uvicorn.Server(config)


def _allow_files(needed: int) -> None:
    """Raise the soft limit on open files, which is 1,024 on most systems: a connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class Connection(H11Protocol):
    """One client. Only heads and responses that nobody takes are timed here: the body is in
    :class:`~service.http.middleware.BodyLimit`, and idle connections between requests are uvicorn's own."""

    head_seconds = 20.0
    stall_seconds = 60.0
    linger_seconds = 2.0
    _timer: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None
    _active = 0.0
    _limit: int | None = None
    _refused = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.conn = _Strict(h11.SERVER, HEAD_BYTES)
        # uvicorn would refuse all alike, in plain text.
        self._limit, self.limit_concurrency = self.limit_concurrency, None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._active = self.loop.time()
        if self._limit is not None and len(self.connections) > self._limit:
            self._make_room(self._limit)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._active = self.loop.time()
        super().data_received(data)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stall = self._stall or self.loop.call_later(self.stall_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, as a problem document, and close."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        if self.cycle is not None and not self.cycle.response_complete:
            # It was a request, until its body went wrong: whoever answers it is told that the client has left.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state is h11.IDLE or self.conn.our_state is h11.SEND_RESPONSE:
            error = HeadTooLarge() if status == 431 else BadRequest("This is not HTTP/1.1.")
            _, headers, body = problems.encoded(error)
            response = h11.Response(
                status_code=error.status,
                reason=STATUS_PHRASES[error.status],
                headers=[*headers, (b"connection", b"close")],
            )
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event))
        # Closed with something unread, the connection would be reset, and the answer lost with it.
        self._refused = True
        self._stop()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._timer = self.loop.call_later(self.linger_seconds, self.transport.close)

    def _should_upgrade(self) -> bool:
        return False  # an upgrade is an offer (RFC 9110, 7.8): Java's client makes one with its first request

    def _idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _make_room(self, limit: int) -> None:
        """Close the connection that has asked nothing for longest; if all are at work, refuse this one."""
        idle = [
            other for other in self.connections if isinstance(other, Connection) and other is not self and other._idle()
        ]
        if idle:
            longest = min(idle, key=_active)
            self.connections.discard(longest)
            longest.transport.close()
        elif len(self.connections) > limit + SPARE:
            self.transport.abort()
        else:
            self.app = _Full(self.app)

    def _time_head(self) -> None:
        if self._refused:
            return
        if not self._idle():
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _active(connection: Connection) -> float:
    return connection._active


class _Strict(h11.Connection):
    """h11, and what it leaves to others."""

    def next_event(self) -> Any:
        if self.their_state is h11.IDLE and self.trailing_data[0][:2] == b"\r\n":
            self._receive_buffer.maybe_extract_at_most(2)  # old clients end a body with an empty line
        try:
            event = super().next_event()
        except ValueError:  # a Content-Length of more digits than Python reads
            raise h11.RemoteProtocolError("bad Content-Length") from None
        return _checked(event) if isinstance(event, h11.Request) else event


def _checked(request: h11.Request) -> h11.Request:
    """Return ``request`` with its target as a path. Raises :class:`h11.RemoteProtocolError`."""
    if request.http_version not in (b"1.0", b"1.1"):
        raise h11.RemoteProtocolError("another HTTP")
    size = len(request.target) + sum(len(name) + len(value) for name, value in request.headers)
    if size > HEAD_BYTES or len(request.headers) > HEADERS:
        raise h11.RemoteProtocolError("head too large", error_status_hint=431)
    names = {name for name, _ in request.headers}
    if {b"content-length", b"transfer-encoding"} <= names:
        # Two lengths: a proxy in front may go by the other one, and take the rest for another request.
        raise h11.RemoteProtocolError("two lengths")
    if request.target.startswith(b"/") or request.target == b"*":
        return request
    return _origin_form(request)


def _origin_form(request: h11.Request) -> h11.Request:
    """Return a proxy's request (``GET http://host/path``) as one of the server's own: the target's host counts."""
    try:
        target = urlsplit(request.target.decode("ascii"))
    except ValueError:
        target = urlsplit("")
    if target.scheme not in ("http", "https") or not target.netloc:
        raise h11.RemoteProtocolError("bad target")
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    headers = [(name, value) for name, value in request.headers if name != b"host"]
    headers.append((b"host", target.netloc.encode()))
    return h11.Request(method=request.method, target=path, headers=headers, http_version=request.http_version)


class _Full:
    """Answer probes only: every connection is taken."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            await self._app(scope, receive, send)
        else:
            await problems.send(
                TooManyConnections("Come back later, or keep fewer connections open."), send, scope["path"]
            )
