"""Every method learns, and leaves what can be served: a plain LoRA, or vectors in front of the prompt."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.lint import lint
from adapters.modules import base_shapes
from tests.trainer.conftest import MakeRecipe, reviews
from trainer.codec import Codec
from trainer.conversion import changes_of, to_lora
from trainer.data import Splits
from trainer.evaluate import evaluate
from trainer.job import Job
from trainer.mixture import make_job, make_task
from trainer.prediction import predict, with_adapter
from trainer.recipe import CONVERTED, LOW_RANK, PROMPTS, Conversion, Recipe
from trainer.rows import Row
from trainer.soft_prompts import spelled
from trainer.statistics import temperature
from trainer.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

RATES = {"full": 3e-3, "ia3": 0.3, "prompt_tuning": 1.0, "p_tuning": 1e-2, "prefix_tuning": 0.1, "adalora": 3e-2}
RAW = [Row(r["text"], r["label"], r["text"]) for r in reviews(96)]


@pytest.fixture
def splits() -> Splits:
    return Splits(RAW[:64], RAW[64:80], RAW[80:], {})


def recipe_of(make_recipe: MakeRecipe, method: str, *, epochs: int = 6, **changes: Any) -> Recipe:
    rate = RATES.get(method, 1e-2)
    training = {"learning_rate": rate, "batch_size": 8, "epochs": epochs, "evaluations": 2, "patience": 9}
    return make_recipe(method=method, training=training, **changes)


def adapted_by(recipe: Recipe, base: Base) -> Any:
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    return PeftModel.from_pretrained(model, recipe.run_folder / "adapter").eval()


@pytest.mark.parametrize("method", [*LOW_RANK, *CONVERTED, *PROMPTS])
def test_every_method_learns_and_is_read_back_as_it_was(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, method: str
) -> None:
    recipe = recipe_of(make_recipe, method, convert={"error": 0.0})
    task = make_task(recipe, splits, tiny)
    run = train(Job(recipe, splits, task, tiny))
    losses = [entry.eval_loss for entry in run.history if entry.eval_loss is not None]
    read = evaluate(recipe.run_folder / "adapter", Job(recipe, splits, task, tiny)).scores["test"]
    if method == "prompt_tuning":  # a random base cannot be talked into much
        assert losses[-1] < losses[0] < 1
    else:
        assert min(losses) < 0.5
        assert read.adapter.values["accuracy"] == 1.0 > read.base.values["accuracy"]


@pytest.mark.parametrize("method", CONVERTED)
def test_what_vllm_cannot_load_becomes_a_lora_that_it_can(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, method: str
) -> None:
    recipe = recipe_of(make_recipe, method, convert={"error": 0.1, "max_rank": 16})
    run = train(make_job(recipe, splits, tiny))
    facts = lint(recipe.run_folder / "adapter", shapes=base_shapes(tiny.folder))
    assert facts.rank == run.converted.rank <= 16
    assert 0 <= run.converted.error < 1
    assert run.converted.as_trained.values["rows"] == len(splits.test)


def test_only_the_last_layers_are_adapted(make_recipe: MakeRecipe, splits: Splits, tiny: Base) -> None:
    recipe = recipe_of(make_recipe, "full", last_layers=1)
    train(make_job(recipe, splits, tiny))
    adapted = adapted_by(recipe, tiny)
    layers = {name.split(".layers.")[1].split(".")[0] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert layers == {"1"}


def test_a_conversion_takes_the_smallest_rank_that_loses_no_more_than_it_may(tiny: Base, tmp_path: Any) -> None:
    torch.manual_seed(0)
    orthogonal, _ = torch.linalg.qr(torch.randn(16, 16))
    change = orthogonal @ torch.diag(torch.tensor([2.0, 1.0, 0.5] + [0.0] * 13)) @ orthogonal.T
    energy = 4 + 1 + 0.25
    for error, rank in ((0.0, 3), (0.06, 2), (0.3, 1)):
        found, lost = to_lora({"model.layers.0.self_attn.q_proj": change}, Conversion(error=error), tmp_path, tiny)
        assert found == rank
        assert lost == pytest.approx(sum([4, 1, 0.25][rank:]) / energy, abs=1e-6)


def test_a_converted_full_change_answers_like_the_tuned_model(tiny: Base, splits: Splits, tmp_path: Any) -> None:
    original, tuned = (AutoModelForCausalLM.from_pretrained(tiny.folder).eval() for _ in range(2))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in tuned.named_parameters():
            if name.endswith(("q_proj.weight", "down_proj.weight")):
                weight += 0.05 * torch.randn_like(weight)
    ids = torch.randint(0, 100, (2, 9))
    wanted = tuned(input_ids=ids).logits
    to_lora(changes_of(tuned, original), Conversion(error=0.0, max_rank=128), tmp_path / "a", tiny)
    got = PeftModel.from_pretrained(original, tmp_path / "a").eval()(input_ids=ids).logits
    assert torch.allclose(got, wanted, atol=1e-2)


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning"])
def test_a_learnt_prompt_answers_the_same_whatever_pads_the_batch(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, method: str
) -> None:
    recipe = recipe_of(make_recipe, method)
    train(make_job(recipe, splits, tiny))
    model = adapted_by(recipe, tiny)
    ids = torch.tensor([[5, 6, 7]])
    padded, mask = torch.tensor([[0, 0, 5, 6, 7]]), torch.tensor([[0, 0, 1, 1, 1]])
    alone, inputs = spelled(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    wanted = alone(**inputs).logits[0, -1]
    called, inputs = spelled(model, {"input_ids": padded, "attention_mask": mask})
    assert torch.allclose(called(**inputs).logits[0, -1], wanted, atol=1e-4)
    prompt = model.get_prompt(1)[0]
    by_hand = torch.cat([prompt, model.get_base_model().get_input_embeddings()(ids)[0]])[None]
    assert torch.allclose(model.get_base_model()(inputs_embeds=by_hand).logits[0, -1], wanted, atol=1e-4)


def test_a_learnt_prompt_writes_the_same_text_alone_and_in_a_batch(make_recipe: MakeRecipe, tiny: Base) -> None:
    rows = [Row(f"thing {n} is red" + " indeed" * (n % 4), "red", str(n)) for n in range(32)]
    recipe = recipe_of(make_recipe, "prompt_tuning", task={"kind": "summarization", "max_answer_tokens": 8})
    splits = Splits(rows[:24], rows[24:28], rows[28:], {})
    task = make_task(recipe, splits, tiny)
    train(Job(recipe, splits, task, tiny))
    model = adapted_by(recipe, tiny)
    together = predict(model, splits.test, Codec(task, tiny))
    assert together == [predict(model, [row], Codec(task, tiny))[0] for row in splits.test]
    assert all(output["summary"].startswith("red") for output in together)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"method": "ia3", "training": {"shrink": [1.0, 0.5]}}, "training.shrink: method ia3 does not use it"),
        ({"method": "prompt_tuning", "last_layers": 1}, "last_layers: method prompt_tuning does not use it"),
        ({"method": "adalora", "lora": {"plus": 16}}, "lora.plus: method adalora does not use it"),
        ({"method": "adalora", "training": {"budget": "5 min"}}, "adalora shares its ranks out over all steps"),
    ],
)
def test_a_setting_that_the_method_would_pass_over_is_refused(
    make_recipe: MakeRecipe, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        make_recipe(**changes)


def test_more_layers_than_there_are_are_refused(make_recipe: MakeRecipe, splits: Splits, tiny: Base) -> None:
    recipe = recipe_of(make_recipe, "lora", last_layers=9)
    with pytest.raises(HotswapError, match="last_layers is 9; this base has 2 layers"):
        train(make_job(recipe, splits, tiny))


def test_lora_plus_lets_b_learn_faster(make_recipe: MakeRecipe, splits: Splits, tiny: Base) -> None:
    norms = []
    for plus in (None, 16.0):
        recipe = make_recipe(
            lora={"rank": 4, "target_modules": ["q_proj"], "plus": plus},
            training={"learning_rate": 1e-4, "epochs": 1},
            output=make_recipe().run_folder / str(plus),
        )
        train(make_job(recipe, splits, tiny))
        weights = load_file(recipe.run_folder / "adapter" / "adapter_model.safetensors")
        norms.append(sum(float(w.float().norm()) for key, w in weights.items() if "lora_B" in key))
    assert norms[1] > 4 * norms[0]


def test_the_temperature_is_that_of_what_is_served(make_recipe: MakeRecipe, tiny: Base) -> None:
    """Cut down to rank 1, a change is another model, which is as sure as it is."""
    dice = random.Random(3)
    noisy = [Row(row["text"], dice.choices([row["label"], "positive"], [3, 1])[0], row["text"]) for row in reviews(400)]
    splits = Splits(noisy[:100], noisy[100:300], noisy[300:], {})
    recipe = recipe_of(make_recipe, "full", epochs=2, convert={"max_rank": 1, "error": 0})
    task = make_task(recipe, splits, tiny)
    told = train(Job(recipe, splits, task, tiny)).temperature
    served = predict(with_adapter(recipe.run_folder / "adapter", tiny), splits.validation, Codec(task, tiny))
    assert told == pytest.approx(temperature(served, [row.answer for row in splits.validation]))
