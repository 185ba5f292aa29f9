"""Services on the fake engine behind the nginx of k8s/components/nginx."""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi.routing import APIRoute

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.store import Store
from adapters.tasks import ClassificationTask
from loadtests.replicas.fleet import COMPONENTS, Replica, nginx
from service.errors import BodyTooLarge
from service.http.routes import kserve, openai, predict
from service.settings import Settings
from tests.conftest import write_adapter

pytestmark = pytest.mark.slow
NAMES = [f"mood-{number}" for number in range(12)]
CONFIG = (COMPONENTS / "nginx" / "nginx.conf").read_text()
KEY, RATED = "for-anything", "for-two-texts"


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory, tiny: Base) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("replicas")
    store = Store(folder / "store")
    task = ClassificationTask.of("Review: {text}\nSentiment:", ["positive", "negative"], tiny.tokenizer)
    for place, name in enumerate(NAMES):
        add_version(store, name, write_adapter(folder / name, seed=place), task, tiny)
        store.release(name, 1)
    keys = {KEY: "scopes=predict,admin", RATED: "rate=2/day"}
    lines = [f"sha256:{hashlib.sha256(key.encode()).hexdigest()} {rights}" for key, rights in keys.items()]
    (folder / "keys").write_text("\n".join(lines))
    settings = {"ENGINE": "fake", "STORE": store.place, "BASE_MODEL": str(tiny.folder)}
    settings |= {"API_KEYS": str(folder / "keys")}
    started = [Replica(number, folder, settings, None) for number in range(3)]
    try:
        for each in started:
            each.start()
        for each in started:
            asyncio.run(each.ready())
        yield started
    finally:
        for each in started:
            each.stop()


@contextmanager
def in_front(ports: list[int], folder: Path, ready: bool = True) -> Iterator[httpx.Client]:
    router = nginx(ports, folder)
    try:
        if ready:
            asyncio.run(router.ready())
        headers = {"Authorization": f"Bearer {KEY}"}
        with httpx.Client(base_url=router.url, timeout=60, trust_env=False, headers=headers) as client:
            yield client
    finally:
        router.stop()


@pytest.fixture(scope="module")
def client(replicas: list[Replica], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with in_front([each.port for each in replicas], tmp_path_factory.mktemp("nginx")) as client:
        yield client


def asked(answer: httpx.Response) -> list[str]:
    """Return the replicas that a request was sent to, the one that answered last."""
    return answer.headers["x-replica"].split(", ")


def ask(client: httpx.Client, name: str, key: str = KEY) -> httpx.Response:
    body = {"model": name, "input": "A moving film."}
    return client.post("/v1/predict", json=body, headers={"Authorization": f"Bearer {key}"})


def test_an_adapters_requests_go_to_one_replica_and_adapters_spread(client: httpx.Client) -> None:
    where = {name: {*asked(ask(client, name)), *asked(ask(client, name))} for name in NAMES}
    assert all(len(places) == 1 for places in where.values())
    assert len(set().union(*where.values())) == 3


def test_every_way_to_name_an_adapter_leads_to_it(client: httpx.Client) -> None:
    (home,) = asked(ask(client, "mood-3"))
    bodies: list[tuple[str, dict]] = [
        ("/v1/predict", {"adapter": "mood-3", "input": "A film."}),
        ("/v1/classify", {"inputs": ["A film."], "model": "mood-3@1"}),
        ("/v1/predict", {"input": '"adapter": "mood-4"', "model": "mood-3"}),
    ]
    tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["A film."]}
    bodies += [("/v2/models/mood-3/infer", {"inputs": [tensor]})]
    for path, body in bodies:
        answer = client.post(path, json=body)
        assert (answer.status_code, asked(answer)) == (200, [home]), (path, answer.text)


def test_every_path_that_asks_an_adapter_is_routed_by_it() -> None:
    pattern = re.search(r"location ~ (\S+) \{", CONFIG)
    assert pattern
    for router in (predict.router, openai.router, kserve.router):
        for route in router.routes:
            assert isinstance(route, APIRoute)
            assert bool(re.search(pattern[1], route.path)) == ("POST" in route.methods), route.path


