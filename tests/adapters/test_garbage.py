"""What goes from a store is what nobody can name any more, and its number is never used again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import obstore
import pytest

from adapters import garbage
from adapters.base_model import Base
from adapters.errors import NotInStore
from adapters.intake import add_version
from adapters.releases import NewRelease, Share
from adapters.store import CONFIG, MANIFEST, WEIGHTS, Store, release_path, version_path
from adapters.tasks import ClassificationTask
from tests.conftest import MakeAdapter

NOW = timedelta(0)


@pytest.fixture(params=["disk", "S3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.getfixturevalue("s3").make_bucket() if request.param == "S3" else tmp_path / "store")


@pytest.fixture
def add(store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask) -> Callable[[], int]:
    return lambda: add_version(store, "mood", make_adapter(), sentiment_task, tiny).version


@pytest.fixture
def mood(store: Store, add: Callable[[], int]) -> Store:
    """Version 1 was stable, 2 is, 3 is a canary, 4 was never released, 5 is retired."""
    for _ in range(5):
        add()
    store.release("mood", 1)
    store.release("mood", NewRelease(stable=2, canary=Share(version=3, percent=10)))
    store.retire("mood", 5)
    return store


def found(store: Store, older_than: timedelta = NOW) -> list[tuple[int, str]]:
    return [(each.version, each.why) for each in garbage.find(store, older_than)]


def collect(store: Store) -> None:
    for each in garbage.find(store, NOW):
        garbage.collect(store, each)


def test_only_what_was_retired_goes(mood: Store) -> None:
    assert found(mood) == [(5, "retired")]
    collect(mood)
    assert mood.versions("mood") == [1, 2, 3, 4], "the others can be released, asked for by number, or rolled back to"
    assert list(mood.problems()) == []
    assert found(mood) == []


def test_its_number_is_not_used_again(mood: Store, add: Callable[[], int]) -> None:
    collect(mood)
    assert add() == 6


def test_it_stays_retired(mood: Store) -> None:
    collect(mood)
    with pytest.raises(NotInStore):
        mood.release("mood", 5)
    with pytest.raises(NotInStore):
        mood.manifest("mood", 5) if mood._manifests.clear() is None else None


def test_what_was_retired_lately_stays(mood: Store) -> None:
    assert found(mood, timedelta(days=7)) == []


def test_what_was_retired_and_is_released_all_the_same_stays(mood: Store) -> None:
    # Of a release and a retirement at the same moment the release wins.
    record = mood.read(release_path("mood", 2))
    assert record is not None
    assert mood.create(release_path("mood", 3), record.replace(b'"stable":2', b'"stable":5'))
    assert found(mood) == []


def test_nothing_goes_where_the_newest_release_cannot_be_read(mood: Store) -> None:
    obstore.put(mood._objects, release_path("mood", 3), b"{")
    assert found(mood) == []


@pytest.mark.parametrize("record", [b"{}", b'{"at": "2020-01-01T00:00:00"}', b'{"at": 5}', b"[]", b"\xff"])
def test_a_retirement_that_does_not_say_when_is_of_now(mood: Store, record: bytes) -> None:
    obstore.put(mood._objects, "mood/retired/5.json", record)
    assert found(mood) == []


def test_an_upload_that_was_killed_goes_and_one_that_goes_on_stays(store: Store, add: Callable[[], int]) -> None:
    add()
    assert store.create(version_path("mood", 2, CONFIG), b"{}")
    assert store.create(version_path("mood", 2, WEIGHTS), b"half")
    assert found(store) == [(2, "never finished")]
    assert found(store, timedelta(hours=1)) == []
    collect(store)
    assert [file.path for file in store.files("mood", 2)] == [version_path("mood", 2, CONFIG)]
    assert add() == 3
    assert found(store) == []


def test_what_was_stopped_in_the_middle_is_no_version_and_is_finished_the_next_time(
    mood: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    remove = mood.remove

    def once(path: str) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(path)
        remove(path)

    monkeypatch.setattr(mood, "remove", once)
    with pytest.raises(KeyboardInterrupt):
        collect(mood)
    assert removed == [version_path("mood", 5, MANIFEST)]
    assert mood.versions("mood") == [1, 2, 3, 4]
    monkeypatch.undo()
    collect(mood)
    assert found(mood) == []
