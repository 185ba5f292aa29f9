"""The load test itself, on a stub server: what it accepts, and what it exits with status 1 for."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count

import pytest

from loadtests import run_locust

OUTPUTS = {
    "/v1/classify": {"label": "positive", "score": 0.9, "scores": {"positive": 0.9, "negative": 0.1}},
    "/v1/summarize": {"summary": "copies changed files", "finish_reason": "stop"},
}


class Stub(BaseHTTPRequestHandler):
    """Answers as the contract says; a test's ``change`` edits the answer: (status, headers, body)."""

    protocol_version = "HTTP/1.1"
    change: Callable[[str, dict, dict], tuple[int, dict, dict]]

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, _, version = asked["adapter"].partition("@")
        body = {"adapter": {"name": name, "version": int(version or 3)}, "outputs": [OUTPUTS[self.path]]}
        status, headers, body = type(self).change(self.path, asked, body)
        if self.headers.get("Authorization") != "Bearer secret":
            status = 401
        content = json.dumps(body).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A caller that was stopped in the middle of an answer is no news."""


@contextmanager
def stub(change: Callable[[str, dict, dict], tuple[int, dict, dict]]) -> Iterator[str]:
    handler = type("Changed", (Stub,), {"change": staticmethod(change)})
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def load(change: Callable[[str, dict, dict], tuple[int, dict, dict]], **environment: str) -> tuple[int, str]:
    with stub(change) as host:
        done = run_locust(host, 2, {"HOTSWAP_API_KEY": "secret", "HOTSWAP_LOAD_RATE": "50"} | environment)
    return done.returncode, done.stdout + done.stderr


def right(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
    return 200, {}, body


def test_passes_on_right_answers_and_states_the_offered_rate() -> None:
    status, output = load(right)
    assert status == 0, output
    assert "offered 50/s, sent " in output
    assert " 0 of them failed, 0 told to come back" in output


def test_a_429_with_retry_after_is_counted_apart_and_fails_nothing() -> None:
    turn = count()

    def busy(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
        return (429, {"Retry-After": "0"}, {}) if next(turn) % 3 == 0 else (200, {}, body)

    status, output = load(busy)
    assert status == 0, output
    assert " 0 of them failed, " in output
    assert " 0 told to come back" not in output


def test_asks_for_names_and_for_exact_versions() -> None:
    asked_for = set()

    def remember(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
        asked_for.add(asked["adapter"])
        return 200, {}, body

    assert load(remember)[0] == 0
    assert asked_for == {"sentiment", "sentiment@3", "one-line-summary", "one-line-summary@3"}


def down(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
    return 503, {"Retry-After": "1"}, {"code": "engine_down"}


def full_without_a_word_when_to_return(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
    return 429, {}, {"code": "overloaded"}


def always_full(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
    return 429, {"Retry-After": "0"}, {"code": "overloaded"}


def other_version(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
    return 200, {}, body | {"adapter": body["adapter"] | {"version": 4 if "@" in asked["adapter"] else 3}}


def no_output(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
    return 200, {}, body | {"outputs": []}


def slow(path: str, asked: dict, body: dict) -> tuple[int, dict, dict]:
    time.sleep(0.3)
    return 200, {}, body


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (down, "more than 1% of the requests failed"),
        (full_without_a_word_when_to_return, "more than 1% of the requests failed"),
        (always_full, "/v1/classify was not answered"),
        (other_version, "another adapter version answered than the one asked for"),
        (no_output, "not an answer: outputs"),
        (slow, "p95 of /v1/classify is above 200 ms"),
    ],
)
def test_exits_1_and_says_why(change: Callable, reason: str) -> None:
    status, output = load(change, HOTSWAP_LOAD_P95_MS="200")
    assert status == 1, output
    assert reason in output
