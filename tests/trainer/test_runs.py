"""``python -m trainer runs``: what there is, stopped and taken up again by name."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import trainer.train
from adapters.store import WEIGHTS
from tests.trainer.conftest import MakeRecipe
from tests.trainer.workplace import Result, Workplace, furnish, trained
from trainer.frozen_layers import HiddenStates
from trainer.loading import load_recipe
from trainer.occupancy import occupied
from trainer.progress import Progress
from trainer.resumption import as_yaml
from trainer.runs import STOP

pytestmark = pytest.mark.usefixtures("one_thread")
RECIPES = sorted(Path("trainer/recipes").glob("*.yaml"))


@pytest.fixture(scope="module")
def finished(one_thread: None, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Workplace:
    return trained(tmp_path_factory.mktemp("finished"), tiny_folder)


@pytest.fixture
def place(finished: Workplace, tmp_path: Path) -> Workplace:
    return finished.copied(tmp_path / "workplace")


@pytest.fixture
def empty(tmp_path: Path, tiny_folder: Path) -> Workplace:
    return furnish(tmp_path, tiny_folder)


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """Have something happen while a step is trained."""

    def happen(step: int, what: Callable[[], Any]) -> None:
        ended = Progress.on_step_end

        def then(self: Progress, args: Any, state: Any, control: Any, **more: Any) -> None:
            ended(self, args, state, control, **more)
            if state.global_step == step:
                what()

        monkeypatch.setattr(Progress, "on_step_end", then)

    return happen


def listed(place: Workplace, *arguments: object) -> list[dict[str, Any]]:
    result = place.run("runs", "--json", *arguments)
    assert (result.status, result.err) == (0, "")
    rows: list[dict[str, Any]] = json.loads(result.out)
    return rows


def states(place: Workplace) -> dict[str, str]:
    return {row["run"]: row["state"] for row in listed(place)}


def refused(result: Result, status: int = 1) -> str:
    assert (result.status, result.out) == (status, "")
    assert "Traceback" not in result.err
    return result.err.splitlines()[-1]


class TestTheList:
    def test_says_what_a_run_reached(self, place: Workplace) -> None:
        (row,) = listed(place)
        assert (row["run"], row["state"], row["steps"]) == ("mood", "trained", 20)
        assert row["validation"] > 0
        assert "test" not in row
        assert place.run("evaluate", "mood.yaml").status == 0
        (row,) = listed(place)
        assert (row["state"], row["test"], row["baseline"]) == ("evaluated", 1.0, 1.0)

    def test_is_a_table_for_people(self, place: Workplace) -> None:
        head, line = place.run("runs").out.splitlines()
        assert head.split() == ["RUN", "STATE", "WHEN", "STEPS", "VALIDATION", "TEST", "BASELINE", "SECONDS"]
        assert line.split()[:2] == ["mood", "trained"]

    def test_may_be_of_another_folder(self, place: Workplace) -> None:
        (place.folder / "runs").rename(place.folder / "earlier")
        assert [row["run"] for row in listed(place, "earlier")] == ["mood"]

    def test_leaves_out_what_is_no_run(self, place: Workplace) -> None:
        (place.folder / "runs/notes").mkdir()
        (place.folder / "runs/notes.txt").write_text("a file")
        assert states(place) == {"mood": "trained"}

    def test_tells_a_training_at_work_from_one_that_ended(self, empty: Workplace) -> None:
        with occupied(empty.run_folder, "identity"):
            assert states(empty) == {"mood": "training"}
        assert states(empty) == {"mood": "begun"}

    @pytest.mark.parametrize("name", ["run.json", "evaluation.json"])
    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"7", b"null", b'{"scores": 3}', b"\xff", b"[" * 100_000])
    def test_says_which_file_is_damaged(self, place: Workplace, name: str, content: bytes) -> None:
        (place.run_folder / name).write_bytes(content)
        assert states(place) == {"mood": "damaged"}
        assert f"mood: runs/mood/{name} cannot be read" in place.run("runs").out

    @pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}"])
    def test_passes_over_a_checkpoint_that_a_kill_left_incomplete(self, empty: Workplace, content: bytes) -> None:
        with occupied(empty.run_folder, "identity"):
            for step, state in ((4, b'{"global_step": 4, "max_steps": 18, "best_metric": 0.5}'), (8, content)):
                (empty.run_folder / f"checkpoint-{step}").mkdir()
                (empty.run_folder / f"checkpoint-{step}/trainer_state.json").write_bytes(state)
        (row,) = listed(empty)
        assert (row["state"], row["steps"], row["of"]) == ("interrupted", 4, 18)

    def test_of_no_folder_is_refused(self, empty: Workplace) -> None:
        assert "runs is no folder" in refused(empty.run("runs"))

    @pytest.mark.parametrize("words", [("stop",), ("resume",), ("a", "b"), ("stop", "a", "b")])
    def test_is_asked_for_in_one_way(self, empty: Workplace, words: tuple[str, ...]) -> None:
        refused(empty.run("runs", *words), status=2)

    def test_has_help_with_examples(self, empty: Workplace) -> None:
        result = empty.run("runs", "--help")
        assert result.status == 0
        assert "python -m trainer runs resume support" in result.out


class TestARunThatIsStopped:
    def test_goes_on_by_name_to_the_same_adapter(
        self, finished: Workplace, empty: Workplace, at_step: Callable[..., None]
    ) -> None:
        asked: list[Result] = []
        at_step(7, lambda: asked.append(empty.run("runs", "stop", "mood")))
        told = refused(empty.run("train", "mood.yaml"))
        assert (
            asked[0].out
            == "asked: runs/mood stops after its next step; python -m trainer runs resume runs/mood goes on\n"
        )
        assert "stopped after step 7 of 20, with a checkpoint: python -m trainer runs resume runs/mood goes on" in told
        (row,) = listed(empty)
        assert (row["state"], row["steps"], row["of"]) == ("interrupted", 7, 20)
        (empty.folder / "mood.yaml").unlink()
        resumed = empty.run("runs", "resume", "mood")
        assert resumed.status == 0, resumed.err
        assert resumed.out.splitlines()[-1].endswith("-m trainer evaluate runs/mood/recipe.yaml")
        ours, theirs = (load_file(place.run_folder / "adapter" / WEIGHTS) for place in (empty, finished))
        assert all((ours[name] == theirs[name]).all() for name in theirs)
        assert empty.run("evaluate", "runs/mood/recipe.yaml").status == 0

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_by_a_signal_leaves_a_checkpoint_too(
        self, empty: Workplace, at_step: Callable[..., None], number: int, status: int
    ) -> None:
        # Whoever starts tests in the background has them ignore Ctrl-C, and so would the training.
        before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        outside = signal.signal(number, before)
        at_step(3, lambda: os.kill(os.getpid(), number))
        result = empty.run("train", "mood.yaml")
        assert signal.signal(number, outside) is before
        assert result.status == status
        assert "stopped after step 3 of 20, with a checkpoint" in result.err
        assert listed(empty)[0]["steps"] == 3

    def test_at_its_last_step_is_done(self, empty: Workplace, at_step: Callable[..., None]) -> None:
        at_step(20, (lambda: (empty.run_folder / STOP).touch()))
        assert empty.run("train", "mood.yaml").status == 0
        assert states(empty) == {"mood": "trained"}
        assert not (empty.run_folder / STOP).exists()

    def test_was_asked_to_once(self, empty: Workplace) -> None:
        empty.run_folder.mkdir(parents=True)
        with occupied(empty.run_folder, "earlier"):
            (empty.run_folder / STOP).touch()
        assert empty.run("train", "mood.yaml").status == 0, (
            "what an earlier training was asked is no matter of this one"
        )

    def test_while_it_prepares_ends_after_its_first_step(
        self, empty: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        computed = HiddenStates.__init__

        def asked(self: HiddenStates, *given: Any, **named: Any) -> None:
            computed(self, *given, **named)
            assert empty.run("runs", "stop", "mood").status == 0

        monkeypatch.setattr(HiddenStates, "__init__", asked)
        assert "stopped after step 1 of 20" in refused(empty.run("train", "mood.yaml", "--set", "last_layers=1"))

    def test_after_its_last_step_leaves_nothing_behind(self, empty: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
        fitted = trainer.train._temperature

        def asked(*given: Any) -> float:
            assert empty.run("runs", "stop", "mood").status == 0
            return fitted(*given)

        monkeypatch.setattr(trainer.train, "_temperature", asked)
        assert empty.run("train", "mood.yaml").status == 0
        assert not (empty.run_folder / STOP).exists()

    def test_says_that_the_work_is_lost_where_a_method_cannot_go_on(
        self, empty: Workplace, at_step: Callable[..., None]
    ) -> None:
        asked: list[Result] = []
        at_step(3, lambda: asked.append(empty.run("runs", "stop", "mood", "--json")))
        told = refused(empty.run("train", "mood.yaml", "--set", "method=adalora"))
        assert json.loads(asked[0].out) == {"run": "runs/mood", "asked": "stop", "resumable": False}
        assert "without a checkpoint, which this method cannot go on from" in told

    @pytest.mark.parametrize("objective", ["dpo", "kto", "grpo"])
    def test_of_another_objective_goes_on_to_the_same_adapter_too(
        self, empty: Workplace, at_step: Callable[..., None], objective: str
    ) -> None:
        kinds = ("dull", "moving")
        rows = [
            {"text": f"film {n}", "summary": kinds[n % 2], "good": n % 3 > 0, "chosen": "dull", "rejected": "moving"}
            for n in range(60)
        ]
        (empty.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {"kind": "summarization", "template": "{text}:", "max_answer_tokens": 4}
        paid = {"reinforce": {"rewards": {"brief": 1.0}, "max_words": 1}} if objective == "grpo" else {}
        empty.write_recipe(objective=objective, task=task, data={"path": "rows.jsonl"}, gate={}, **paid)
        assert empty.run("train", "mood.yaml", "--set", "output=runs/whole").status == 0
        at_step(3, lambda: empty.run("runs", "stop", "mood"))
        assert "stopped after step 3" in refused(empty.run("train", "mood.yaml"))
        resumed = empty.run("runs", "resume", "mood")
        assert resumed.status == 0, resumed.err
        ours, theirs = (load_file(empty.folder / "runs" / name / "adapter" / WEIGHTS) for name in ("mood", "whole"))
        assert all((ours[name] == theirs[name]).all() for name in theirs)
        assert any(weight.abs().max() > 0 for name, weight in ours.items() if "lora_B" in name)

    def test_has_to_be_at_work(self, place: Workplace) -> None:
        assert "no training is at work in runs/mood" in refused(place.run("runs", "stop", "mood"))
        assert not (place.run_folder / STOP).exists()

    @pytest.mark.parametrize("what", ["stop", "resume"])
    def test_has_to_be_there(self, place: Workplace, what: str) -> None:
        assert "is not a run of this trainer" in refused(place.run("runs", what, "nothing"))


class TestARunThatIsResumed:
    def test_may_be_done_already(self, place: Workplace) -> None:
        result = place.run("runs", "resume", "mood", "--json")
        assert (result.status, json.loads(result.out)["steps"]) == (0, 20)
        assert "already trained" in result.err

    def test_has_the_settings_and_the_base_that_it_was_begun_with(self, empty: Workplace, tmp_path: Path) -> None:
        assert empty.run("train", "mood.yaml", "--set", "lora.rank=2").status == 0
        (empty.run_folder / "run.json").unlink()
        result = empty.run("runs", "resume", "runs/mood", base=tmp_path / "no base")
        assert result.status == 0, result.err
        assert json.loads((empty.run_folder / "adapter/adapter_config.json").read_text())["r"] == 2

    def test_needs_the_same_rows(self, empty: Workplace) -> None:
        assert empty.run("train", "mood.yaml").status == 0
        with (empty.folder / "rows.jsonl").open("a") as rows:
            rows.write('{"text": "film 999 is moving", "label": "positive"}\n')
        assert "the rows or the base are not those" in refused(empty.run("runs", "resume", "mood"))
        assert states(empty) == {"mood": "trained"}

    def test_has_its_recipe_where_writing_it_failed_once(
        self, place: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        before = (place.run_folder / "recipe.yaml").read_text()

        def full(self: Path, content: str, **_: Any) -> int:
            with self.open("w") as file:
                file.write(content[:3])
            raise OSError(errno.ENOSPC, "No space left on device", str(self))

        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_text", full)
            assert "No space left" in refused(place.run("train", "mood.yaml"))
        assert (place.run_folder / "recipe.yaml").read_text() == before

    def test_needs_its_recipe(self, place: Workplace) -> None:
        (place.run_folder / "recipe.yaml").unlink()
        assert "does not say its recipe" in refused(place.run("runs", "resume", "mood"))

    @pytest.mark.parametrize("content", ["", "{", "name: 7", "a: [b"])
    def test_needs_a_sound_recipe(self, place: Workplace, content: str) -> None:
        (place.run_folder / "recipe.yaml").write_text(content)
        assert "recipe.yaml" in refused(place.run("runs", "resume", "mood"))

    def test_is_not_at_work(self, place: Workplace) -> None:
        with occupied(place.run_folder, (place.run_folder / "run-identity").read_text()):
            assert "another training is at work" in refused(place.run("runs", "resume", "mood"))

    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
    def test_has_the_identity_of_its_recipe(self, path: Path, tmp_path: Path) -> None:
        recipe = load_recipe(path)
        (tmp_path / "kept.yaml").write_text(as_yaml(recipe))
        assert load_recipe(tmp_path / "kept.yaml").run_identity("rows", "base") == recipe.run_identity("rows", "base")

    def test_finds_what_its_recipe_names_from_anywhere(
        self, make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "base").mkdir()
        task = {"kind": "summarization"}
        recipe = make_recipe(objective="grpo", task=task, base="base", reinforce={"reward_model": "runs/judge"})
        (tmp_path / "kept.yaml").write_text(as_yaml(recipe))
        again = load_recipe(tmp_path / "kept.yaml")
        assert (again.base, again.reinforce.reward_model) == (str(tmp_path / "base"), tmp_path / "runs/judge")
        assert again.run_identity("rows", "base") == recipe.run_identity("rows", "base")

    def test_keeps_labels_that_yaml_would_read_otherwise(self, make_recipe: MakeRecipe, tmp_path: Path) -> None:
        task = {"kind": "classification", "labels": ["no", "yes", "1.0", "1:30", "null", "ä"]}
        recipe = make_recipe(task=task, data={"path": "a.csv", "separator": "tab"})
        (tmp_path / "kept.yaml").write_text(as_yaml(recipe), encoding="utf-8")
        again = load_recipe(tmp_path / "kept.yaml")
        assert again.task == recipe.task
        assert again.data.separator == "\t"


def test_machines_follow_a_training_in_json_lines(empty: Workplace) -> None:
    result = empty.run("train", "mood.yaml", "--json")
    assert json.loads(result.out)["steps"] == 20
    told = [json.loads(line) for line in result.err.splitlines()]
    steps, validations = ([each for each in told if each["event"] == event] for event in ("step", "validation"))
    assert {"step", "of", "loss", "tokens_per_second", "seconds_left"} <= steps[0].keys()
    assert (steps[-1]["of"], validations[-1]["step"]) == (20, 20)
    assert validations[-1]["best"] == min(each["loss"] for each in validations)
    told = [json.loads(line) for line in empty.run("evaluate", "mood.yaml", "--json").err.splitlines()]
    of_test = [each for each in told if each.get("what") == "test: adapter" and each["event"] == "progress"]
    assert of_test[-1]["done"] == of_test[-1]["of"] > 0
