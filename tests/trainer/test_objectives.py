"""Objectives other than giving the rows' answers: prefer, tell good from bad, judge, earn a reward."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.lint import lint
from adapters.modules import base_shapes
from adapters.tasks.base import BaseTask
from tests.trainer.conftest import MakeRecipe, WriteRows
from trainer.codec import Codec
from trainer.data import Splits, load_splits
from trainer.evaluate import evaluate
from trainer.job import Job
from trainer.mixture import make_task
from trainer.recipe import Recipe
from trainer.reward import judged
from trainer.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

SUMMARIES = {"kind": "summarization", "template": "Text: {text}\nSummary:", "max_answer_tokens": 6}
KINDS = [("dull", "negative"), ("moving", "positive")]


def pairs(rows: int) -> list[dict[str, Any]]:
    """Whatever the text, the short answer is the better one: a two-layer model sees that at once."""
    return [{"text": f"film {n}", "chosen": "dull", "rejected": "dull and slow"} for n in range(rows)]


def prepared(make_recipe: MakeRecipe, path: Path, **changes: Any) -> tuple[Recipe, Splits]:
    training = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 3, "evaluations": 2, "patience": 9}
    recipe = make_recipe(**{"data": {"path": str(path)}, "training": training, **changes})
    return recipe, load_splits(recipe, path.parent / "cache")


def trained(recipe: Recipe, splits: Splits, base: Base) -> tuple[dict[str, Any], BaseTask]:
    task = make_task(recipe, splits, base)
    return train(Job(recipe, splits, task, base)), task


def test_dpo_makes_the_preferred_answer_likelier(make_recipe: MakeRecipe, write_rows: WriteRows, tiny: Base) -> None:
    recipe, splits = prepared(make_recipe, write_rows(pairs(120)), objective="dpo", task=SUMMARIES)
    run, task = trained(recipe, splits, tiny)
    scores = evaluate(recipe.run_folder / "adapter", Job(recipe, splits, task, tiny)).scores["test"]
    assert scores.adapter.prefers_chosen == 1.0 > scores.base.prefers_chosen
    assert lint(recipe.run_folder / "adapter", shapes=base_shapes(tiny.folder)).rank == 4
    assert [path.name for path in (recipe.run_folder / "adapter").iterdir() if path.is_dir()] == []
    assert run.best_validation_loss < 0.6


def test_dpo_is_for_labels_too(make_recipe: MakeRecipe, write_rows: WriteRows, tiny: Base) -> None:
    rows = [
        {"text": f"film {n} is {KINDS[n % 2][0]}", "chosen": KINDS[n % 2][1], "rejected": KINDS[1 - n % 2][1]}
        for n in range(120)
    ]
    recipe, splits = prepared(make_recipe, write_rows(rows), objective="dpo")
    _, task = trained(recipe, splits, tiny)
    scores = evaluate(recipe.run_folder / "adapter", Job(recipe, splits, task, tiny)).scores["test"]
    assert scores.adapter.values["accuracy"] == 1.0


def test_kto_learns_from_answers_that_were_found_good_or_bad(
    make_recipe: MakeRecipe, write_rows: WriteRows, tiny: Base
) -> None:
    rows = [
        {"text": f"film {n} is {KINDS[n % 2][0]}", "label": KINDS[(n + n // 2) % 2][1], "good": n // 2 % 2 == 0}
        for n in range(160)
    ]
    recipe, splits = prepared(make_recipe, write_rows(rows), objective="kto")
    _, task = trained(recipe, splits, tiny)
    scores = evaluate(recipe.run_folder / "adapter", Job(recipe, splits, task, tiny)).scores["test"]
    assert scores.adapter.values["accuracy"] == 1.0
    assert scores.adapter.values["rows"] == sum(row.good for row in splits.test) < len(splits.test)


def test_a_reward_model_ranks_held_out_pairs(make_recipe: MakeRecipe, write_rows: WriteRows, tiny: Base) -> None:
    recipe, splits = prepared(make_recipe, write_rows(pairs(120)), objective="reward", task=SUMMARIES)
    _, task = trained(recipe, splits, tiny)
    found = judged(recipe.run_folder, splits.test, Codec(task, tiny))
    assert found == {"pairs": len(splits.test), "accuracy": 1.0, "longer_wins": 0.0, "shorter_wins": 1.0}
    of_one_length = judged(recipe.run_folder, [replace(splits.test[0], rejected="slow")], Codec(task, tiny))
    assert of_one_length["longer_wins"] == of_one_length["shorter_wins"] == 0.0


def test_grpo_earns_more_of_what_a_rule_rewards(make_recipe: MakeRecipe, write_rows: WriteRows, tiny: Base) -> None:
    rows = [{"text": f"film {n}", "summary": "dull"} for n in range(60)]
    training = {"learning_rate": 3e-2, "batch_size": 16, "epochs": 3, "evaluations": 3, "patience": 9}
    reward = {"rewards": {"brief": 1.0}, "max_words": 1, "generations": 4}
    recipe, splits = prepared(
        make_recipe, write_rows(rows), objective="grpo", task=SUMMARIES, reinforce=reward, training=training
    )
    run, task = trained(recipe, splits, tiny)
    earned = [entry.reward for entry in run.history if "reward" in entry.model_extra]
    assert earned[-1] > earned[0]
    scores = evaluate(recipe.run_folder / "adapter", Job(recipe, splits, task, tiny)).scores
    assert scores["test"].adapter.values["words"] < 2


def test_grpo_is_paid_by_a_reward_model(
    make_recipe: MakeRecipe, write_rows: WriteRows, tiny: Base, tmp_path: Path
) -> None:
    judge, splits = prepared(make_recipe, write_rows(pairs(80)), objective="reward", task=SUMMARIES)
    trained(judge, splits, tiny)
    rows = write_rows([{"text": f"film {n}", "summary": "dull"} for n in range(40)], "texts.jsonl")
    paid = {"rewards": {}, "reward_model": str(judge.run_folder), "generations": 4}
    recipe, texts = prepared(
        make_recipe, rows, objective="grpo", task=SUMMARIES, reinforce=paid, output=tmp_path / "paid"
    )
    run, _ = trained(recipe, texts, tiny)
    assert any("reward" in entry.model_extra for entry in run.history)
    with pytest.raises(HotswapError, match="holds no reward model"):
        trained(recipe.model_copy(update={"output": tmp_path / "other", "reinforce": _unpaid(recipe)}), texts, tiny)


def _unpaid(recipe: Recipe) -> Any:
    return recipe.reinforce.model_copy(update={"reward_model": Path("nowhere")})


def test_training_goes_on_from_a_published_lora(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, tmp_path: Path
) -> None:
    first = make_recipe()
    run, _ = trained(first, splits, tiny)
    further = make_recipe(start_from="mood@1", output=tmp_path / "further")
    task = make_task(further, splits, tiny)
    again = train(Job(further, splits, task, tiny), start=first.run_folder / "adapter")
    assert again.history[0].loss < run.history[0].loss


@pytest.mark.parametrize(
    ("rows", "objective", "said"),
    [
        ([{"text": "a", "chosen": "x", "rejected": "x"}], "dpo", "row 1: columns 'chosen' and 'rejected' are the same"),
        ([{"text": "a", "chosen": "x"}], "dpo", "no column 'rejected'"),
        ([{"text": "a", "label": "x", "good": "perhaps"}], "kto", "row 1: column 'good' is neither true nor false"),
        ([{"text": f"a{n}", "label": "xy"[n % 2], "good": True} for n in range(60)], "kto", "says the same of all"),
    ],
)
def test_bad_preferences_are_refused_with_their_row(
    make_recipe: MakeRecipe, write_rows: WriteRows, rows: list[dict[str, Any]], objective: str, said: str
) -> None:
    with pytest.raises(HotswapError, match=said):
        prepared(make_recipe, write_rows(rows), objective=objective)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": "dpo", "method": "full"}, "trains lora and qlora"),
        ({"objective": "grpo"}, "not for classification"),
        ({"objective": "grpo", "task": SUMMARIES, "training": {"batch_size": 6}}, "multiple of reinforce.generations"),
        ({"objective": "kto", "training": {"batch_size": 1}}, "2 or more"),
        ({"objective": "reward", "start_from": "mood@1"}, "begins with the base"),
        ({"reinforce": {"rewards": {}}}, "nothing to earn"),
        ({"start_from": "mood"}, "write it as NAME@VERSION"),
    ],
)
def test_an_objective_says_what_it_cannot_do(make_recipe: MakeRecipe, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_recipe(**changes)


@pytest.mark.parametrize("objective", ["supervised", "dpo"])
def test_out_of_memory_is_answered_with_fewer_rows_at_a_time(
    make_recipe: MakeRecipe, write_rows: WriteRows, tiny: Base, tmp_path: Path, capfd: Any, objective: str
) -> None:
    rows = [{**row, "summary": row["chosen"]} for row in pairs(80)]
    settings = {"objective": objective, "task": SUMMARIES}
    recipe, splits = prepared(make_recipe, write_rows(rows), **settings)
    small = {"learning_rate": 1e-2, "batch_size": 2, "accumulate": 4, "epochs": 3, "evaluations": 2, "patience": 9}
    other, _ = prepared(make_recipe, write_rows(rows), training=small, output=tmp_path / "small", **settings)
    wanted, _ = trained(other, splits, tiny)

    class Memory(torch.utils._python_dispatch.TorchDispatchMode):
        """A machine that has room for five rows."""

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function is torch.ops.aten.embedding.default and args[1].shape[0] > (4 if objective == "dpo" else 2):
                raise torch.OutOfMemoryError("CUDA out of memory. (as it were)")
            return function(*args, **(kwargs or {}))

    with Memory():
        run, _ = trained(recipe, splits, tiny)
    assert "out of memory with 8 rows at a time; going on with 4" in capfd.readouterr().err
    assert run.best_validation_loss == pytest.approx(wanted.best_validation_loss, rel=1e-3)


def test_a_loss_that_is_no_number_ends_the_training_at_once(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base
) -> None:
    recipe = make_recipe(
        training={"learning_rate": 1e30, "batch_size": 8, "epochs": 50, "evaluations": 50, "patience": 2}
    )
    with pytest.raises(HotswapError, match="diverged"):
        trained(recipe, splits, tiny)
    state = json.loads(next(recipe.run_folder.glob("checkpoint-*/trainer_state.json")).read_text())
    assert state["global_step"] < 30
