"""A publisher that is killed, or whose disk is full, at any moment: what was there stays, and what was not is not."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.exceptions import PermissionDeniedError

import adapters.store
from adapters.base_model import Base, resolve_base
from adapters.errors import StoreUnavailable
from adapters.intake import add_version
from adapters.releases import NewRelease, Share
from adapters.store import Store
from adapters.tasks import ClassificationTask
from tests import crash
from tests.conftest import MakeAdapter

TASK = ("--task", "classification", "--labels", "positive,negative")
Command = tuple[dict[str, str], list[str]]


@pytest.fixture
def mood(store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask) -> Store:
    """A store on disk with three versions of ``mood``, released one after the other."""
    for seed in (1, 2, 3):
        version = add_version(store, "mood", make_adapter(seed=seed), sentiment_task, tiny).version
        store.release("mood", NewRelease(stable=version))
    return store


@pytest.fixture
def command(mood: Store, tmp_path: Path, tiny_folder: Path) -> Callable[..., Command]:
    """Return what ``tests.crash`` takes for a command on ``mood``."""
    places = {"STORE": mood.place, "BASE_MODEL": tiny_folder, "CACHE": tmp_path / "cache"}
    environment = {f"HOTSWAP_{name}": str(place) for name, place in places.items()}
    environment["SAID"] = str(tmp_path / "said")
    resolve_base(str(tiny_folder), tmp_path / "cache")  # its digest is known: every step is the store's
    return lambda *arguments: (environment, list(map(str, arguments)))


def committed(store: Store) -> list[int]:
    """Return the versions of ``mood``, having seen that each is whole and that nothing else is wrong."""
    fresh = Store(store.place)
    assert fresh.names() == ["mood"]
    assert list(fresh.problems()) == []
    return fresh.versions("mood")


class TestKilled:
    def test_while_adding_leaves_no_half_version(
        self, mood: Store, command: Callable[..., Command], make_adapter: MakeAdapter
    ) -> None:
        seen = committed(mood)
        for step, when in crash.deaths(crash.command, *command("add", make_adapter(), "mood", *TASK)):
            now = committed(mood)
            # After the last write the version is there, though nobody was told.
            assert now[: len(seen)] == seen, (step, when)
            assert len(now) - len(seen) in (0, 1), (step, when)
            assert [record.stable for record in mood.history("mood")] == [1, 2, 3]
            seen = now
        assert committed(mood)[:-1] == seen, "the one that survived has added one"
        assert len(seen) > 3, "the last deaths came after the commit"

    def test_while_writing_a_file_leaves_no_half_version(
        self, mood: Store, command: Callable[..., Command], make_adapter: MakeAdapter
    ) -> None:
        folder = make_adapter(rank=16)
        for room in (0, 1, 100, 5000, 20_000):  # bytes; the config has 200, the manifest 1,000, the weights 37,000
            status = crash.run(crash.command_with_little_room, *command("add", folder, "mood", *TASK), room, True)
            assert status is not None
            assert status < 0
            assert committed(mood) == [1, 2, 3]
        assert crash.run(crash.command_with_little_room, *command("add", folder, "mood", *TASK), 1 << 30, True) == 0
        assert committed(mood)[:-1] == [1, 2, 3]

    @pytest.mark.parametrize(
        ("arguments", "stable", "canary"),
        [
            (("release", "mood", 1), 1, None),
            (("release", "mood", 2, "--channel", "canary", "--percent", 5), 3, Share(version=2, percent=5)),
            (("rollback", "mood"), 2, None),
        ],
        ids=["releasing", "trying out", "rolling back"],
    )
    def test_while_releasing_has_released_or_not(
        self,
        mood: Store,
        command: Callable[..., Command],
        arguments: tuple[Any, ...],
        stable: int,
        canary: Share | None,
    ) -> None:
        before, generations = mood.history("mood"), []
        for step, when in crash.deaths(crash.command, *command(*arguments)):
            assert committed(mood) == [1, 2, 3]
            history = mood.history("mood")
            assert history[:3] == before, (step, when)
            assert len(history) <= 4, (step, when)
            generations.append(len(history))
            if len(history) == 4:  # as if nobody had: the next one starts from the same state
                assert (history[3].stable, history[3].canary) == (stable, canary)
                Path(mood.place, "mood", "releases", "4.json").unlink()
        assert set(generations) == {3, 4}, "killed before the record was there, and after"
        assert mood.released("mood").stable == stable  # type: ignore[union-attr]


class TestADiskThatIsFull:
    @pytest.mark.parametrize("room", [0, 100, 5000, 20_000])
    def test_refuses_an_adapter_in_one_line_and_keeps_what_there_is(
        self, mood: Store, command: Callable[..., Command], make_adapter: MakeAdapter, tmp_path: Path, room: int
    ) -> None:
        arguments = command("add", make_adapter(rank=16), "mood", *TASK)
        assert crash.run(crash.command_with_little_room, *arguments, room, False) == 1
        said = (tmp_path / "said").read_text()
        assert said.startswith(f"python -m adapters: the store {mood.place} cannot be used: ")
        assert said.count("\n") == 1
        assert committed(mood) == [1, 2, 3]
        assert crash.run(crash.command_with_little_room, *arguments, 1 << 30, False) == 0
        assert committed(mood)[:-1] == [1, 2, 3]

    def test_refuses_a_release_and_keeps_the_last_one(self, mood: Store, command: Callable[..., Command]) -> None:
        assert crash.run(crash.command_with_little_room, *command("release", "mood", 1), 0, False) == 1
        assert mood.released("mood").stable == 3  # type: ignore[union-attr]
        assert mood.release("mood", NewRelease(stable=1)).generation == 4


def test_a_store_that_may_only_be_read_says_so_and_can_be_read(
    mood: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionDeniedError("Read-only file system (os error 30)")

    monkeypatch.setattr(obstore, "put", denied)
    for change in (
        lambda: add_version(mood, "mood", make_adapter(), sentiment_task, tiny),
        lambda: mood.release("mood", NewRelease(stable=1)),
        lambda: mood.rollback("mood"),
    ):
        with pytest.raises(StoreUnavailable, match="cannot be used: Read-only file system"):
            change()
    assert committed(mood) == [1, 2, 3]
    assert mood.fetch("mood", 1, tmp_path / "cache").is_dir()


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_clock_that_jumps_changes_no_order(mood: Store, monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(year, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(adapters.store, "datetime", Clock)
    assert mood.release("mood", NewRelease(stable=1)).generation == 4
    monkeypatch.undo()
    assert mood.released("mood").stable == 1  # type: ignore[union-attr]
    assert mood.release("mood", NewRelease(stable=2)).generation == 5
    assert [record.stable for record in mood.history("mood")] == [1, 2, 3, 1, 2]
    assert mood.rollback("mood").stable == 1
    assert os.path.exists(Path(mood.place, "mood", "releases", "6.json"))


@pytest.mark.parametrize(("unreadable", "generation"), [({3}, 2), ({3, 2}, 1), ({3, 2, 1}, None)])
def test_records_of_another_user_that_may_not_be_read_concern_their_own_adapter_alone(
    mood: Store, monkeypatch: pytest.MonkeyPatch, unreadable: set[int], generation: int | None
) -> None:
    get, denied = obstore.get, {f"mood/releases/{number}.json" for number in unreadable}

    def mostly(objects: Any, path: str, **more: Any) -> Any:
        if path in denied:
            raise PermissionDeniedError("Permission denied (os error 13)")
        return get(objects, path, **more)

    monkeypatch.setattr(obstore, "get", mostly)
    entry = Store(mood.place).catalogue().entries["mood"]
    assert "Permission denied" in (entry.fault or "")
    assert entry.generation == 3
    assert (entry.release and entry.release.generation) == generation
