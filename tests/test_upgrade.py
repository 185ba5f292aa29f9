"""Replicas of this version and of a later one, whose manifests and releases have more in them, over one store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from adapters.base_model import Base
from adapters.store import Store
from tests.later import LATER
from tests.server import Server, serving

pytestmark = pytest.mark.timeout(180)
Start = Callable[..., AbstractContextManager[Server]]


@pytest.fixture
def start(stocked: Store, tiny: Base, tmp_path: Path) -> Start:
    """Return ``start(later=…)``: a replica on ``stocked``, of this version or the later one."""

    @contextmanager
    def started(*, later: bool = False) -> Iterator[Server]:
        module = ("tests.later", "service") if later else ("service",)
        fixed = {"engine": "fake", "base_model": str(tiny.folder), "store": stocked.place, "poll_seconds": "0.05"}
        log = tmp_path / f"{'later' if later else 'this'}.log"
        with serving(log, module, **fixed, cache=str(tmp_path / "cache")) as server:
            yield server

    return started


def later(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "tests.later", *command], check=True, env=os.environ, capture_output=True)


@pytest.fixture
def third(stocked: Store, tiny: Base, make_adapter: Callable[[], Path]) -> None:
    """Version 3 of ``mood``, which the later version published and released."""
    template = stocked.manifest("mood", 1)[0].task.template.text
    given = ["--task", "classification", "--template", template, "--labels", "positive,negative"]
    place = ["--store", stocked.place]
    later("adapters", "add", str(make_adapter()), "mood", *given, "--base", str(tiny.folder), *place)
    later("adapters", "release", "mood", "3", *place)
    written = json.loads((stocked.folder / "mood" / "versions" / "3" / "manifest.json").read_bytes())  # type: ignore[operator]
    assert written["schema_version"] == LATER


def version(server: Server, adapter: str = "mood") -> int:
    return server.predict(adapter, "A moving film.")["adapter"]["version"]


def wait_for(server: Server, expected: int) -> None:
    while version(server) != expected:
        """Bounded by the test's timeout."""


@pytest.mark.usefixtures("third")
def test_each_serves_the_newest_that_it_can_read_and_the_older_one_says_what_it_lacks(start: Start) -> None:
    with start() as old, start(later=True) as new:
        assert (version(old), version(new)) == (1, 3)
        assert (version(old, "mood@2"), version(new, "mood@2")) == (2, 2), "old manifests are read by both"
        assert version(old, "brief") == version(new, "brief") == 1
        asked = old.client.post("/v1/predict", json={"adapter": "mood@3", "input": "A film."})
        assert asked.status_code in (409, 503), asked.text
        assert "upgrade" in asked.json()["detail"]
        assert "hotswap_adapters_behind 1.0" in old.client.get("/metrics").text
        assert "hotswap_adapters_behind 0.0" in new.client.get("/metrics").text
        assert f"schema {LATER}" in old.log.read_text()
        assert "upgrade" in old.log.read_text()


def test_a_release_that_it_cannot_read_changes_nothing_for_the_older_one(start: Start, stocked: Store) -> None:
    with start() as old, start(later=True) as new:
        later("adapters", "release", "mood", "2", "--store", stocked.place)
        wait_for(new, 2)
        while "upgrade" not in old.log.read_text():
            assert version(old) == 1
        assert version(old) == 1
    with start() as again:
        assert version(again) == 1, "what a replica that was not restarted still serves"
    with start(later=True) as upgraded:
        assert version(upgraded) == 2


@pytest.mark.usefixtures("third")
def test_the_older_one_can_go_back_and_loses_nothing_of_the_later_one(start: Start, stocked: Store) -> None:
    with start() as old, start(later=True) as new:
        subprocess.run(
            [sys.executable, "-m", "adapters", "rollback", "mood", "--store", stocked.place], check=True, timeout=60
        )
        wait_for(new, 1)
        wait_for(old, 1)
        collected = [sys.executable, "-m", "adapters", "gc", "--older-than", "0", "--store", stocked.place]
        subprocess.run(collected, check=True, timeout=60)
        assert version(new, "mood@3") == 3
