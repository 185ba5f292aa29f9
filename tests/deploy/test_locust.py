"""The load test itself, on a stub server: what it accepts, and what it exits with status 1 for."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path

import psutil
import pytest

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.store import Store
from adapters.tasks import ClassificationTask, SummarizationTask
from loadtests import LOCUSTFILE, PATIENT, run_locust
from loadtests.__main__ import USERS
from tests.conftest import write_adapter
from tests.server import Server, serving

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


class StubServer(ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A caller that was stopped in the middle of an answer is no news."""


@contextmanager
def stub(change: Callable[[str, dict, dict], tuple[int, dict, dict]]) -> Iterator[str]:
    handler = type("Changed", (Stub,), {"change": staticmethod(change)})
    with StubServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def load(change: Callable[[str, dict, dict], tuple[int, dict, dict]], **environment: str) -> tuple[int, str]:
    with stub(change) as host:
        done = run_locust(host, 2, {**PATIENT, "HOTSWAP_API_KEY": "secret", "HOTSWAP_LOAD_RATE": "50", **environment})
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


def test_a_server_that_lists_nothing_is_no_fault_of_the_load_test() -> None:
    with stub(right) as host:  # which knows no GET
        environment = {**PATIENT, "HOTSWAP_LOAD_RATE": "9", "HOTSWAP_LOAD_ADMIN_KEY": "admin"}
        done = run_locust(host, 6, environment, users=["Many", "Releaser"])
    assert done.returncode == 1
    assert "FAILED: /v1/predict (many) was not answered" in done.stdout
    assert "raised an exception" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("value", ["many", "0", "-1", "inf", "nan"])
@pytest.mark.parametrize("variable", ["HOTSWAP_LOAD_RATE", "HOTSWAP_LOAD_P95_MS"])
def test_a_setting_that_is_no_number_above_0_is_refused_in_one_line(variable: str, value: str) -> None:
    done = run_locust("http://127.0.0.1:9", 1, {variable: value})
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if variable in line]
    assert line.startswith(f"{variable}={value}: it is a number above 0")
    assert "Traceback" not in done.stderr


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_command_says_what_it_takes_before_it_starts_anything() -> None:
    assert "example: " in program("--help").stdout
    for arguments, reason in ((["Clasify"], "there is no Clasify"), (["Releaser"], "needs HOTSWAP_LOAD_ADMIN_KEY")):
        done = program(*arguments)
        assert (done.returncode, "starting a service" in done.stderr) == (2, False)
        assert reason in done.stderr
    for nobody in ("http://127.0.0.1:9/", "http://host:port"):
        done = program(HOTSWAP_URL=nobody)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_its_users_are_those_of_locust() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "locust", "--locustfile", str(LOCUSTFILE), "--list"],
        env={**os.environ, "HOTSWAP_LOAD_ADMIN_KEY": "admin"}, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert {line.strip() for line in done.stdout.splitlines()[1:]} == {*USERS, "Releaser"}


def test_who_is_ended_ends_the_server_that_it_started(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from loadtests.bench.process import Process\n"
        "process = Process('http.server', ['0', '--bind', '127.0.0.1'], {}, Path(sys.argv[1]), piped=False)\n"
        "try:\n    print(process.id, flush=True); time.sleep(60)\nfinally:\n    process.stop()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "log")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        server = int(starter.stdout.readline())
        starter.terminate()
    assert not psutil.pid_exists(server)


KEYS = "load name=load scopes=predict\nadmin name=admin scopes=predict,admin\n"
WITH_KEYS = {**PATIENT, "HOTSWAP_API_KEY": "load", "HOTSWAP_LOAD_ADMIN_KEY": "admin", "HOTSWAP_LOAD_RATE": "20"}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, tiny: Base) -> Iterator[Server]:
    """The service itself, on the fake engine, with keys."""
    folder = tmp_path_factory.mktemp("load")
    store = Store(folder / "store")
    tasks = {
        "sentiment": ClassificationTask.of("Review: {text}\nSentiment:", ["positive", "negative"], tiny.tokenizer),
        "one-line-summary": SummarizationTask.of("Text: {text}\n\nSummary:"),
    }
    for name, task in tasks.items():
        add_version(store, name, write_adapter(folder / name), task, tiny)
        store.release(name, 1)
    (folder / "keys").write_text(KEYS)
    fixed = {"engine": "fake", "base_model": str(tiny.folder), "store": store.place, "cache": str(folder / "cache")}
    with serving(folder / "log", **fixed, api_keys=str(folder / "keys")) as server:
        yield server


def test_every_kind_of_caller_gets_what_it_asks_for(service: Server) -> None:
    users = ["Classify", "Summarize", "Batch", "Stream", "OpenAI", "Many", "Releaser"]
    # With the fake engine the first of OpenAI's requests loads vLLM's own code.
    body = {"model": "one-line-summary", "prompt": "Text: one", "max_tokens": 1}
    assert service.client.post("/v1/completions", json=body, headers={"Authorization": "Bearer load"}).is_success
    done = run_locust(service.url, 8, WITH_KEYS, users=users, more=["--users", "20"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 of them failed" in done.stdout
    released = service.client.get("/v1/adapters/sentiment", headers={"Authorization": "Bearer admin"}).json()
    assert released["generation"] > 1, "versions were released while the others asked"


def test_the_rate_follows_the_shape(service: Server) -> None:
    spike = {**WITH_KEYS, "HOTSWAP_LOAD_SHAPE": "spike", "HOTSWAP_LOAD_RATE": "8"}
    done = run_locust(service.url, 25, spike, users=["Classify"])
    assert done.returncode == 0, done.stdout + done.stderr
    counts = [int(users) for users in re.findall(r'"Classify": (\d+)\}', done.stderr)]
    assert max(counts) == 5 * counts[0], done.stderr
    unknown = run_locust(service.url, 1, {"HOTSWAP_LOAD_SHAPE": "cube"})
    assert "there are steady, spike, ramp, soak" in unknown.stderr


def test_of_several_processes_the_master_says_what_all_have_sent(service: Server, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    worker = [sys.executable, "-m", "locust", "-f", str(LOCUSTFILE), "--worker", "--master-port", str(port)]
    report = tmp_path / "report.html"
    master = ["--master", "--expect-workers", "2", "--master-bind-port", str(port), "--html", str(report)]
    environment = {**os.environ, **WITH_KEYS}
    workers = [
        subprocess.Popen([*worker, "Classify"], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(2)
    ]
    try:
        done = run_locust(service.url, 5, WITH_KEYS, users=["Classify"], more=master)
        assert done.returncode == 0, done.stdout + done.stderr
        offered, sent = re.findall(r"(\d+)/s, sent ([\d.]+)/s", done.stdout)[0]
        assert float(sent) < 1.5 * float(offered), "each worker sends its share of the rate"
        assert "/v1/classify" in report.read_text()
    finally:
        for process in workers:
            process.terminate()
            process.wait(30)
