"""What was acknowledged survives a power cut; a cache keeps what was used last."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from adapters import cache
from adapters.base_model import Base
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from tests.conftest import MakeAdapter


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return the files and folders that were brought to the disk, in order."""
    synced: list[Path] = []
    fsync = os.fsync

    def noted(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    return synced


def is_durable(path: Path, root: Path, synced: list[Path]) -> bool:
    """Whether a file, and then every folder that names it, was brought to the disk."""
    if path not in synced:
        return False
    after = synced[synced.index(path) :]
    return all(folder in after for folder in path.parents if folder == root or root in folder.parents)


def test_a_version_is_on_the_disk_before_its_manifest_and_its_manifest_before_it_is_acknowledged(
    store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task, synced: list[Path]
) -> None:
    add_version(store, "mood", make_adapter(), sentiment_task, tiny)
    assert store.folder is not None
    version = store.folder / "mood/versions/1"
    files = list(version.iterdir())
    assert len(files) >= 3
    for file in files:
        assert is_durable(file, store.folder, synced), file.name
    order = [path for path in synced if path.parent == version]
    assert order[-1].name == "manifest.json", "its presence says that all the others are there"
    before_manifest = synced[: synced.index(version / "manifest.json")]
    for file in set(files) - {version / "manifest.json"}:
        assert is_durable(file, store.folder, before_manifest), file.name


def test_a_release_and_a_retirement_are_on_the_disk_before_they_are_acknowledged(
    stocked: Store, synced: list[Path]
) -> None:
    assert stocked.folder is not None
    stocked.release("mood", NewRelease(stable=1, why="again"))
    assert is_durable(stocked.folder / "mood/releases/2.json", stocked.folder, synced)
    stocked.retire("mood", 2)
    assert is_durable(stocked.folder / "mood/retired/2.json", stocked.folder, synced)


def test_a_disk_that_cannot_be_written_to_acknowledges_nothing(stocked: Store, monkeypatch) -> None:
    from adapters.errors import StoreUnavailable

    def failing(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", failing)
    with pytest.raises(StoreUnavailable):
        stocked.release("mood", NewRelease(stable=2))


def keep(folder: Path, name: str, size: int, used: float) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "weights").write_bytes(b"x" * size)
    os.utime(folder / name, (used, used))


def test_a_cache_keeps_what_was_used_last_up_to_its_bytes(tmp_path: Path) -> None:
    for age, (name, size) in enumerate([("newest", 400), ("second", 300), ("third", 300), ("oldest", 100)]):
        keep(tmp_path, name, size, used=1_000_000 - age)
    cache.touch(tmp_path / "third")
    cache.trim(tmp_path, 800)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["newest", "oldest", "third"]


def test_a_cache_removes_nothing_that_is_being_read(tmp_path: Path) -> None:
    for name in ("one", "two"):
        keep(tmp_path, name, 1000, used=1_000_000)
        cache.touch(tmp_path / name)
    cache.trim(tmp_path, 10)
    assert len(list(tmp_path.iterdir())) == 2


def test_fetching_counts_as_use_and_keeps_the_cache_within_its_bytes(
    stocked: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "IN_USE_SECONDS", -1.0)
    folders = [stocked.fetch(name, version, tmp_path) for name, version in (("mood", 1), ("mood", 2), ("brief", 1))]
    for age, folder in enumerate(folders):
        os.utime(folder, (1000 - age, 1000 - age))
    stocked.fetch("brief", 1, tmp_path)
    size = sum(file.stat().st_size for file in folders[2].iterdir())
    cache.trim(tmp_path / "adapters", int(1.5 * size))
    assert [folder.exists() for folder in folders] == [False, False, True]
