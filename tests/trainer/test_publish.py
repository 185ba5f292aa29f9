"""``python -m trainer``: from rows to a version in the store, by the commands that a user types."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from adapters.base_model import Base
from adapters.profile import bins_of, unpacked
from adapters.releases import Guard, NewRelease, Share
from adapters.signing import TrustedKeys
from adapters.store import Store
from adapters.tasks import ClassificationTask, SummarizationTask
from tests.conftest import make_keys
from tests.trainer.conftest import reviews, settings
from tests.trainer.workplace import Result, Workplace, furnish
from trainer.codec import Codec
from trainer.data import Splits, load_splits
from trainer.evaluate import profile_of
from trainer.evaluation import Evaluation
from trainer.loading import load_recipe
from trainer.mixture import make_job
from trainer.prediction import predict
from trainer.report import card
from trainer.robustness import DISTURBANCES
from trainer.rows import Row
from trainer.run_record import RunRecord

pytestmark = pytest.mark.usefixtures("one_thread")

ANEW = "delete runs/mood and train again"
REMEDY = {"run.json": ANEW, "adapter/task.json": ANEW, "evaluation.json": "evaluate again"}


@pytest.fixture(scope="module")
def trained(
    one_thread: None, tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path
) -> tuple[Workplace, list[Result]]:
    """A workplace where ``train`` and ``evaluate`` have run."""
    place = furnish(tmp_path_factory.mktemp("workplace"), tiny_folder)
    return place, [place.run("train", "mood.yaml"), place.run("evaluate", "mood.yaml")]


@pytest.fixture
def place(trained: tuple[Workplace, list[Result]], tmp_path: Path) -> Workplace:
    """A copy of it, for a test to spoil."""
    shutil.copytree(trained[0].folder, tmp_path / "workplace", ignore=shutil.ignore_patterns("checkpoint-*"))
    return Workplace(tmp_path / "workplace", trained[0].base)


@pytest.fixture
def refused(place: Workplace) -> Callable[..., str]:
    """Run a command that must be refused in one line, and must store nothing."""

    def refused(*arguments: object, **more: Any) -> str:
        before = place.store.names()
        result = place.run(*arguments, **more)
        assert result.status == 1, (result.out, result.err)
        assert result.out == ""
        assert "Traceback" not in result.err
        line = result.err.splitlines()[-1]
        assert line.startswith("python -m trainer: ")
        assert place.store.names() == before
        return line

    return refused


class TestTraining:
    def test_says_what_it_did_and_what_comes_next(self, trained: tuple[Workplace, list[Result]]) -> None:
        result = trained[1][0]
        assert result.status == 0
        done, following = result.out.splitlines()
        assert done.startswith("trained 3,584 parameters in ")
        assert ", validation loss " in done
        assert following == "next: python -m trainer evaluate mood.yaml"
        assert " train, " in result.err
        assert "base tiny-llama; run folder runs/mood" in result.err

    def test_leaves_the_task_that_will_be_served_beside_the_adapter(
        self, trained: tuple[Workplace, list[Result]], tiny: Base
    ) -> None:
        folder = trained[0].run_folder / "adapter"
        task = ClassificationTask.model_validate_json((folder / "task.json").read_bytes())
        labels, cut = ["negative", "positive"], {"max_input_tokens": 512, "head_share": 0.75}
        assert task == ClassificationTask.of("Review: {text}\nSentiment:", labels, tiny.tokenizer, **cut)

    def test_prints_json_and_nothing_else(self, place: Workplace) -> None:
        result = place.run("train", "mood.yaml", "--json", "--set", "training.epochs=1")
        assert json.loads(result.out)["rows"] == json.loads((place.run_folder / "run.json").read_text())["rows"]

    def test_of_a_finished_run_changes_no_more_than_the_kept_recipe(self, place: Workplace) -> None:
        def kept() -> dict[Path, bytes]:
            files = (path for path in place.run_folder.rglob("*") if path.is_file())
            return {path: path.read_bytes() for path in files if path.name != "recipe.yaml"}

        before = kept()
        result = place.run("train", "mood.yaml", "--set", "gate.baseline=any")
        assert "already trained; delete runs/mood to train it again" in result.err
        assert kept() == before
        assert yaml.safe_load((place.run_folder / "recipe.yaml").read_text())["gate"]["baseline"] == "any"

    def test_again_with_another_recipe_forgets_the_old_scores(self, place: Workplace) -> None:
        assert (place.run_folder / "evaluation.json").is_file()
        place.run("train", "mood.yaml", "--set", "training.epochs=1")
        assert not (place.run_folder / "evaluation.json").exists()

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"trainning": {}}, "trainning: unknown key; did you mean 'training'?"),
            ({"data": {"path": "nothing.csv"}}, "data.path nothing.csv does not exist"),
            ({"data": {"path": "rows.jsonl", "text": "review"}}, "no column 'review'; it has: label, text"),
            ({"lora": {"target_modules": ["q_prj"]}}, "this base has no q_prj; it has: "),
            ({"task": {"kind": "classification", "labels": [*"aba"]}}, "label names must be distinct"),
            ({"base": "/no/such/base"}, "'/no/such/base' is neither a folder nor a model"),
            ({"output": "."}, "is not empty and not a run of this trainer"),
        ],
    )
    def test_refuses_a_recipe_that_cannot_be_trained(
        self,
        place: Workplace,
        refused: Callable[..., str],
        changes: dict[str, Any],
        reason: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        shutil.rmtree(place.folder / "runs")
        rows = (
            reviews(120) if "task" not in changes else [{"text": f"film {n}", "label": "ab"[n % 2]} for n in range(99)]
        )
        (place.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        place.write_recipe(**changes)
        assert reason in refused("train", "mood.yaml")

    @pytest.mark.parametrize(
        "arguments", [(), ("train",), ("frobnicate", "mood.yaml"), ("train", "mood.yaml", "--unheard-of")]
    )
    def test_in_a_wrong_way_ends_with_2_and_the_usage(self, place: Workplace, arguments: tuple[str, ...]) -> None:
        result = place.run(*arguments)
        assert (result.status, result.out) == (2, "")
        assert result.err.startswith("usage: python -m trainer")

    @pytest.mark.parametrize("command", [None, "train", "evaluate", "publish"])
    def test_has_help_with_an_example(self, place: Workplace, command: str | None) -> None:
        result = place.run(*([command] if command else []), "--help")
        assert result.status == 0
        assert "example: python -m trainer " in result.out


class TestTrainingSettings:
    def test_less_memory_for_more_time_changes_no_result(self, place: Workplace) -> None:
        kept = json.loads((place.run_folder / "run.json").read_text())
        settings = ("--set", "training.gradient_checkpointing=true")
        again = json.loads(place.run("train", "mood.yaml", *settings, "--json").out)
        assert again["best_validation_loss"] == pytest.approx(kept["best_validation_loss"], rel=1e-4)

    def test_curves_are_kept_for_tensorboard_unless_nobody_wants_them(self, place: Workplace) -> None:
        assert list(place.run_folder.rglob("events.out.tfevents*"))
        shutil.rmtree(place.run_folder)
        assert place.run("train", "mood.yaml", "--set", "training.report_to=[]").status == 0
        assert not list(place.run_folder.rglob("events.out.tfevents*"))

    def test_a_tracker_that_is_not_installed_is_named_before_training(
        self, refused: Callable[..., str], place: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("trainer.train.find_spec", lambda name: None)
        place.write_recipe(seed=8)
        told = refused("train", "mood.yaml", "--set", "training.report_to=[wandb]")
        assert "pip install wandb" in told


class TestSweeping:
    SPACE: ClassVar = {"training.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "lora.rank": [2, 4]}

    def test_tries_goes_on_and_names_the_command_for_the_best(self, place: Workplace) -> None:
        place.write_recipe(sweep=self.SPACE)
        assert place.run("sweep", "mood.yaml", "--trials", 2).status == 0
        result = place.run("sweep", "mood.yaml", "--trials", 3)
        heading, *trials, following = result.out.splitlines()
        assert set(heading.split()) == {"TRIAL", "STATE", "VALIDATION_LOSS", "TRAINING.LEARNING_RATE", "LORA.RANK"}
        assert sorted(trial.split()[0] for trial in trials) == ["0", "1", "2"], "two were remembered"
        assert following.startswith("next: python -m trainer train mood.yaml --set ")
        assert [path.name for path in (place.folder / "runs/mood.sweep").iterdir()] == ["sweep.db"]
        rows = json.loads(place.run("sweep", "mood.yaml", "--trials", 3, "--json").out)
        losses = [row["validation_loss"] for row in rows]
        assert losses == sorted(losses)
        assert len({row["training.learning_rate"] for row in rows}) == 3, "nothing is proposed twice"
        best = shlex.split(following.removeprefix("next: python -m trainer "))
        assert place.run(*best, "--json").status == 0
        trained = json.loads((place.run_folder / "run.json").read_text())
        assert trained["best_validation_loss"] == losses[0], "the winner trained again is the winner"

    @pytest.mark.parametrize(
        ("space", "reason"),
        [
            ({"lora.rnak": [2, 4]}, "rnak"),
            ({"training.learning_rate": {"low": 1, "high": 0.1}}, "low must be below high"),
            ({"lora.rank": ["many"]}, "lora.rank"),
            ({"training.learning_rate": [0.01, -1]}, "training.learning_rate: Input should be greater than 0"),
            ({"lora.rank": {"low": 1, "high": 8}}, "lora.rank: Input should be a valid integer"),
        ],
    )
    def test_of_what_is_no_setting_is_refused_before_anything_is_trained(
        self, place: Workplace, refused: Callable[..., str], space: dict, reason: str
    ) -> None:
        place.write_recipe(sweep=space)
        assert reason in refused("sweep", "mood.yaml")

    def test_of_another_recipe_space_or_data_does_not_go_on_with_what_was_tried(
        self, place: Workplace, refused: Callable[..., str]
    ) -> None:
        place.write_recipe(sweep={"lora.rank": [2]})
        quick = ("--trials", 1, "--set", "training.epochs=1")
        assert place.run("sweep", "mood.yaml", *quick).status == 0
        told = "holds a sweep of another recipe, search space, data or base; delete it, or set output"
        assert told in refused("sweep", "mood.yaml", "--trials", 2)
        assert told in refused("sweep", "mood.yaml", *quick, "--set", "sweep={lora.rank: [2, 4]}")
        with (place.folder / "rows.jsonl").open("a") as file:
            file.write('{"text": "one more film, moving", "label": "positive"}\n')
        assert told in refused("sweep", "mood.yaml", *quick)

    def test_in_which_every_trial_fails_or_whose_study_is_damaged_says_so(
        self, place: Workplace, refused: Callable[..., str]
    ) -> None:
        place.write_recipe(sweep={"training.learning_rate": [1e30]})
        assert "no trial came to an end" in refused("sweep", "mood.yaml", "--trials", 1)
        (place.folder / "runs/mood.sweep/sweep.db").write_text("no database, this")
        assert "cannot be used as a study" in refused("sweep", "mood.yaml", "--trials", 1)


class TestEvaluating:
    def test_shows_base_and_adapter_side_by_side(self, trained: tuple[Workplace, list[Result]]) -> None:
        result = trained[1][1]
        assert result.status == 0
        heading, *rows, verdict, against_base, following = result.out.splitlines()
        assert heading.split() == ["TEST", "METRIC", "BASE", "BASELINE", "ADAPTER", "INTERVAL"]
        assert verdict.startswith(
            "not shown to be better than a simple model: this adapter 1.000, TF-IDF with logistic"
        )
        assert against_base.startswith("the base untrained: ")
        assert [row.split()[1] for row in rows] == [
            "rows",
            "accuracy",
            "macro_f1",
            "weighted_f1",
            "calibration_error",
        ]
        assert rows[1].split()[4] == "1.000", "one word decides; a two-layer model learns it"
        assert following == "next: python -m trainer publish mood.yaml"
        for judged in ("What was forgotten? ", "What breaks it? ", "Which labels does it not know? "):
            assert judged in result.err

    def test_writes_one_page_that_needs_nothing_else_and_escapes_the_data(self, place: Workplace) -> None:
        rows = (place.folder / "rows.jsonl").read_text().replace("is dull", "is <b>dull</b>")
        (place.folder / "rows.jsonl").write_text(rows)
        shutil.rmtree(place.folder / "runs")
        for command in ("train", "evaluate"):
            assert place.run(command, "mood.yaml").status == 0
        page = (place.run_folder / "report.html").read_text()
        assert page.count("<svg") == 3
        assert "&lt;b&gt;dull" in page
        assert "<b>dull" not in page
        assert not re.search(r"(src|href)=.http", page)
        assert "accuracy" in page
        assert "Each label on the test rows" in page
        robustness = json.loads((place.run_folder / "evaluation.json").read_text())["robustness"]
        assert set(robustness) == {"rows", "as written", *DISTURBANCES}

    def test_scores_the_test_rows_apart_by_length_and_by_the_columns_asked_for(self, place: Workplace) -> None:
        rows = [{**row, "source": None if n % 5 == 0 else "ab"[n % 2]} for n, row in enumerate(reviews(300))]
        (place.folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        place.write_recipe(data={"path": "rows.jsonl", "validation": 0.2, "test": 0.2, "slices": ["source"]})
        shutil.rmtree(place.run_folder)
        for command in ("train", "evaluate"):
            assert place.run(command, "mood.yaml").status == 0
        evaluation = json.loads((place.run_folder / "evaluation.json").read_text())
        apart, scores = evaluation["slices"], evaluation["scores"]["test"]["adapter"]
        assert set(apart) == {"length", "source"}
        assert set(apart["source"]["values"]) == {"", "a", "b"}
        for column in apart.values():
            assert sum(each["rows"] for each in column["values"].values()) == scores["rows"]
            right = sum(each["rows"] * each["score"] for each in column["values"].values())
            assert right == pytest.approx(scores["rows"] * scores["accuracy"])
        assert apart["source"]["gap"] is not None
        assert apart["source"]["demographic_parity"] is not None

    def test_prints_json_and_nothing_else(self, place: Workplace) -> None:
        scores = json.loads(place.run("evaluate", "mood.yaml", "--json").out)
        assert scores == json.loads((place.run_folder / "evaluation.json").read_text())["scores"]
        assert set(scores["test"]) == {"base", "baseline", "adapter"}
        assert all("accuracy" in each["intervals"] for each in scores["test"].values())

    def test_scores_extra_rows_too(self, place: Workplace) -> None:
        shutil.rmtree(place.folder / "runs")
        (place.folder / "far.csv").write_text("text,label\nfilm 200 is moving,positive\nfilm 201 is dull,positive\n")
        data = settings()["data"] | {"extra_tests": {"far": {"path": "far.csv"}}}
        place.write_recipe(data=data, gate={"extra_tests": {"far": {"accuracy": 1}}})
        place.run("train", "mood.yaml")
        scores = json.loads(place.run("evaluate", "mood.yaml", "--json").out)
        assert scores["far"]["adapter"]["rows"] == 2
        assert "far accuracy is " in place.run("publish", "mood.yaml").err

    def test_of_what_was_never_trained_says_what_comes_first(
        self, place: Workplace, refused: Callable[..., str]
    ) -> None:
        shutil.rmtree(place.folder / "runs")
        for command in ("evaluate", "publish"):
            line = refused(command, "mood.yaml")
            assert line.endswith("run.json is missing: python -m trainer train comes first, with the same recipe.")

    def test_of_other_rows_is_refused(self, place: Workplace, refused: Callable[..., str]) -> None:
        with (place.folder / "rows.jsonl").open("a") as file:
            file.write('{"text": "one more", "label": "positive"}\n')
        assert "the data is not what the adapter was trained on; train again" in refused("evaluate", "mood.yaml")

    def test_agrees_with_a_loop_by_hand(self, trained: tuple[Workplace, list[Result]], tiny: Base) -> None:
        place = trained[0]
        rows = load_splits(load_recipe(place.folder / "mood.yaml"), place.folder / "cache").test
        task = ClassificationTask.model_validate_json((place.run_folder / "adapter" / "task.json").read_bytes())
        model = with_adapter(place)
        right, scores = 0, []
        for row in rows:
            ids = torch.tensor([task.prompt(row.text, tiny.tokenizer).ids])
            with torch.no_grad():
                logprobs = model(input_ids=ids).logits[0, -1].float().log_softmax(-1)
            ranked = sorted(task.labels, key=lambda label: float(logprobs[label.token_id]), reverse=True)
            right += ranked[0].name == row.answer
            scores.append(float(torch.stack([logprobs[label.token_id] for label in ranked]).softmax(0)[0]))
        evaluation = json.loads((place.run_folder / "evaluation.json").read_text())
        assert evaluation["scores"]["test"]["adapter"]["accuracy"] == right / len(rows)
        answers = predict(model, rows, Codec(task, tiny))
        assert [answer["score"] for answer in answers] == pytest.approx(scores, abs=1e-5)
        assert [answer["label"] == row.answer for answer, row in zip(answers, rows, strict=True)].count(True) == right

    def test_of_summaries_agrees_with_a_loop_by_hand(self, trained: tuple[Workplace, list[Result]], tiny: Base) -> None:
        task = SummarizationTask.of("Text: {text}\nSummary:", max_answer_tokens=6)
        rows = [Row(text, "x", text) for text in ("A film.", "A moving and beautifully acted film.", "dull " * 9)]
        model = with_adapter(trained[0])
        answers = predict(model, rows, Codec(task, tiny))
        for row, answer in zip(rows, answers, strict=True):
            ids = task.prompt(row.text, tiny.tokenizer).ids
            said: list[int] = []
            while len(said) < 6 and tiny.end_id not in said:
                with torch.no_grad():
                    said.append(int(model(input_ids=torch.tensor([ids + said])).logits[0, -1].argmax()))
            ended = said[-1] == tiny.end_id
            assert answer["summary"] == tiny.tokenizer.decode(said[:-1] if ended else said).strip()
            assert answer["finish_reason"] == ("stop" if ended else "length")

    def test_leaves_a_profile_to_compare_live_traffic_with(self, place: Workplace, tiny: Base) -> None:
        recipe = load_recipe(place.folder / "mood.yaml")
        job = make_job(recipe, load_splits(recipe, place.folder / "cache"), tiny)
        rows = [
            Row("film 1 is dull", "negative", "1"),
            Row("film 2 is moving", "positive", "2"),
            Row("zebra", "negative", "3"),
        ]
        outputs = [
            {"label": label, "score": score}
            for label, score in (("negative", 0.55), ("negative", 0.95), ("positive", 1.0))
        ]
        profile = profile_of(job, rows, outputs)
        assert (profile.rows, profile.labels) == (3, pytest.approx({"negative": 2 / 3, "positive": 1 / 3}))
        assert profile.accuracy == pytest.approx(1 / 3)
        assert profile.shares("confidence") == pytest.approx(
            dict.fromkeys(bins_of("confidence"), 0) | {"0.6": 1 / 3, "0.95": 1 / 3, "1": 1 / 3}
        )
        assert sum(profile.shares("unknown_tokens").values()) == pytest.approx(1)
        trained = {token for row in job.splits.train for token in job.task.prompt(row.text, tiny.tokenizer).ids}
        assert unpacked(profile.known_tokens) == trained
        assert profile.shares("coverage") == {}


class TestPublishing:
    @pytest.fixture
    def published(self, place: Workplace) -> Workplace:
        result = place.run("publish", "mood.yaml", "--why", "first")
        assert (result.status, result.err) == (0, "")
        assert result.out == f"mood@1 published to {place.folder / 'store'}, released as generation 1\n"
        return place

    def test_makes_a_version_and_releases_it(self, published: Workplace) -> None:
        store = published.store
        assert store.versions("mood") == [1]
        assert list(store.problems()) == []
        released = store.released("mood")
        assert released is not None
        assert (released.stable, released.canary, released.by, released.why) == (1, None, "ann", "first")

    def test_says_in_the_manifest_where_it_comes_from(self, published: Workplace, tiny: Base) -> None:
        manifest, _ = published.store.manifest("mood", 1)
        recipe = load_recipe(published.folder / "mood.yaml")
        splits = load_splits(recipe, published.folder / "cache")
        assert manifest.description == "Moving or dull."
        assert manifest.base.model_dump() == {"name": "tiny-llama", "digest": tiny.digest}
        assert (manifest.rank, manifest.alpha, manifest.target_modules) == (4, 8, ("q_proj", "v_proj"))
        assert manifest.lineage["recipe"]["seed"] == 7
        assert manifest.lineage["recipe"]["training"]["learning_rate"] == 1e-2
        assert manifest.lineage["data"] == {"fingerprint": splits.fingerprint, "rows": splits.counts()}
        assert {"torch", "transformers", "peft", "trl", "tokenizers"} <= set(manifest.lineage["libraries"])
        assert manifest.lineage["libraries"]["torch"] == torch.__version__
        assert manifest.lineage["code"]["version"] == version("hotswap")

    def test_says_in_the_manifest_how_good_it_is(self, published: Workplace) -> None:
        manifest, _ = published.store.manifest("mood", 1)
        evaluation = json.loads((published.run_folder / "evaluation.json").read_text())
        assert manifest.metrics == evaluation["scores"]
        assert manifest.metrics["test"]["adapter"]["accuracy"] == 1
        assert manifest.profile is not None
        assert manifest.profile.rows == manifest.metrics["test"]["adapter"]["rows"]
        assert math.isclose(sum(manifest.profile.labels.values()), 1)
        assert manifest.profile.confidence[1.0] == 1

    def test_says_in_the_manifest_how_its_scores_were_computed(self, published: Workplace) -> None:
        computed = published.store.manifest("mood", 1)[0].computed
        assert computed is not None
        assert (computed.dtype, computed.device) == ("float32", "cpu")

    def test_puts_a_card_into_the_version(self, published: Workplace, tmp_path: Path) -> None:
        text = (published.store.fetch("mood", 1, tmp_path) / "README.md").read_text()
        manifest, _ = published.store.manifest("mood", 1)
        for part in (
            "# mood",
            "Moving or dull.",
            manifest.base.digest,
            manifest.lineage["data"]["fingerprint"],
            "| test | accuracy |",
            "Confusion on test",
            "learning_rate: 0.01",
            "(seed 7)",
        ):
            assert part in text
        again = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
        given = {key: value for key, value in manifest.lineage["recipe"]["training"].items() if value is not None}
        assert again["training"] == given, "the card's recipe can be used"

    def test_of_what_was_made_into_a_lora_says_what_that_cost(self, place: Workplace) -> None:
        changes = ("--set", "method=dora", "--set", "convert.error=0.2", "--set", "gate={}")
        for command in ("train", "publish"):
            assert place.run(command, "mood.yaml", *changes).status == 0
        card = (place.folder / "store/mood/versions/1/README.md").read_text()
        assert "A LoRA adapter, trained with dora, for" in card
        assert "The change was made into a LoRA of rank" in card
        assert "Before that, on the test rows: accuracy" in card

    @pytest.mark.parametrize(("method", "served"), [("prompt_tuning", True), ("prefix_tuning", False)])
    def test_of_a_learnt_prompt_works_and_of_a_prefix_says_what_would(
        self, place: Workplace, method: str, served: bool
    ) -> None:
        changes = ("--set", f"method={method}", "--set", "gate={}")
        assert place.run("train", "mood.yaml", *changes).status == 0
        published = place.run("publish", "mood.yaml", *changes)
        assert (published.status == 0) is served
        assert served or "train with prompt_tuning, p_tuning or lora" in published.err

    def test_again_makes_the_next_version(self, published: Workplace) -> None:
        result = published.run("publish", "mood.yaml", "--json")
        assert json.loads(result.out) == {"name": "mood", "version": 2, "generation": 2}

    @pytest.mark.parametrize("trial", ["canary", "guard", "shadow"])
    def test_ends_no_trial_unless_told_to(self, published: Workplace, refused: Callable[..., str], trial: str) -> None:
        assert published.run("publish", "mood.yaml", "--no-release").status == 0
        share = Share(version=2, percent=10)
        canary, shadow = (None, share) if trial == "shadow" else (share, None)
        guard = Guard() if trial == "guard" else None
        published.store.release("mood", NewRelease(stable=1, canary=canary, shadow=shadow, guard=guard))
        text = refused("publish", "mood.yaml")
        assert "mood has a trial running" in text
        assert f"version 2 is its {'shadow' if shadow else 'canary'}" in text
        assert published.store.versions("mood") == [1, 2]
        assert published.store.released("mood").generation == 2
        assert published.run("publish", "mood.yaml", "--no-release").status == 0
        assert published.run("publish", "mood.yaml", "--end-canary").status == 0
        released = published.store.released("mood")
        assert (released.stable, released.canary, released.shadow, released.guard) == (4, None, None, None)

    def test_releases_nothing_over_what_was_released_meanwhile(
        self, published: Workplace, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from trainer import publish

        stored = publish.publish

        def meanwhile(*arguments: Any, **options: Any) -> Any:
            published.store.release("mood", NewRelease(stable=1))
            return stored(*arguments, **options)

        monkeypatch.setattr(publish, "publish", meanwhile)
        text = refused("publish", "mood.yaml")
        assert "mood@2 is stored and not released: mood is at generation 2, not 1" in text
        assert "python -m adapters release mood 2" in text
        assert published.store.released("mood").stable == 1

    def test_without_release_serves_nothing(self, place: Workplace) -> None:
        result = place.run("publish", "mood.yaml", "--no-release")
        assert result.out.endswith("not released\n")
        assert (place.store.versions("mood"), place.store.released("mood")) == ([1], None)

    def test_may_be_signed(self, place: Workplace, tmp_path: Path, refused: Callable[..., str]) -> None:
        private, public = make_keys(tmp_path)
        assert "team.pub is not a private key" in refused("publish", "mood.yaml", "--sign", public)
        place.run("publish", "mood.yaml", "--sign", private)
        trusting = Store(place.store.place, trusted=TrustedKeys(public))
        assert (trusting.versions("mood"), list(trusting.problems())) == ([1], [])

    def test_may_go_to_another_store(self, place: Workplace) -> None:
        place.run("publish", "mood.yaml", "--store", place.folder / "other")
        assert Store(place.folder / "other").versions("mood") == [1]
        assert place.store.names() == []

    def test_refuses_weights_that_are_not_those_trained(self, place: Workplace, refused: Callable[..., str]) -> None:
        for name in ("adapter_model.safetensors", "adapter_config.json"):
            path = place.run_folder / "adapter" / name
            kept = path.read_bytes()
            for content in (kept[:-1] + bytes([kept[-1] ^ 1]), kept[:100], b""):
                path.write_bytes(content)
                assert "is not what was trained; delete runs/mood and train again" in refused("publish", "mood.yaml")
                assert "is not what was trained" in refused("evaluate", "mood.yaml")
            path.unlink()
            assert "is not what was trained" in refused("publish", "mood.yaml")
            path.write_bytes(kept)

    @pytest.mark.parametrize("name", ["run.json", "evaluation.json", "adapter/task.json"])
    @pytest.mark.parametrize("content", ["{", "[]", "null", "5", "{}", "[" * 100_000])
    def test_of_a_damaged_run_says_what_to_do(
        self, place: Workplace, refused: Callable[..., str], name: str, content: str
    ) -> None:
        (place.run_folder / name).write_text(content)
        assert f"{name} is damaged; {REMEDY[name]}" in refused("publish", "mood.yaml")

    @pytest.mark.parametrize(
        ("name", "key", "value"),
        [
            ("run.json", "rows", [1, 2]),
            ("run.json", "seconds", "long"),
            ("run.json", "history", [{"loss": 1.0}]),
            ("run.json", "history", [3]),
            ("evaluation.json", "scores", {"test": {"adapter": {}}}),
            ("evaluation.json", "base", {"base": 0.5}),
            ("evaluation.json", "profile", {"rows": "all"}),
        ],
    )
    def test_of_a_run_damaged_inside_says_so_too(
        self, place: Workplace, refused: Callable[..., str], name: str, key: str, value: Any
    ) -> None:
        path = place.run_folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
        assert f"{name} is damaged; {REMEDY[name]}" in refused("publish", "mood.yaml")

    def test_reads_what_other_versions_of_the_trainer_wrote(self, place: Workplace) -> None:
        """The first one wrote less, a later one will write more."""
        for name, keys in (
            ("run.json", ("data", "rows", "base", "machine", "seconds", "tokens_per_second", "steps", "history")),
            ("evaluation.json", ("scores", "profile")),
        ):
            path = place.run_folder / name
            written = json.loads(path.read_text())
            path.write_text(json.dumps({key: written[key] for key in keys} | {"more": {"of": [1, "kind"]}}))
        scores = json.loads((place.run_folder / "evaluation.json").read_text())["scores"]
        result = place.run("publish", "mood.yaml")
        assert result.status == 0, result.err
        manifest, _ = place.store.manifest("mood", 1)
        assert json.dumps(manifest.metrics) == json.dumps(scores), "in the same order too"
        assert set(manifest.lineage) == {"recipe", "data", "seconds"}
        assert json.loads(place.run("train", "mood.yaml", "--json").out)["more"] == {"of": [1, "kind"]}

    def test_takes_no_score_that_is_no_number(self, place: Workplace, refused: Callable[..., str]) -> None:
        evaluation = json.loads((place.run_folder / "evaluation.json").read_text())
        evaluation["scores"]["test"]["adapter"]["accuracy"] = math.nan
        (place.run_folder / "evaluation.json").write_text(json.dumps(evaluation))
        assert "test accuracy is nan, the gate asks for 0.9" in refused("publish", "mood.yaml")

    @pytest.mark.parametrize(
        ("wanted", "base", "candidate", "p_value", "said"),
        [
            (
                "not_worse",
                0.9,
                0.7,
                0.01,
                "the base untrained scores 0.9000 and this one 0.7000 (p = 0.01); gate",
            ),
            ("not_worse", 0.9, 0.7, 0.2, ""),
            ("better", 0.8, 0.85, 0.2, "and gate.base asks for a better one"),
            ("better", 0.8, 0.95, 0.01, ""),
            ("any", 0.9, 0.7, 0.01, ""),
        ],
    )
    def test_is_not_for_what_is_worse_than_the_base_untrained(
        self, place: Workplace, wanted: str, base: float, candidate: float, p_value: float, said: str
    ) -> None:
        place.write_recipe(gate={"base": wanted})
        evaluation = json.loads((place.run_folder / "evaluation.json").read_text())
        evaluation["base"] = {"base": base, "candidate": candidate, "p_value": p_value}
        (place.run_folder / "evaluation.json").write_text(json.dumps(evaluation))
        result = place.run("publish", "mood.yaml")
        assert (result.status, said in result.err) == (1 if said else 0, True)

    @pytest.mark.parametrize(("wanted", "status"), [("not_worse", 1), ("better", 1), ("any", 0)])
    def test_is_not_for_what_is_worse_than_a_simple_model_and_says_what_to_try(
        self, place: Workplace, wanted: str, status: int
    ) -> None:
        place.write_recipe(gate={"baseline": wanted})
        evaluation = json.loads((place.run_folder / "evaluation.json").read_text())
        evaluation["baseline"] = {"name": "TF-IDF", "baseline": 0.9, "candidate": 0.7, "p_value": 0.01}
        (place.run_folder / "evaluation.json").write_text(json.dumps(evaluation))
        result = place.run("publish", "mood.yaml")
        assert result.status == status
        told = (
            "TF-IDF scores 0.9000 and this one 0.7000 (p = 0.01); gate.baseline: any lets it pass; what may help: more"
        )
        assert (told in result.err) is bool(status)

    def test_takes_the_page_along_unless_its_quotations_must_not_be_seen(self, place: Workplace) -> None:
        for store, option in (("open", ()), ("discreet", ("--no-report",))):
            assert place.run("publish", "mood.yaml", "--store", place.folder / store, *option).status == 0
            manifest, _ = Store(place.folder / store).manifest("mood", 1)
            assert ("report.html" in manifest.files) is (store == "open")

    def test_does_not_evaluate_again_what_cannot_be_compared(
        self, place: Workplace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.run("publish", "mood.yaml")
        path = place.folder / "store/mood/versions/1/manifest.json"
        manifest = json.loads(path.read_text())
        manifest["base"]["digest"] = "sha256:" + "0" * 64
        path.write_text(json.dumps(manifest))
        monkeypatch.setattr("trainer.evaluate.evaluate", None)
        assert place.run("publish", "mood.yaml").status == 0

    def test_evaluates_first_where_nobody_did(self, place: Workplace) -> None:
        (place.run_folder / "evaluation.json").unlink()
        assert place.run("publish", "mood.yaml").status == 0
        assert place.store.manifest("mood", 1)[0].metrics["test"]["adapter"]["accuracy"] == 1

    def test_below_the_gate_stores_nothing_and_says_by_how_much(
        self, place: Workplace, refused: Callable[..., str]
    ) -> None:
        path = place.run_folder / "evaluation.json"
        evaluation = json.loads(path.read_text())
        evaluation["scores"]["test"]["adapter"] |= {"accuracy": 0.8125, "macro_f1": 0.7}
        path.write_text(json.dumps(evaluation))
        line = refused("publish", "mood.yaml", "--set", "gate.test.macro_f1=0.75")
        assert "the gate is closed, nothing is published: " in line
        assert "test accuracy is 0.8125, the gate asks for 0.9; test macro_f1 is 0.7000, the gate asks for 0.75" in line

    def test_of_what_is_worse_than_what_is_served_stores_nothing(
        self, place: Workplace, refused: Callable[..., str]
    ) -> None:
        assert place.run("publish", "mood.yaml").status == 0
        worse = ("mood.yaml", "--set", "gate={baseline: any}", "--set", "training.learning_rate=1.0e-6")
        assert place.run("train", *worse).status == 0
        evaluated = place.run("evaluate", *worse)
        assert "released is version 1: 1.0000 on the same test rows" in evaluated.out
        line = refused("publish", *worse)
        assert "version 1, which is served, scores 1.0000 and this one" in line
        assert place.store.versions("mood") == [1]
        assert place.run("publish", *worse, "--set", "gate.released=any").status == 0

    def test_of_what_is_no_better_is_refused_where_better_is_asked_for(
        self, place: Workplace, refused: Callable[..., str]
    ) -> None:
        assert place.run("publish", "mood.yaml").status == 0
        assert place.run("publish", "mood.yaml").status == 0
        assert "asks for a better one" in refused("publish", "mood.yaml", "--set", "gate.released=better")

    def test_compares_with_what_is_served_now_not_when_it_was_evaluated(self, place: Workplace) -> None:
        assert place.run("publish", "mood.yaml").status == 0
        before = json.loads((place.run_folder / "evaluation.json").read_text())
        assert place.run("publish", "mood.yaml").status == 0
        after = json.loads((place.run_folder / "evaluation.json").read_text())
        assert (before["released"], after["released"]["version"]) == (None, 1)

    def test_exactly_at_the_gate_is_good_enough(self, place: Workplace) -> None:
        assert place.run("publish", "mood.yaml", "--set", "gate.test.accuracy=1.0").status == 0

    def test_with_another_recipe_than_the_one_that_was_trained_is_refused(
        self, place: Workplace, refused: Callable[..., str]
    ) -> None:
        line = refused("publish", "mood.yaml", "--set", "training.learning_rate=0.5")
        assert "the recipe is not the one that runs/mood was trained with; give the same --set, or train again" in line

    def test_with_the_settings_that_were_trained_works_as_the_commands_say(self, place: Workplace) -> None:
        shutil.rmtree(place.folder / "runs")
        place.write_recipe()
        said = ["mood.yaml", "--set", "training.epochs=1", "--set", "description=A b"]
        result = place.run("train", *said)
        for command in ("evaluate", "publish"):
            following = shlex.split(result.out.splitlines()[-1])
            assert following == ["next:", "python", "-m", "trainer", command, *said]
            result = place.run(*following[4:])
            assert result.status == 0, result.err
        assert place.store.manifest("mood", 1)[0].description == "A b"

    def test_with_another_base_than_the_one_that_was_trained_is_refused(
        self, place: Workplace, refused: Callable[..., str], tiny_folder: Path
    ) -> None:
        from safetensors.torch import load_file, save_file

        other = Path(shutil.copytree(tiny_folder, place.folder / "other-llama"))
        tensors = load_file(other / "model.safetensors")
        tensors["model.norm.weight"] += 1
        save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
        for command in ("publish", "evaluate"):
            line = refused(command, "mood.yaml", base=other)
            assert "the adapter was trained on another base than other-llama; set HOTSWAP_BASE_MODEL to it" in line


class TestTheCard:
    def test_writes_large_counts_out(self, place: Workplace, tiny: Base) -> None:
        both = {"rows": 123_456, "accuracy": 0.98765}
        run = RunRecord.model_validate_json((place.run_folder / "run.json").read_text())
        found = {"scores": {"test": {"base": both, "adapter": both}}, "profile": {"rows": 1}}
        text = card(load_recipe(place.folder / "mood.yaml"), tiny, run, Evaluation.model_validate(found))
        assert "| test | rows | 123456 |  | 123456 |" in text
        assert "| test | accuracy | 0.9877 |  | 0.9877 |" in text


def with_adapter(place: Workplace) -> Any:
    model = AutoModelForCausalLM.from_pretrained(place.base, dtype=torch.float32)
    return PeftModel.from_pretrained(model, place.run_folder / "adapter").eval()


def test_what_is_scored_is_what_was_split(trained: tuple[Workplace, list[Result]]) -> None:
    place = trained[0]
    splits: Splits = load_splits(load_recipe(place.folder / "mood.yaml"), place.folder / "cache")
    run = json.loads((place.run_folder / "run.json").read_text())
    evaluation = json.loads((place.run_folder / "evaluation.json").read_text())
    assert run["data"] == splits.fingerprint
    assert evaluation["scores"]["test"]["adapter"]["rows"] == len(splits.test) == run["rows"]["test"]
