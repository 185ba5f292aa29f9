"""Plain requests, read and answered without h11, whose general way takes longer than all of our own code.

Plain is a POST of HTTP/1.1 whose head came at once, is short, has one host and one length, and nothing that asks for
other handling. Everything else is h11's: what is refused is refused in one place.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, RequestResponseCycle

if TYPE_CHECKING:
    from service.http.connection import Connection

MOST_BYTES, MOST_HEADERS, MOST_WAITING = 8 << 10, 50, 64 << 10
TARGET = re.compile(rb"POST (/[\x21-\x7e]*) HTTP/1\.1\r\n")
FIELDS = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]+:[\t\x20-\x7e]*\r\n)+")
LENGTH = re.compile(rb"[0-9]{1,9}")
ONCE = (b"host", b"content-length")
# Who sends these wants something of the connection itself; keeping it is what is done anyway.
UNUSUAL = {b"connection", b"expect", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
KEEP = (b"connection", b"keep-alive")
CLOSE = (b"connection", b"close")
Headers = list[tuple[bytes, bytes]]


def read(data: bytes) -> tuple[bytes, Headers, bytes] | None:
    """Return target, headers and what follows them, where ``data`` begins with the head of a plain request."""
    target, end = TARGET.match(data), data.find(b"\r\n\r\n", 0, MOST_BYTES)
    if target is None or end < 0 or not FIELDS.fullmatch(data, target.end(), end + 2):
        return None
    headers = []
    for line in data[target.end() : end].split(b"\r\n"):
        name, _, value = line.partition(b":")
        headers.append((name.lower(), value.strip(b" \t")))
    names = [name for name, _ in headers]
    usual = all(header == KEEP for header in headers if header[0] in UNUSUAL)
    if not usual or len(names) > MOST_HEADERS or any(names.count(name) != 1 for name in ONCE):
        return None
    if not LENGTH.fullmatch(dict(headers)[b"content-length"]):
        return None
    return target[1], headers, data[end + 4 :]


class Exchange(RequestResponseCycle):
    """A plain request and its answer, on a connection that h11 sees nothing of meanwhile."""

    def __init__(self, connection: Connection, target: bytes, headers: Headers) -> None:
        raw_path, _, query = target.partition(b"?")
        self.missing = int(dict(headers)[b"content-length"])  # bytes of the body that are still to come
        super().__init__(
            scope={
                "type": "http",
                "asgi": {"version": connection.asgi_version, "spec_version": "2.3"},
                "http_version": "1.1",
                "server": connection.server,
                "client": connection.client,
                "scheme": connection.scheme or "http",
                "method": "POST",
                "root_path": connection.root_path,
                "path": connection.root_path + unquote(raw_path.decode("ascii")),
                "raw_path": connection.root_path.encode("ascii") + raw_path,
                "query_string": query,
                "headers": headers,
                "state": connection.app_state.copy(),
            },
            conn=connection.conn,
            transport=connection.transport,
            flow=connection.flow,
            logger=connection.logger,
            access_logger=connection.access_logger,
            access_log=False,
            default_headers=connection.server_state.default_headers,
            message_event=asyncio.Event(),
            on_response=connection.on_response_complete,
        )
        self._head: bytes | None = None
        self._chunked = False

    def take(self, data: bytes) -> bytes:
        """Take what belongs to the body; return the rest. What comes after the answer is nobody's any more."""
        rest = data[self.missing :]
        if not self.response_complete:
            self.body += data[: self.missing]
            if len(self.body) > MOST_WAITING:
                self.flow.pause_reading()
        self.missing -= len(data) - len(rest)
        self.more_body = self.missing > 0
        self.message_event.set()
        return rest

    async def send(self, message: Any) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started and message["type"] == "http.response.start":
            self._begin(message["status"], [*self.default_headers, *message.get("headers", ())])
        elif self.response_started and not self.response_complete and message["type"] == "http.response.body":
            self._go_on(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"Unexpected ASGI message '{message['type']}'.")

    def _begin(self, status: int, headers: Headers) -> None:
        self.response_started = True
        self.keep_alive = self.keep_alive and CLOSE not in headers
        self._chunked = not any(name == b"content-length" for name, _ in headers)
        if self._chunked:
            headers.append((b"transfer-encoding", b"chunked"))
        fields = b"".join([b"%b: %b\r\n" % header for header in headers])
        if not FIELDS.fullmatch(fields):
            raise RuntimeError("A header of the answer is none.")
        self._head = b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, STATUS_PHRASES[status], fields)
        if self._chunked:  # what is streamed begins at once; else head and body are one packet
            self.transport.write(self._head)
            self._head = None

    def _go_on(self, body: bytes, *, more: bool) -> None:
        if self._chunked:
            body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + (b"" if more else b"0\r\n\r\n")
        self.transport.write((self._head or b"") + body)
        self._head = None
        if more:
            return
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()
