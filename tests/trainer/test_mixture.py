"""Several tasks in one adapter, and a part of the rows chosen to train on."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adapters.base_model import Base
from adapters.errors import HotswapError
from tests.trainer.conftest import MakeRecipe, WriteRows, reviews
from trainer.data import kept, load_splits
from trainer.evaluate import evaluate
from trainer.mixture import make_job, mixture
from trainer.origin import Keep
from trainer.rows import Row
from trainer.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

TOPICS = {"kind": "classification", "template": "Ticket: {text}\nTopic:"}
WORDS = {"billing": "charged twice", "bug": "it crashes"}


def tickets(rows: int) -> list[dict[str, Any]]:
    kinds = list(WORDS.items())
    return [{"text": f"customer {n} says {kinds[n % 2][1]}", "label": kinds[n % 2][0]} for n in range(rows)]


@pytest.fixture
def mixed(make_recipe: MakeRecipe, write_rows: WriteRows) -> Any:
    data = {"path": str(write_rows(reviews(120))), "validation": 0.2, "test": 0.2}
    other = {"path": str(write_rows(tickets(60), "tickets.jsonl")), "validation": 0.2, "test": 0.2}
    training = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 3, "evaluations": 2, "patience": 9}

    def make(weight: float = 0.5, **changes: Any) -> Any:
        mix = {"topics": {"task": TOPICS, "data": other, "weight": weight}}
        return make_recipe(**{"data": data, "mix": mix, "training": training, **changes})

    return make


def test_one_adapter_learns_both_tasks(mixed: Any, tiny: Base, tmp_path: Path) -> None:
    recipe = mixed()
    splits = load_splits(recipe, tmp_path / "cache")
    job = make_job(recipe, splits, tiny)
    train(job)
    scores = evaluate(recipe.run_folder / "adapter", job).scores
    assert scores["test"].adapter.values["accuracy"] == scores["topics"].adapter.values["accuracy"] == 1.0


def test_the_steps_are_those_of_all_rows(mixed: Any, tiny: Base, tmp_path: Path) -> None:
    recipe = mixed(1.0)
    splits = load_splits(recipe, tmp_path / "cache")
    run = train(make_job(recipe, splits, tiny))
    evaluated = [entry.step for entry in run.history if entry.eval_loss is not None]
    assert run.steps == 3 * -(-2 * len(splits.train) // 8)
    assert len(evaluated) in (2, 3)


@pytest.mark.parametrize("weight", [0.25, 1.0, 2.0])
def test_weights_say_how_many_rows_of_a_task_are_learnt(mixed: Any, tiny: Base, tmp_path: Path, weight: float) -> None:
    recipe = mixed(weight)
    splits = load_splits(recipe, tmp_path / "cache")
    rows = mixture(make_job(recipe, splits, tiny))
    counts = Counter(task.template.text.split(":")[0] for _, task in rows)
    assert counts["Review"] == len(splits.train)
    assert counts["Ticket"] == round(weight * len(splits.train))


def test_other_rows_of_a_mixed_task_are_another_run(mixed: Any, write_rows: WriteRows, tmp_path: Path) -> None:
    first = load_splits(mixed(), tmp_path / "cache").fingerprint
    write_rows(tickets(62), "tickets.jsonl")
    assert load_splits(mixed(), tmp_path / "cache").fingerprint != first


def test_a_fault_in_a_mixed_task_is_said_to_be_there(mixed: Any, write_rows: WriteRows, tmp_path: Path) -> None:
    recipe = mixed()
    write_rows([{"text": "a"}], "tickets.jsonl")
    with pytest.raises(HotswapError, match=r"mix\.topics: the data has no column 'label'"):
        load_splits(recipe, tmp_path / "cache")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mix": {"test": {"task": TOPICS, "data": {"path": "a.csv"}}}}, "own splits is called"),
        ({"mix": {"a": {"task": TOPICS, "data": {"path": "a.csv", "extra_tests": {"b": {"path": "c.csv"}}}}}}, "extra"),
        ({"mix": {"a": {"task": TOPICS, "data": {"path": "a.csv"}}}, "objective": "dpo"}, "learns one task"),
    ],
)
def test_a_mix_that_makes_no_sense_is_refused(make_recipe: MakeRecipe, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_recipe(**changes)


CLEAR = [
    Row(f"{word} film {n}", label, str(n)) for n in range(60) for word, label in (("dull", "bad"), ("fine", "good"))
]
WRONG = [Row(f"dull film {n}", "good", f"w{n}") for n in range(12)]


@pytest.mark.parametrize(("by", "wrong"), [("hard", 12), ("easy", 0), ("middle", 0)])
def test_rows_are_kept_by_how_much_their_labels_are_expected(by: Any, wrong: int) -> None:
    rows = kept(CLEAR + WRONG, Keep(share=0.5, by=by), "classification", 0)
    assert len(rows) == 66
    assert sum(row in WRONG for row in rows) == wrong


def test_rows_cannot_be_chosen_where_nothing_can_be_expected() -> None:
    with pytest.raises(HotswapError, match="use random"):
        kept(CLEAR[:50], Keep(share=0.5, by="hard"), "classification", 0)
    assert len(kept(CLEAR[:50], Keep(share=0.5), "summarization", 0)) == 25


def test_stratified_splits_have_the_same_shares_of_each_label(make_recipe: MakeRecipe, write_rows: WriteRows) -> None:
    rows = [{"text": f"row {n}", "label": "rare" if n % 10 == 0 else "common"} for n in range(200)]
    path = write_rows(rows)
    data = {"path": str(path), "validation": 0.2, "test": 0.2, "stratified": True}
    splits = load_splits(make_recipe(data=data), path.parent / "cache")
    for part, each in ((splits.train, 12), (splits.validation, 4), (splits.test, 4)):
        assert Counter(row.answer for row in part) == {"rare": each, "common": 9 * each}


def test_a_group_stays_together_in_stratified_splits(make_recipe: MakeRecipe, write_rows: WriteRows) -> None:
    rows = [{"text": f"row {n}", "label": "ab"[n % 2], "author": f"author {n // 4}"} for n in range(200)]
    path = write_rows(rows)
    data = {"path": str(path), "validation": 0.2, "test": 0.2, "stratified": True, "group": "author"}
    splits = load_splits(make_recipe(data=data), path.parent / "cache")
    groups = [{row.group for row in part} for part in (splits.train, splits.validation, splits.test)]
    assert sum(map(len, groups)) == len(set.union(*groups)) == 50


def test_what_one_task_is_tested_on_another_is_not_trained_on(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path
) -> None:
    path = str(write_rows(reviews(120)))
    mix = {"again": {"task": TOPICS, "data": {"path": path, "validation": 0.05, "test": 0.05}}}
    recipe = make_recipe(data={"path": path, "validation": 0.2, "test": 0.2}, mix=mix)
    splits = load_splits(recipe, tmp_path / "cache")
    again = splits.mixed["again"]
    for one, other in ((splits, again), (again, splits)):
        tested = {row.text for row in (*one.validation, *one.test)}
        assert tested
        assert not tested & {row.text for row in other.train}
