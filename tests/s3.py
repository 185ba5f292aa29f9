"""An S3 server of our own, over real HTTP, that counts what it is asked and can be away."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import httpx


class S3Server:
    """moto's S3 on a free port. Buckets outlive :meth:`stop` and :meth:`start`, as they would a network's failure."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app

        self._moto = DomainDispatcherApplication(create_backend_app)
        self._writing = threading.Lock()
        self._port = 0
        self.requests: list[str] = []
        self.keys: list[str] = []
        self.overloaded = False
        self.refusal = ""
        self.answering = threading.Event()
        self.answering.set()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What an operator sets to use it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
        }

    def start(self) -> None:
        from moto.server import MotoRequestHandler
        from werkzeug.serving import make_server

        class Silent(MotoRequestHandler):
            def log_request(self, *_: Any) -> None:
                """A test's output is its own."""

        self._server = make_server("127.0.0.1", self._port, self._answer, threaded=True, request_handler=Silent)
        self._port = self._server.server_port
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Refuse connections, and end those that are open, from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @contextmanager
    def away(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Accept every request and answer none."""
        self.answering.clear()
        try:
            yield
        finally:
            self.answering.set()

    def make_bucket(self) -> str:
        """Return ``s3://…`` of an empty place in a new bucket."""
        bucket = f"bucket-{uuid4().hex[:12]}"
        httpx.put(f"{self.url}/{bucket}").raise_for_status()
        return f"s3://{bucket}/some/prefix"

    def _answer(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{environ['QUERY_STRING']}")
        self.keys += re.findall(r"Credential=([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        self.answering.wait()
        if self.refusal:
            status = "301 Moved Permanently" if self.refusal == "PermanentRedirect" else "403 Forbidden"
            start_response(status, [("Content-Type", "application/xml")])
            return [f"<Error><Code>{self.refusal}</Code><Message>It is &quot;no&quot;.</Message></Error>".encode()]
        if self.overloaded:
            start_response("503 Slow Down", [])
            return []
        if environ["REQUEST_METHOD"] != "PUT":
            return self._moto(environ, start_response)
        with self._writing:  # S3 looks and writes in one step; moto looks, then writes
            return self._moto(environ, start_response)
