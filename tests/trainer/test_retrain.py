"""``python -m trainer retrain``: from a released version and judged answers to a guarded canary."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeAdapter
from tests.trainer.workplace import Workplace, trained

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def published(one_thread: None, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Workplace:
    place = trained(tmp_path_factory.mktemp("retrain"), tiny_folder)
    assert place.run("publish", "mood.yaml").status == 0
    return place


@pytest.fixture
def place(published: Workplace, tmp_path: Path) -> Workplace:
    return published.copied(tmp_path / "workplace")


def judged(place: Workplace, count: int) -> Path:
    path = place.folder / "judged.jsonl"
    rows = [
        {"text": f"play {n} is {'grand' if n % 2 else 'flat'}", "label": "positive" if n % 2 else "negative"}
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_makes_a_guarded_canary_that_learnt_from_both(place: Workplace) -> None:
    result = place.run("retrain", "mood", "--feedback", judged(place, 30), "--least", 20, "--percent", 10)
    assert result.status == 0, result.err
    release = place.store.released("mood")
    assert release is not None
    assert (release.stable, release.canary.version, release.canary.percent) == (1, 2, 10)
    assert release.guard is not None
    assert release.why == "retrained from version 1 with 30 judged answers"
    first, second = (place.store.manifest("mood", version)[0].lineage["data"]["rows"] for version in (1, 2))
    assert second["train"] == first["train"] + 30
    assert second["test"] == first["test"], "what is held out stays, so that the two can be compared"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nobody", "--feedback", "judged.jsonl"), "nobody is not released; train and publish a first version."),
        (("mood", "--feedback", "none.jsonl"), "cannot read none.jsonl: No such file"),
        (("mood", "--feedback", "judged.jsonl", "--least", "1", "--set", "data.path=gone.csv"), "gone.csv"),
    ],
)
def test_says_why_it_cannot(place: Workplace, arguments: tuple[str, ...], said: str) -> None:
    judged(place, 30)
    result = place.run("retrain", *arguments)
    assert result.status == 1
    assert said in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert place.store.versions("mood") == [1]


@pytest.mark.parametrize("command", [("retrain", "mood", "--percent"), ("publish", "mood.yaml", "--canary")])
@pytest.mark.parametrize("share", ["0", "101", "-1", "five"])
def test_a_share_that_is_none_is_refused_before_anything_is_done(
    place: Workplace, command: tuple[str, ...], share: str
) -> None:
    result = place.run(*command, share)
    assert result.status == 2
    assert f"'{share}' is no percentage from 1 to 100" in result.err or "expected one argument" in result.err
    assert place.store.versions("mood") == [1]


def test_with_too_few_judged_answers_waits_which_is_no_failure(place: Workplace) -> None:
    result = place.run("retrain", "mood", "--feedback", judged(place, 30), "--least", 31)
    assert result.status == 0
    assert result.err.splitlines()[-1] == "mood: 30 judged answers since version 1, 31 are waited for"
    assert place.store.versions("mood") == [1]


def test_leaves_a_trial_that_runs_alone(place: Workplace) -> None:
    assert place.run("retrain", "mood", "--feedback", judged(place, 30), "--least", 1).status == 0
    again = place.run("retrain", "mood", "--feedback", judged(place, 40), "--least", 1)
    assert again.status == 0
    assert again.err.strip() == "mood: version 2 is being tried out; nothing is trained meanwhile"
    assert place.store.versions("mood") == [1, 2]


def test_of_a_version_from_elsewhere_asks_for_a_recipe(
    place: Workplace, make_adapter: MakeAdapter, sentiment_task: Any, tiny: Any
) -> None:
    from adapters.intake import add_version
    from adapters.releases import NewRelease

    add_version(place.store, "stray", make_adapter(seed=1), sentiment_task, tiny)
    place.store.release("stray", NewRelease(stable=1))
    result = place.run("retrain", "stray", "--feedback", judged(place, 5), "--least", 1)
    assert result.status == 1
    assert "stray@1 does not say its recipe" in result.err


@pytest.fixture
def alertmanager() -> Iterator[tuple[str, list[Any]]]:
    """An Alertmanager's API, with alerts that a test sets."""
    alerts: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = json.dumps(alerts if "adapter%3D%22mood%22" in self.path else []).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", alerts
        server.shutdown()


def test_an_alert_of_the_adapter_is_reason_enough(place: Workplace, alertmanager: tuple[str, list[Any]]) -> None:
    where, alerts = alertmanager
    asked = ("retrain", "mood", "--feedback", judged(place, 30), "--least", 1000, "--alerts", where)
    assert place.run(*asked).status == 0
    assert place.store.versions("mood") == [1]
    alerts.append({"labels": {"alertname": "HotswapDrift", "adapter": "mood"}})
    assert place.run(*asked).status == 0
    assert place.store.versions("mood") == [1, 2]


def test_an_alertmanager_that_is_away_is_said_and_is_no_alert(place: Workplace) -> None:
    result = place.run(
        "retrain", "mood", "--feedback", judged(place, 30), "--least", 1000, "--alerts", "http://127.0.0.1:9"
    )
    assert result.status == 0
    assert place.store.versions("mood") == [1]
    assert "http://127.0.0.1:9 does not say its alerts" in result.err
