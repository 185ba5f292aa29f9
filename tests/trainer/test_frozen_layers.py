"""Where only the last layers are adapted, the others are computed once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from adapters.base_model import Base
from tests.trainer.conftest import MakeRecipe
from trainer import frozen_layers
from trainer.data import Splits
from trainer.job import Job
from trainer.mixture import make_task
from trainer.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 3, "evaluations": 3, "precision": "float32"}
LAST = {"last_layers": 1, "training": TRAINING}


@pytest.mark.parametrize("method", ["lora", "dora", "ia3"])
def test_the_adapter_is_the_one_of_computing_them_at_every_pass(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    recipe = make_recipe(method=method, **LAST)
    task = make_task(recipe, splits, tiny)
    once = train(Job(recipe, splits, task, tiny))
    weights = load_file(recipe.run_folder / "adapter" / "adapter_model.safetensors")
    other = make_recipe(method=method, output=recipe.run_folder.with_name("other"), **LAST)
    monkeypatch.setattr(frozen_layers, "frozen_below", lambda model: 0)
    always = train(Job(other, splits, task, tiny))
    assert once.best_validation_loss == pytest.approx(always.best_validation_loss, rel=1e-3)
    for name, value in load_file(other.run_folder / "adapter" / "adapter_model.safetensors").items():
        assert torch.allclose(weights[name].float(), value.float(), atol=5e-3), name


def test_the_lower_layer_is_passed_once_for_each_row_and_is_there_again_afterwards(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    rows: dict[int, int] = {}
    forward = LlamaMLP.forward

    def counted(self: LlamaMLP, hidden: torch.Tensor) -> torch.Tensor:
        if counting:
            rows[id(self)] = rows.get(id(self), 0) + hidden.shape[0]
        return forward(self, hidden)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    recipe = make_recipe(**LAST)
    task = make_task(recipe, splits, tiny)
    counting = True
    import trainer.train as module

    def after(*given: object) -> float:
        nonlocal counting
        counting = False
        return 1.0

    monkeypatch.setattr(module, "_temperature", after)
    monkeypatch.setattr("trainer.fit.tokens_per_second", lambda *_, **__: 1.0)
    train(Job(recipe, splits, task, tiny))
    lower, upper = sorted(rows.values())
    assert lower == len(splits.train) + len(splits.validation)
    assert upper >= 3 * len(splits.train) + 3 * len(splits.validation)
    assert list(recipe.run_folder.glob("*.hidden")) == []


def test_what_a_killed_training_left_is_taken_away(make_recipe: MakeRecipe, splits: Splits, tiny: Base) -> None:
    recipe = make_recipe(**LAST)
    recipe.run_folder.mkdir(parents=True)
    identity = recipe.run_identity(splits.fingerprint, tiny.digest)
    (recipe.run_folder / "run-identity").write_text(identity)
    (recipe.run_folder / "0.hidden").write_bytes(b"half of it")
    train(Job(recipe, splits, make_task(recipe, splits, tiny), tiny))
    assert list(recipe.run_folder.glob("*.hidden")) == []


def test_rows_that_the_steps_do_not_reach_are_not_computed(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frozen_layers, "HiddenStates", lambda *_, **__: pytest.fail("they were"))
    recipe = make_recipe(last_layers=1, training=TRAINING | {"epochs": 0.5})
    run = train(Job(recipe, splits, make_task(recipe, splits, tiny), tiny))
    assert run.steps == 4


def test_no_room_on_the_disk_is_no_reason_not_to_train(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    recipe = make_recipe(**LAST)
    assert train(Job(recipe, splits, make_task(recipe, splits, tiny), tiny)).best_validation_loss < 0.7
    assert "the lower layers are computed at every pass" in capsys.readouterr().err
