"""A run's folder: one training at a time, and nothing lost that was there before."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from adapters.errors import HotswapError
from tests.trainer.workplace import Workplace, trained
from trainer.occupancy import occupied
from trainer.recipe import IDENTITY
from trainer.runs import identity_of


@pytest.fixture(scope="module")
def finished(one_thread: None, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Workplace:
    return trained(tmp_path_factory.mktemp("finished"), tiny_folder)


@pytest.fixture
def place(finished: Workplace, tmp_path: Path) -> Workplace:
    return finished.copied(tmp_path / "workplace")


def files(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "setting",
    [
        "last_layers=1000",
        "lora.target_modules=[nonsense]",
        "task.max_input_tokens=100000",
        "training.learning_rate=1e30",
    ],
)
def test_a_training_that_fails_leaves_the_finished_run_as_it_was(place: Workplace, setting: str) -> None:
    before = files(place.run_folder)
    assert place.run("train", "mood.yaml", "--set", setting).status == 1
    assert files(place.run_folder) == before


def test_a_training_that_ends_takes_the_place_of_the_earlier_one(place: Workplace) -> None:
    result = place.run("train", "mood.yaml", "--set", "training.epochs=1")
    assert "the earlier run in runs/mood is kept until this one is trained" in result.err
    assert [path.name for path in (place.folder / "runs").iterdir() if path.is_dir()] == ["mood"]
    assert place.run("evaluate", "mood.yaml").status == 1, "it is the other recipe's now"


def test_two_trainings_do_not_share_a_folder(place: Workplace) -> None:
    with occupied(place.run_folder, identity_of(place.run_folder) or ""):
        result = place.run("train", "mood.yaml", "--set", "lora.rank=2")
    assert result.status == 1
    assert "another training is at work in runs/mood; wait for it, or set output" in result.err


def begun(folder: Path, identity: str) -> None:
    """Leave what a killed training leaves after its first checkpoint."""
    with contextlib.suppress(KeyboardInterrupt), occupied(folder, identity):
        (folder / "checkpoint-1").mkdir()
        (folder / "checkpoint-1/trainer_state.json").write_text(identity)
        raise KeyboardInterrupt


def test_what_was_begun_after_a_finished_run_goes_on_and_the_finished_one_comes_back_when_asked_for(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mood"
    with occupied(folder, "first"):
        (folder / "run.json").write_text("{}")
    begun(folder, "second")
    begun(folder, "third")  # an unfinished run gives way to it, the finished one does not
    with occupied(folder, "third") as checkpoint:
        assert checkpoint == str(folder / "checkpoint-1")
    with contextlib.suppress(HotswapError), occupied(folder, "fourth"):
        assert identity_of(folder) == "fourth"
        raise HotswapError("refused before its first checkpoint")
    assert identity_of(folder) == "third"
    begun(folder, "fifth")
    with occupied(folder, "third"):
        assert identity_of(folder) == "third"
    assert (folder / "checkpoint-1/trainer_state.json").read_text() == "third"


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/me.jpg").touch()
    with pytest.raises(HotswapError, match="is not empty and not a run"), occupied(tmp_path / "photos", "any"):
        pytest.fail("it was taken")
    assert not (tmp_path / "photos" / IDENTITY).exists()
