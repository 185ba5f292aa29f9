"""The dashboards: as generated, in order, and every query has an answer in a Prometheus that watches the service."""

from __future__ import annotations

import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import httpx
import pytest

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.profile import Profile
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import ClassificationTask
from loadtests.dashboards import Prometheus, draw, expressions, filled, variables
from scripts.dashboards import FOLDER, dashboards
from scripts.monitor import ALERTMANAGER, PROMETHEUS, find
from tests.conftest import MakeAdapter
from tests.monitoring import BOARDS, PANELS, ROOT
from tests.server import Server, serving

LONG = "the plot is dull and slow " * 200


def test_the_files_are_what_make_docs_writes() -> None:
    assert {file.stem: file.read_text() for file in FOLDER.glob("*.json")} == dashboards(), "make docs"


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_a_board_is_grafana_s_classic_json_with_its_source_to_choose_and_the_way_to_the_runbook(board: dict) -> None:
    assert board["schemaVersion"] >= 39
    assert board["uid"].startswith("hotswap-")
    first, *others = board["templating"]["list"]
    assert first["type"] == "datasource"
    assert {"adapter", "version"} <= {variable["name"] for variable in others}
    assert "docs/runbook.md" in {link.get("url") for link in board["links"]}
    identifiers = [panel["id"] for panel in board["panels"]]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
def test_every_panel_says_what_it_shows_in_which_unit_and_from_the_chosen_source(panel: dict) -> None:
    assert panel["title"]
    assert panel["description"]
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_no_two_panels_overlap_and_none_leaves_the_grid(board: dict) -> None:
    places = [panel["gridPos"] for panel in board["panels"]]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for a, b in combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or above, (a, b)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def monitored(folder: Path, *services: str) -> Iterator[Prometheus]:
    """Start what ``make monitor`` starts, looking every second, beside the services."""
    if find(*PROMETHEUS) is None or find(*ALERTMANAGER) is None:
        pytest.fail("apt-get install prometheus prometheus-alertmanager")
    port = free_port()
    options = ["--every", "1s", "--port", str(port), "--alertmanager-port", str(free_port()), "--data", str(folder)]
    for service in services:
        options += ["--service", service]
    process = subprocess.Popen([sys.executable, "-m", "scripts.monitor", *options], cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: reached(f"{url}/-/ready"), "Prometheus to be ready")
        yield Prometheus(url, minutes=2)
    finally:
        process.terminate()
        process.wait(30)


def reached(url: str) -> bool:
    try:
        return httpx.get(url).status_code == 200
    except httpx.TransportError:
        return False


def until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.1)


@pytest.fixture
def service(stocked: Store, tmp_path: Path, tiny_folder: Path) -> Iterator[Server]:
    """The service as a process of its own, with an engine that makes answers up; everything else is real."""
    settings = {"engine": "fake", "base_model": str(tiny_folder), "cache": str(tmp_path / "cache")}
    settings |= {"store": str(stocked.place), "max_model_len": "512", "answer_cache_mib": "1"}
    with serving(tmp_path / "service.log", **settings) as server:
        yield server


def use(server: Server, store: Store, turn: int, newest: int) -> None:
    """Release something else, ask for everything, judge the answers, and make mistakes."""
    canary = {"stable": 1, "canary": {"version": newest, "percent": 50}}
    shadow = {"stable": 2, "shadow": {"version": 1, "percent": 100}}
    store.release("mood", NewRelease.model_validate(canary if turn % 2 else shadow))
    for number in range(40):
        body = {"adapter": "mood", "input": f"moving film {turn} {number}", "caller": f"user-{number}"}
        answer = server.client.post("/v1/predict", json=body).json()
        server.client.post("/v1/feedback", json={"id": answer["id"], "correct": number % 5 > 0})
    server.predict("mood", LONG)
    # The first with a profile, which the board opens with.
    answer = server.predict("mood@3", *(f"moving film {turn} {number}" for number in range(20)))
    for number in range(20):
        judged = {"id": answer["id"], "index": number, "correct": number % 5 > 0}
        server.client.post("/v1/feedback", json=judged)
    server.predict("brief", f"A moving film, number {turn}.")  # a new one: what was asked before is remembered
    assert server.client.post("/v1/predict", json={"adapter": "nobody", "input": "x"}).status_code == 404


def answered(source: Prometheus, expression: str) -> bool:
    return any(not math.isnan(float(found["value"][1])) for found in source.instant(expression))


@pytest.mark.timeout(240)
def test_every_query_of_every_panel_finds_something_beside_a_service_under_load(
    service: Server,
    stocked: Store,
    tmp_path: Path,
    make_adapter: MakeAdapter,
    sentiment_task: ClassificationTask,
    tiny: Base,
) -> None:
    row = {"label": "positive", "confidence": 0.9, "input_tokens": 8, "unknown_tokens": 0.1}
    profile = Profile.of([row] * 60 + [row | {"label": "negative", "confidence": 0.7}] * 40, (1, 2, 3), 0.9)
    with monitored(tmp_path / "monitor", service.url) as source:
        open_queries = {(name, *pair) for name, board in BOARDS.items() for pair in expressions(board)}
        end, turn = time.monotonic() + 120, 0
        while open_queries:
            assert time.monotonic() < end, f"no answer to {open_queries}"
            adapter = make_adapter(seed=10 + turn)
            newest = add_version(stocked, "mood", adapter, sentiment_task, tiny, profile=profile).version
            use(service, stocked, turn := turn + 1, newest)
            chosen = {name: variables(board, source) for name, board in BOARDS.items()}
            open_queries -= {
                (name, what, expression)
                for name, what, expression in open_queries
                if answered(source, filled(expression, chosen[name], rate="10s"))
            }
        drift = chosen["drift"]
        assert (drift["adapter"], drift["window"]) == ("mood", "1h")
        for name, board in BOARDS.items():
            draw(board, chosen[name], source, picture := tmp_path / f"{name}.png")
            assert picture.read_bytes().startswith(b"\x89PNG")
