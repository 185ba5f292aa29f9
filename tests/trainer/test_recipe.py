"""A recipe is strict: what it does not understand it refuses, with the key and the likely intention."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.errors import HotswapError
from tests.trainer.conftest import MakeRecipe, settings
from trainer.loading import load_recipe
from trainer.recipe import Recipe

RECIPES = sorted((Path(__file__).parents[2] / "trainer" / "recipes").glob("*.yaml"))


def load(folder: Path, *overrides: str, **changes: Any) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(settings(**changes)))
    return load_recipe(path, overrides)


def refusal(folder: Path, *overrides: str, **changes: Any) -> str:
    with pytest.raises(HotswapError) as refused:
        load(folder, *overrides, **changes)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_opens_with_its_command(path: Path) -> None:
    assert load_recipe(path).name == path.stem
    assert path.read_text().startswith(f"# python -m trainer train trainer/recipes/{path.name}\n")


def test_a_recipe_needs_no_more_than_a_name_a_task_and_a_path(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: mood\ntask: {kind: classification}\ndata: {path: rows.csv}\n")
    recipe = load_recipe(tmp_path / "r.yaml")
    assert recipe.task.template == "Text: {text}\nLabel:"
    assert (recipe.data.text, recipe.data.answer, recipe.run_folder) == ("text", None, Path("runs/mood"))


class TestAMistake:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"trainning": {}}, "trainning: unknown key; did you mean 'training'?"),
            ({"training": {"epoch": 2}}, "training.epoch: unknown key; did you mean 'epochs'?"),
            ({"training": {"lerning_rate": 1}}, "training.lerning_rate: unknown key; did you mean 'learning_rate'?"),
            ({"lora": {"dropuot": 1}}, "lora.dropuot: unknown key; did you mean 'dropout'?"),
            ({"lora": {"xyz": 1}}, "lora.xyz: unknown key; known keys: alpha, dropout, plus, rank, rslora, target_"),
            (
                {"data": {"path": "x.csv", "valdiation": 0.1}},
                "data.valdiation: unknown key; did you mean 'validation'?",
            ),
            (
                {"data": {"path": "x.csv", "extra_tests": {"far": {"paht": "y.csv"}}}},
                "data.extra_tests.far.paht: unknown key; did you mean 'path'?",
            ),
            (
                {"task": {"kind": "classification", "tempalte": "{text}:"}},
                "tempalte: unknown key; did you mean 'template'?",
            ),
        ],
    )
    def test_in_a_key_names_the_likely_one(self, tmp_path: Path, changes: dict, reason: str) -> None:
        assert reason in refusal(tmp_path, **changes)

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"training": {"epochs": "many"}}, "training.epochs: Input should be a valid number"),
            ({"training": {"epochs": 0}}, "training.epochs: Input should be greater than 0"),
            ({"training": {"batch_size": 1.5}}, "training.batch_size: Input should be a valid integer"),
            ({"training": {"schedule": "cosin"}}, "training.schedule: Input should be 'linear', 'cosine' or"),
            ({"training": None}, "training: takes keys of its own: accumulate, "),
            ({"data": {"path": "rows.csv", "keep": 0.5}}, "data.keep: takes keys of its own: by, share"),
            ({"task": "classification"}, "task: takes keys of its own: "),
            ({"lora": {"rank": 0}}, "lora.rank: Input should be greater than or equal to 1"),
            ({"lora": {"target_modules": "q_proj"}}, "lora.target_modules: takes a list"),
            ({"seed": -1}, "seed: "),
            ({"seed": 2**32}, "seed: Input should be less than"),
            ({"seed": True}, "seed: takes a number, not true"),
            ({"lora": {"rank": True}}, "lora: rank: takes a number, not true"),
            ({"training": {"epochs": math.inf}}, "training.epochs: "),
            ({"training": {"learning_rate": math.inf}}, "training.learning_rate: Input should be a finite number"),
            (
                {"method": "prefix_tuning", "training": {"gradient_checkpointing": True}},
                "training.gradient_checkpointing: method prefix_tuning does not use it",
            ),
            ({"reinforce": {"rewards": {"rougeL": 0}}}, "reinforce.rewards.rougeL: Input should be greater than 0"),
            (
                {"sweep": {"training.learning_rate": 0.1}},
                "learning_rate: takes a list of values, or {low",
            ),
            ({"sweep": {"training.learning_rate": []}}, "sweep.training.learning_rate.list: "),
            (
                {"sweep": {"seed": [1, 2]}},
                "sweep: seed: trials with other rows, prompts or",
            ),
            ({"sweep": {"data.test": [0.1, 0.2]}}, "sweep: data.test: trials"),
            (
                {"data": {"path": "x.csv", "slices": ["length"]}},
                "slices: the rows are scored apart by their length",
            ),
            ({"data": {"path": "x.csv", "extra_tests": {"": {"path": "y.csv"}}}}, "'' is no name"),
            ({"name": "My Mood"}, "name: "),
            ({"name": None}, "name: Input should be a valid string"),
            ({"task": {"kind": "translation"}}, "task.kind: 'translation' is unknown; one of 'classification', 'summ"),
            ({"task": {}}, "task.kind: is required"),
            ({"data": {}}, "data: give exactly one of path, dataset and source"),
            ({"data": {"path": "x.csv", "source": "vader-movies"}}, "data: give exactly one of path, dataset"),
            ({"data": {"path": "x.csv", "test": 0.5}}, "data.test: Input should be less than 0.5"),
        ],
    )
    def test_in_a_value_names_the_key(self, tmp_path: Path, changes: dict, reason: str) -> None:
        assert reason in refusal(tmp_path, **changes)

    def test_is_told_together_with_all_others(self, tmp_path: Path) -> None:
        text = refusal(tmp_path, training={"epoch": 2, "batch_size": 0}, name="No!")
        assert all(key in text for key in ("training.epoch", "training.batch_size", "name"))

    @pytest.mark.parametrize("kind", ["classification", "summarization"])
    @pytest.mark.parametrize("template", ["Review:", "{text}{text}:", "Review: {text}", "Review: {text} "])
    def test_in_the_template_is_found_before_any_work(self, tmp_path: Path, kind: str, template: str) -> None:
        assert "template: a template " in refusal(tmp_path, task={"kind": kind, "template": template})

    @pytest.mark.parametrize("name", ["train", "validation", "test"])
    def test_of_calling_an_extra_test_like_a_split_is_refused(self, tmp_path: Path, name: str) -> None:
        data = {"path": "rows.jsonl", "extra_tests": {name: {"path": "more.jsonl"}}}
        assert f"'{name}' is what one of the recipe's own splits is called" in refusal(tmp_path, data=data)

    @pytest.mark.parametrize(
        ("gate", "reason"),
        [
            ({"test": {"acuracy": 0.9}}, "gate.test.acuracy: unknown metric; a gate knows accuracy, macro_f1"),
            ({"test": {"rougeL": 0.9}}, "gate.test.rougeL: unknown metric"),
            ({"test": {"calibration_error": 0.1}}, "gate.test.calibration_error: unknown metric"),
            ({"extra_tests": {"far": {"accuracy": 1}}}, "gate.extra_tests.far: data.extra_tests has no test"),
            ({"tests": {"accuracy": 0.9}}, "gate.tests: unknown key; did you mean 'test'?"),
            ({"test": {"accuracy": 1.01}}, "gate.test.accuracy: Input should be less than or equal to 1"),
            ({"test": {"accuracy": math.nan}}, "gate.test.accuracy: Input should be a finite number"),
            ({"test": {"prefers_chosen": 0.5}}, "gate.test.prefers_chosen: unknown metric"),
        ],
    )
    def test_in_the_gate_is_found_before_training(self, tmp_path: Path, gate: dict, reason: str) -> None:
        assert reason in refusal(tmp_path, gate=gate)


class TestTheFile:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"name: [", "is not valid YAML: "),
            (b"a: b: c", "is not valid YAML: "),
            (b"\xff\xfe\xff", "is not valid YAML: "),
            (b"", "is not a recipe: it must be a mapping with name, task and data"),
            (b"- name", "is not a recipe"),
            (b"just words", "is not a recipe"),
            (b"name: a\nseed: 1\nname: b\n", "line 1: the key 'name' is there twice"),
            (b"description: 2020-13-45", "is not valid YAML: "),
            (b"a: " + b"[" * 3000, "nested too deeply"),
            (b"!!python/object/apply:os.system ['true']", "is not valid YAML: "),
        ],
    )
    def test_that_is_no_recipe_is_refused(self, tmp_path: Path, content: bytes, reason: str) -> None:
        (tmp_path / "r.yaml").write_bytes(content)
        with pytest.raises(HotswapError, match=reason) as refused:
            load_recipe(tmp_path / "r.yaml")
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("place", ["nothing.yaml", "."])
    def test_that_cannot_be_read_is_named(self, tmp_path: Path, place: str) -> None:
        with pytest.raises(HotswapError, match="cannot read the recipe"):
            load_recipe(tmp_path / place)


class TestOverrides:
    def test_replace_keys_anywhere(self, tmp_path: Path) -> None:
        recipe = load(
            tmp_path, "training.epochs=5", "name=gloom", "gate.test.accuracy=0.9", "task.labels=[a, b]", "seed=3"
        )
        assert (recipe.training.epochs, recipe.name, recipe.seed) == (5, "gloom", 3)
        assert recipe.gate.test == {"accuracy": 0.9}
        assert recipe.task.labels == ("a", "b")  # type: ignore[union-attr]
        assert recipe.training.batch_size == 8, "what is not named stays"

    def test_may_contain_an_equals_sign(self, tmp_path: Path) -> None:
        assert load(tmp_path, "description=a=b").description == "a=b"

    def test_fill_an_empty_section(self, tmp_path: Path) -> None:
        assert load(tmp_path, "gate.test.accuracy=0.9", gate=None).gate.test == {"accuracy": 0.9}

    def test_take_numbers_as_people_write_them(self, tmp_path: Path) -> None:
        assert load(tmp_path, "training.learning_rate=1e-3").training.learning_rate == 1e-3

    @pytest.mark.parametrize(
        ("override", "reason"),
        [
            ("training.epochs", "write it as key=value, for example --set training.epochs=2"),
            ("=5", "write it as key=value"),
            ("name.first=x", "'name' holds a value, not further keys"),
            ("name=2020-99-99", "the value is not valid YAML; quote it"),
            ("training.epochs=" + "[" * 2000, "the value is not valid YAML; quote it"),
            ("training.epochs=[", "the value is not valid YAML; quote it"),
            ("training.epoch=5", "training.epoch: unknown key; did you mean 'epochs'?"),
            ("training.epochs=lots", "training.epochs: Input should be a valid number"),
        ],
    )
    def test_that_are_wrong_are_refused(self, tmp_path: Path, override: str, reason: str) -> None:
        assert reason in refusal(tmp_path, override)


class TestPaths:
    def test_are_taken_from_the_recipe_s_folder(self, tmp_path: Path) -> None:
        for name in ("rows.jsonl", "far.jsonl"):
            (tmp_path / name).touch()
        data = {"path": "rows.jsonl", "extra_tests": {"far": {"path": "far.jsonl"}}}
        recipe = load(tmp_path, data=data)
        assert recipe.data.path == tmp_path / "rows.jsonl"
        assert recipe.data.extra_tests["far"].path == tmp_path / "far.jsonl"

    def test_that_are_not_there_are_taken_from_the_working_folder(self, tmp_path: Path) -> None:
        assert load(tmp_path).data.path == Path("rows.jsonl")

    def test_that_are_absolute_stay(self, tmp_path: Path) -> None:
        assert load(tmp_path, data={"path": "/data/rows.csv"}).data.path == Path("/data/rows.csv")


class TestTheIdentityOfARun:
    def test_is_the_same_wherever_recipe_and_rows_lie(
        self, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "rows.jsonl").touch()
        absolute = load(tmp_path)
        monkeypatch.chdir(tmp_path)
        relative = load(Path())
        assert absolute.data.path != relative.data.path
        assert absolute.run_identity("rows", "base") == relative.run_identity("rows", "base")

    @pytest.mark.parametrize(
        "change",
        [
            {"gate": {"test": {"accuracy": 1}}},
            {"description": "x"},
            {"output": Path("elsewhere")},
            {"base": "by-digest"},
        ],
    )
    def test_does_not_depend_on_what_decides_no_weight(self, make_recipe: MakeRecipe, change: dict) -> None:
        assert make_recipe(**change).run_identity("rows", "base") == make_recipe().run_identity("rows", "base")

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 8},
            {"lora": {"rank": 5}},
            {"training": {"epochs": 3}},
            {"task": {"kind": "classification", "template": "{text}:"}},
        ],
    )
    def test_changes_with_what_decides_the_weights(self, make_recipe: MakeRecipe, change: dict) -> None:
        assert make_recipe(**change).run_identity("rows", "base") != make_recipe().run_identity("rows", "base")

    def test_changes_with_rows_and_base(self, make_recipe: MakeRecipe) -> None:
        recipe = make_recipe()
        identities = {recipe.run_identity(d, b) for d, b in (("r", "b"), ("s", "b"), ("r", "c"))}
        assert len(identities) == 3


@pytest.mark.parametrize(
    ("rows", "labels", "passes"),
    [(6000, 2, 2), (3000, 40, 3), (2400, 77, 7), (200, 4, 12), (3, 2, 12), (2600, 0, 2)],
    ids=["many", "of many labels", "of very many labels", "few", "three", "summaries"],
)
def test_few_rows_and_many_labels_are_gone_through_more_often_unless_the_recipe_says_how_often(
    make_recipe: MakeRecipe, rows: int, labels: int, passes: int
) -> None:
    assert make_recipe(training={}).training.passes(rows, labels) == passes
    for budget in ({"epochs": 1.5}, {"budget": "1.5 passes"}):
        assert make_recipe(training=budget).training.passes(rows, labels) == 1.5


@pytest.mark.parametrize(
    ("budget", "minutes"), [("30 min", 30), ("0.5min", 0.5), ("90 minutes", 90), ("1 pass", None), ("auto", None)]
)
def test_a_budget_is_in_minutes_or_passes(make_recipe: MakeRecipe, budget: str, minutes: float | None) -> None:
    assert make_recipe(training={"budget": budget}).training.minutes == minutes


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({"budget": "soon"}, "training.budget: "),
        ({"budget": "0 min"}, "give a number above 0"),
        ({"budget": "2 hours"}, "training.budget: "),
        ({"budget": "2 passes", "epochs": 2}, "budget and epochs say the same thing"),
    ],
)
def test_a_budget_that_says_nothing_is_refused(tmp_path: Path, training: dict[str, Any], said: str) -> None:
    assert said in refusal(tmp_path, training=training)


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "No such file"), (b"x", "fewer than 50 words"), (b"\xff" * 99, "not UTF-8")],
)
def test_a_general_text_that_measures_nothing_is_refused_at_once(tmp_path: Path, text: bytes | None, said: str) -> None:
    path = tmp_path / "general.txt"
    if text is not None:
        path.write_bytes(text)
    assert said in refusal(tmp_path, evaluation={"general_text": str(path)})
