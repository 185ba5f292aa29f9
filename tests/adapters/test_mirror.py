"""A backup, and the way back: whole at every moment, and never mixed with another store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import obstore
import pytest

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.intake import add_version
from adapters.mirror import mirror
from adapters.releases import NewRelease, Share
from adapters.store import CONFIG, WEIGHTS, Store, version_path
from adapters.tasks import ClassificationTask
from tests.adapters.test_store import everything
from tests.conftest import MakeAdapter


@pytest.fixture
def add(make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask) -> Callable[..., int]:
    def add(store: Store, name: str = "mood", rank: int = 8) -> int:
        return add_version(store, name, make_adapter(rank=rank), sentiment_task, tiny).version

    return add


@pytest.fixture
def source(tmp_path: Path, add: Callable[..., int]) -> Store:
    store = Store(tmp_path / "store")
    for _ in range(3):
        add(store)
    store.release("mood", 1)
    store.release("mood", NewRelease(stable=2, canary=Share(version=1, percent=5)))
    store.retire("mood", 3)
    assert store.create(version_path("mood", 4, CONFIG), b"{}")  # an upload that was killed
    return store


@pytest.fixture(params=["disk", "S3"])
def backup(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(request.getfixturevalue("s3").make_bucket() if request.param == "S3" else tmp_path / "backup")


def test_a_lost_store_is_restored_with_everything(
    source: Store, backup: Store, tmp_path: Path, add: Callable[..., int]
) -> None:
    copied = mirror(source, backup)
    assert (copied.versions, copied.releases, copied.retirements, copied.problems) == (3, 2, 1, [])
    restored = Store(tmp_path / "restored")
    mirror(backup, restored)
    assert everything(restored) == everything(backup) == everything(source)
    assert list(restored.problems()) == []
    assert restored.rollback("mood").stable == 1
    assert add(restored) == 5, "a number that was claimed is not used again"


def test_a_second_time_copies_what_is_new(source: Store, backup: Store, add: Callable[..., int]) -> None:
    mirror(source, backup)
    add(source)
    source.release("mood", 5)
    copied = mirror(source, backup)
    assert (copied.versions, copied.releases, copied.retirements) == (1, 1, 0)
    assert everything(backup) == everything(source)


@pytest.mark.parametrize("writes", range(0, 12, 3))
def test_a_copy_that_is_interrupted_is_a_whole_store_and_is_gone_on_with(
    source: Store, backup: Store, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    left = [writes]

    def counted(method: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object) -> object:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return method(*arguments)

        return call

    monkeypatch.setattr(backup, "create", counted(backup.create))
    monkeypatch.setattr(backup, "write", counted(backup.write))
    with pytest.raises(KeyboardInterrupt):
        mirror(source, backup)
    assert list(backup.problems()) == [], "no release names what is not there, and every version is whole"
    monkeypatch.undo()
    mirror(source, backup)
    assert everything(backup) == everything(source)


def test_a_store_that_is_no_copy_is_left_as_it_is(source: Store, backup: Store, add: Callable[..., int]) -> None:
    add(source, "another")
    add(backup, rank=4)
    before = everything(backup)
    with pytest.raises(HotswapError, match="no copy of this store; name an empty place"):
        mirror(source, backup)
    assert everything(backup) == before


@pytest.mark.parametrize("place", ["store", "store/backup", "store/../store/"])
def test_a_copy_in_the_store_itself_is_none(source: Store, tmp_path: Path, place: str) -> None:
    before = everything(source)
    with pytest.raises(HotswapError, match="would be lost with it: name another place"):
        mirror(source, Store(f"{tmp_path}/{place}"))
    assert everything(source) == before


def test_nor_is_one_in_its_bucket_under_it(source: Store, request: pytest.FixtureRequest) -> None:
    bucket = request.getfixturevalue("s3").make_bucket()
    mirror(source, Store(f"{bucket}/store-2"))
    mirror(Store(f"{bucket}/store-2"), Store(f"{bucket}/store"))
    for place in ("store", "store/", "store/backup"):
        with pytest.raises(HotswapError, match="would be lost with it"):
            mirror(Store(f"{bucket}/store"), Store(f"{bucket}/{place}"))


def test_a_store_that_is_empty_and_was_not_is_said_to_be(source: Store, backup: Store, tmp_path: Path) -> None:
    mirror(source, backup)
    with pytest.raises(HotswapError, match="is not: is it mounted"):
        mirror(Store(tmp_path / "unmounted"), backup)


def test_a_damaged_version_is_said_to_be_and_the_rest_is_copied(source: Store, backup: Store) -> None:
    obstore.put(source._objects, version_path("mood", 1, WEIGHTS), b"damaged")
    copied = mirror(source, backup)
    assert copied.versions == 2
    (problem,) = copied.problems
    assert problem.startswith("mood@1: ")
    assert backup.versions("mood") == [2, 3]