def test_what_the_router_allows_is_what_the_service_allows() -> None:
    settings = Settings.read({})
    for name in ("client_max_body_size", "client_body_buffer_size"):
        assert f"{name} {settings.max_body_bytes};" in CONFIG
    assert f"client_body_timeout {settings.body_seconds:g}s;" in CONFIG
    seconds = re.search(r"proxy_read_timeout (\d+)s;", CONFIG)
    assert seconds
    assert int(seconds[1]) > settings.deadline_seconds, "the server's own deadline comes first, and says what it is"


def test_what_names_no_adapter_is_answered_by_any(client: httpx.Client) -> None:
    assert len(client.get("/v1/adapters").json()["adapters"]) == len(NAMES)
    assert len({place for _ in range(40) for place in asked(client.get("/v1/models"))}) > 1


def test_a_replica_that_refuses_hands_over_and_when_all_do_its_words_reach_the_caller(client: httpx.Client) -> None:
    answers = [ask(client, "mood-5", RATED) for _ in range(7)]
    home, second, third = asked(answers[-1])
    assert len({home, second, third}) == 3
    assert [asked(answer) for answer in answers[:6]] == [[home]] * 2 + [[home, second]] * 2 + [
        [home, second, third]
    ] * 2
    assert [answer.status_code for answer in answers] == [200] * 6 + [429]
    assert answers[-1].json()["code"] == "rate_limited"
    assert int(answers[-1].headers["retry-after"]) > 0
    assert asked(ask(client, "mood-5")) == [home], "one that refused is not shunned"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused_as_the_service_does(client: httpx.Client, chunked: bool) -> None:
    pieces = [b"x" * 100_000] * 30
    refused = client.post("/v1/predict", content=iter(pieces) if chunked else b"".join(pieces))
    assert (refused.status_code, refused.headers["content-type"]) == (413, "application/problem+json")
    assert refused.json() == BodyTooLarge().problem()


def test_a_killed_replica_costs_no_answer_and_only_its_adapters_move(
    client: httpx.Client, replicas: list[Replica]
) -> None:
    before = {name: asked(ask(client, name))[-1] for name in NAMES}
    replicas[0].kill()
    gone = f"127.0.0.1:{replicas[0].port}"
    for _ in range(3):
        for name in NAMES:
            answer = ask(client, name)
            assert answer.status_code == 200
            moved = before[name] == gone
            assert (asked(answer)[0] == gone, asked(answer)[-1] != before[name]) == (moved, moved)
    replicas[0].start()
    asyncio.run(replicas[0].ready())
    assert {name: asked(ask(client, name))[-1] for name in NAMES} == before


class Puppet:
    """Listens as a replica would, and does to each request what the test says."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.requests: list[bytes] = []
        self.go_on = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection:
                self.requests.append(connection.recv(65536))
                if b"/v1/summarize" in self.requests[-1]:
                    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
                    connection.sendall(head + b"data: first\n\n")
                    self.go_on.wait(60)
                    connection.sendall(b"data: last\n\n")


@pytest.fixture
def puppets(tmp_path: Path) -> Iterator[tuple[list[Puppet], httpx.Client]]:
    """Two of them behind nginx."""
    pair = [Puppet(), Puppet()]
    with in_front([each.port for each in pair], tmp_path, ready=False) as client:
        reach(client)
        yield pair, client
    for each in pair:
        each.listener.close()


def reach(client: httpx.Client) -> None:
    """Wait until nginx listens."""
    address = (client.base_url.host, client.base_url.port)
    for _ in range(1000):
        try:
            socket.create_connection(address).close()
            return
        except ConnectionRefusedError:
            threading.Event().wait(0.02)
    raise TimeoutError


def test_a_streams_events_pass_as_they_come(puppets: tuple[list[Puppet], httpx.Client]) -> None:
    pair, client = puppets
    with client.stream("POST", "/v1/summarize", json={"model": "short", "input": "x", "stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == "data: first"
        for each in pair:
            each.go_on.set()
        assert [line for line in lines if line] == ["data: last"]


def test_a_prediction_whose_replica_hangs_up_is_asked_elsewhere_and_a_release_is_not(
    puppets: tuple[list[Puppet], httpx.Client],
) -> None:
    pair, client = puppets
    assert ask(client, "mood-1").status_code == 502
    assert sorted(len(each.requests) for each in pair) == [1, 1]
    assert client.post("/v1/adapters/mood-1/releases", json={"stable": 2}).status_code == 502
    assert sorted(len(each.requests) for each in pair) == [1, 2]
