"""Versions change under load on the real engine, and every answer is that of the weights it names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from adapters.releases import Release, Share
from loadtests.swap_under_load import report
from loadtests.swap_under_load.fingerprints import Variant
from loadtests.swap_under_load.fleet import Adapter, Served, Version, fault
from loadtests.swap_under_load.run import Plan, run
from loadtests.traffic import Outcome

SHARES = ((1, 0.2), (2, 0.8))
BY: dict[str, Any] = {"by": "us", "at": 0}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("processes", [1, 2])
def test_no_answer_is_lost_or_wrong_while_versions_change(tiny_folder: Path, tmp_path: Path, processes: int) -> None:
    plan = Plan(seconds=15, quiet=3, rate=20, every=0.3, adapters=8, base=str(tiny_folder), processes=processes)
    told = report.results(run(plan, tmp_path))
    assert report.complaints(told, times=False) == []
    assert set(told["answers"]) == {"stable", "canary", "pinned"}
    assert set(told["changes"]) == {"published", "retired", "canary", "promotion", "release", "rollback"}


class TestTheJudge:
    """Adapter ``swap`` went from version 1, with 2 as its canary, to version 2: asked for at 10, seen at 11."""

    @pytest.fixture
    def adapter(self) -> Adapter:
        one, two = (Version(Variant(Path(), ({"a": share, "b": 1 - share},)), f"sha256:{n}") for n, share in SHARES)
        first, second = Release(stable=1, canary=Share(version=2, percent=5), **BY), Release(stable=2, **BY)
        served = [Served(first, "first", "store", 0, 0, 1), Served(second, "promotion", "http", 10, 10.5, 11)]
        return Adapter("swap", [], {1: one, 2: two}, served)

    @pytest.mark.parametrize(
        ("reference", "version", "channel", "began", "ended"),
        [
            ("swap", 1, "stable", 5, 6),
            ("swap", 2, "canary", 5, 6),
            ("swap@canary", 2, "canary", 5, 6),
            ("swap", 1, "stable", 10.9, 20),
            ("swap", 2, "stable", 9, 10.1),
            ("swap", 2, "stable", 12, 13),
            ("swap@1", 1, "pinned", 12, 13),
        ],
    )
    def test_takes_what_was_released_at_some_moment_of_the_request(
        self, adapter: Adapter, reference: str, version: int, channel: str, began: float, ended: float
    ) -> None:
        assert fault(answer(reference, version, channel, began, ended), adapter) is None

    @pytest.mark.parametrize(
        ("reference", "version", "channel", "began", "ended", "reason"),
        [
            ("swap", 2, "stable", 5, 6, "which was not released then"),
            ("swap", 1, "stable", 11.1, 12, "which was not released then"),
            ("swap", 2, "canary", 12, 13, "which was not released then"),
            ("swap@canary", 1, "stable", 5, 6, "was answered by the stable channel"),
            ("swap@1", 2, "pinned", 5, 6, "was answered by version 2, pinned"),
            ("swap", 3, "stable", 5, 6, "was answered by swap@3"),
        ],
    )
    def test_refuses_another_version(
        self,
        adapter: Adapter,
        reference: str,
        version: int,
        channel: str,
        began: float,
        ended: float,
        reason: str,
    ) -> None:
        assert reason in (fault(answer(reference, version, channel, began, ended), adapter) or "nothing")

    @pytest.mark.parametrize(
        ("change", "reason"),
        [({"digest": "sha256:2"}, "another version's digest"), ({"share": 0.7}, "other scores than its weights")],
    )
    def test_refuses_other_weights(self, adapter: Adapter, change: dict[str, Any], reason: str) -> None:
        assert reason in (fault(answer("swap", 1, "stable", 5, 6, **change), adapter) or "nothing")


def answer(reference: str, version: int, channel: str, began: float, ended: float, **change: Any) -> Outcome:
    digest, share = change.get("digest", f"sha256:{version}"), change.get("share", dict(SHARES).get(version, 0))
    used = {"name": "swap", "version": version, "channel": channel, "digest": digest}
    body = {"adapter": used, "outputs": [{"scores": {"a": share, "b": 1 - share}}]}
    return Outcome(reference, 0, began, began, ended, 200, body)
