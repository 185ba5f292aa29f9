"""Training: the loss falls, the adapter moves, the base does not, and a killed run ends where it would have ended."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.lint import lint
from adapters.modules import base_shapes
from adapters.packages import file_digest
from adapters.store import CONFIG, WEIGHTS
from adapters.tasks import ClassificationTask, SummarizationTask
from tests.trainer.conftest import MakeRecipe, settings
from trainer.batches import IGNORED, Encoded, LengthGrouped, collate
from trainer.codec import Codec
from trainer.data import Splits
from trainer.mixture import make_job
from trainer.recipe import Recipe
from trainer.rows import Row
from trainer.run_record import RunRecord
from trainer.supervised import AnswerTrainer, answer_loss
from trainer.train import shrink, train

# Two epochs of eight steps, scored after every second step; dropout draws from the generators that a resumed
# run must find where they were. In float32: sums in another order are to differ by rounding only.
EXACT = {"learning_rate": 1e-2, "precision": "float32"}
STEADY = EXACT | {"batch_size": 8, "epochs": 2, "evaluations": 8, "patience": 99}
LORA = {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"], "dropout": 0.1}
STEPS = 16

pytestmark = pytest.mark.usefixtures("one_thread")


class Killed(Exception):
    """What a killed process would not even have time to raise."""


def run(recipe: Recipe, splits: Splits, base: Base) -> RunRecord:
    return train(make_job(recipe, splits, base))


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return load_file(recipe.run_folder / "adapter" / WEIGHTS)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.fixture
def killed_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], Any]], None]:
    """Run something that trains, and end it before step ``steps + 1``."""

    def kill(steps: int, training: Callable[[], Any]) -> None:
        left = steps
        step = AnswerTrainer.training_step

        def counted(self: AnswerTrainer, *arguments: Any, **more: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Killed
            left -= 1
            return step(self, *arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(AnswerTrainer, "training_step", counted)
            with pytest.raises(Killed):
                training()

    return kill


@pytest.fixture(scope="module")
def finished(
    one_thread: None, tmp_path_factory: pytest.TempPathFactory, splits: Splits, tiny: Base
) -> tuple[Recipe, RunRecord]:
    """A run that nobody interrupted, which all others are compared with."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    recipe = Recipe.model_validate(settings(output=folder, training=STEADY, lora=LORA))
    before = file_digest(tiny.folder / "model.safetensors")
    result = run(recipe, splits, tiny)
    assert file_digest(tiny.folder / "model.safetensors") == before, "the base does not change"
    return recipe, result


class TestARun:
    def test_lowers_the_loss(self, finished: tuple[Recipe, RunRecord]) -> None:
        history = finished[1].history
        training = [entry.loss for entry in history if entry.loss is not None]
        validation = [entry.eval_loss for entry in history if entry.eval_loss is not None]
        assert training[-1] < training[0] / 2
        assert min(validation) == finished[1].best_validation_loss < validation[0]

    def test_moves_every_module_it_was_to_adapt_and_no_other(self, finished: tuple[Recipe, RunRecord]) -> None:
        tensors = weights(finished[0])
        modules = {name.split(".self_attn.")[1].split(".")[0] for name in tensors}
        assert modules == {"q_proj", "v_proj"}
        assert len(tensors) == 2 * 2 * 2, "A and B of two modules in two layers"
        moved = [tensor.abs().max() > 0 for name, tensor in tensors.items() if "lora_B" in name]
        assert all(moved), "B begins at zero"

    def test_leaves_an_adapter_that_can_be_served(self, finished: tuple[Recipe, RunRecord], tiny: Base) -> None:
        folder = finished[0].run_folder / "adapter"
        assert {path.name for path in folder.iterdir()} == {CONFIG, WEIGHTS}
        facts = lint(folder, shapes=base_shapes(tiny.folder), max_rank=4)
        assert (facts.rank, facts.alpha) == (4, 8)
        assert {tensor.dtype for tensor in weights(finished[0]).values()} == {torch.float16}
        config = json.loads((folder / CONFIG).read_text())
        assert config["base_model_name_or_path"] == "tiny-llama", "a name, not a path on this machine"

    def test_says_what_it_was_like(self, finished: tuple[Recipe, RunRecord], splits: Splits, tiny: Base) -> None:
        result = finished[1]
        assert (result.data, result.base) == (splits.fingerprint, tiny.digest)
        assert result.rows == {"train": 64, "validation": 16, "test": 16}
        assert result.steps == STEPS
        assert result.trainable_parameters == sum(tensor.numel() for tensor in weights(finished[0]).values())
        json.dumps(result.content(), allow_nan=False)

    def test_of_the_same_recipe_gives_the_same_adapter(
        self, finished: tuple[Recipe, RunRecord], make_recipe: MakeRecipe, splits: Splits, tiny: Base
    ) -> None:
        again = make_recipe(training=STEADY, lora=LORA)
        result = run(again, splits, tiny)
        assert same(weights(again), weights(finished[0]))
        assert result.best_validation_loss == finished[1].best_validation_loss

    def test_of_another_seed_gives_another_adapter(
        self, finished: tuple[Recipe, RunRecord], make_recipe: MakeRecipe, splits: Splits, tiny: Base
    ) -> None:
        other = make_recipe(training=STEADY, lora=LORA, seed=8)
        run(other, splits, tiny)
        assert not same(weights(other), weights(finished[0]))

    def test_keeps_stdout_for_results(
        self, make_recipe: MakeRecipe, splits: Splits, tiny: Base, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run(make_recipe(), splits, tiny)
        shown = capsys.readouterr()
        assert shown.out == ""
        assert "step 16 of 16: validation loss " in shown.err

    def test_of_summaries_lowers_the_loss(self, make_recipe: MakeRecipe, tiny: Base) -> None:
        rows = [Row(f"The film {n} is a long film", "a slow film", str(n)) for n in range(48)]
        task = {"kind": "summarization", "template": "Text: {text}\nSummary:", "max_answer_tokens": 12}
        result = run(make_recipe(task=task), Splits(rows[:32], rows[32:40], rows[40:], {}), tiny)
        losses = [entry.loss for entry in result.history if entry.loss is not None]
        assert losses[-1] < 0.7 * losses[0]

    def test_of_bigger_batches_is_the_same_as_of_small_ones_summed_up(
        self, make_recipe: MakeRecipe, splits: Splits, tiny: Base, tmp_path: Path
    ) -> None:
        tensors = []
        for batch, accumulate in ((8, 1), (4, 2), (2, 4)):
            sizes = {"batch_size": batch, "accumulate": accumulate, "epochs": 1, "evaluations": 1}
            recipe = make_recipe(training=EXACT | sizes, output=tmp_path / f"run-{batch}")
            run(recipe, splits, tiny)
            tensors.append(weights(recipe))
        for other in tensors[1:]:
            for name, tensor in tensors[0].items():
                torch.testing.assert_close(other[name], tensor, atol=2e-3, rtol=2e-2)

    def test_stops_early_and_keeps_the_best(self, make_recipe: MakeRecipe, splits: Splits, tiny: Base) -> None:
        standstill = STEADY | {"learning_rate": 1e-12, "patience": 2}
        result = run(make_recipe(training=standstill), splits, tiny)
        assert result.steps == 2 * (1 + 2), "the first evaluation is the best, two more are no better"
        whole = run(make_recipe(training=STEADY), splits, tiny)
        done, planned = (each.tokens_per_second * each.seconds for each in (result, whole))
        assert done / planned == pytest.approx(result.steps / whole.steps, rel=0.1)

    def test_ends_within_its_minutes_on_the_machine_it_runs_on(
        self,
        make_recipe: MakeRecipe,
        splits: Splits,
        tiny: Base,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        tokens = sum(len(tiny.tokenizer.encode(f"Review: {row.text}\nSentiment:")) + 1 for row in splits.train)
        training = EXACT | {"batch_size": 8, "evaluations": 1, "patience": 9, "budget": "2 min"}
        for passes_a_minute, steps in ((0.75, 10), (100, 12 * 8)):  # eight steps a pass, and 12 passes at most
            monkeypatch.setattr("trainer.fit.tokens_per_second", lambda *_, a=passes_a_minute, **__: a * tokens / 60)
            recipe = make_recipe(training=training, output=Path(f"{make_recipe().run_folder}-{steps}"))
            assert run(recipe, splits, tiny).steps == steps
            assert f"at most {steps} steps" in capsys.readouterr().err

    @pytest.mark.parametrize("rows", [1, 3, 9])
    def test_of_very_few_rows_still_ends(self, make_recipe: MakeRecipe, splits: Splits, tiny: Base, rows: int) -> None:
        few = Splits(splits.train[:rows], splits.validation[:1], splits.test[:1], {})
        recipe = make_recipe(task={"kind": "classification", "labels": ["positive", "negative"]})
        assert run(recipe, few, tiny).best_validation_loss > 0


class TestARefusedRun:
    @pytest.mark.parametrize(
        ("modules", "named"),
        [
            (["q_prj"], "q_prj"),
            (["q_proj", "w_proj"], "w_proj"),  # half of it would be trained without a word
            (["embed_tokens"], "embed_tokens"),
            (["norm"], "norm"),
            (["proj"], "proj"),
        ],
    )
    def test_names_the_modules_that_the_base_has(
        self, make_recipe: MakeRecipe, splits: Splits, tiny: Base, modules: list[str], named: str
    ) -> None:
        recipe = make_recipe(lora={"target_modules": modules})
        with pytest.raises(HotswapError) as refused:
            run(recipe, splits, tiny)
        assert str(refused.value).startswith(f"lora.target_modules: this base has no {named}; it has: ")
        assert "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj." in str(refused.value)

    def test_adapts_nothing_only_where_nothing_is_asked_for(
        self, make_recipe: MakeRecipe, splits: Splits, tiny: Base
    ) -> None:
        with pytest.raises(HotswapError, match=r"lora\.target_modules: "):
            run(make_recipe(lora={"target_modules": []}), splits, tiny)

    def test_leaves_a_folder_of_somebody_else_alone(self, make_recipe: MakeRecipe, splits: Splits, tiny: Base) -> None:
        recipe = make_recipe()
        recipe.run_folder.mkdir()
        (recipe.run_folder / "thesis.txt").write_text("years of work")
        with pytest.raises(HotswapError, match="is not empty and not a run of this trainer; set output to another"):
            run(recipe, splits, tiny)
        assert [path.name for path in recipe.run_folder.iterdir()] == ["thesis.txt"]
        assert (recipe.run_folder / "thesis.txt").read_text() == "years of work"

    @pytest.mark.parametrize("rate", [1e6, 1e30], ids=["beyond half precision", "beyond all"])
    def test_says_that_the_training_diverged(
        self, make_recipe: MakeRecipe, splits: Splits, tiny: Base, rate: float
    ) -> None:
        recipe = make_recipe(training=STEADY | {"learning_rate": rate})
        with pytest.raises(HotswapError, match=r"the training diverged into infinite weights; set a lower training\."):
            run(recipe, splits, tiny)
        assert not (recipe.run_folder / "adapter").exists()


def test_of_a_training_that_diverges_later_the_best_state_before_is_kept(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base
) -> None:
    class Ruin(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            if state.global_step == 7:
                next(p for p in model.parameters() if p.requires_grad).data.fill_(math.nan)

    recipe = make_recipe(training=STEADY)
    result = train(make_job(recipe, splits, tiny), [Ruin()])
    assert result is not None
    assert result.diverged_at == result.steps == 8
    told = json.loads(json.dumps(result.content()), parse_constant=pytest.fail)  # strict readers know no NaN
    assert RunRecord.model_validate(told) == result
    assert math.isfinite(result.best_validation_loss or math.nan)
    assert all(tensor.isfinite().all() for tensor in weights(recipe).values())
    assert run(make_recipe(training=STEADY, output=Path(f"{recipe.run_folder}-2")), splits, tiny).diverged_at is None


class TestAKilledRun:
    @pytest.mark.parametrize("steps", [1, 2, 5, 8, 11, 15])
    def test_ends_where_it_would_have_ended(
        self,
        finished: tuple[Recipe, RunRecord],
        make_recipe: MakeRecipe,
        splits: Splits,
        tiny: Base,
        killed_after: Callable[..., None],
        steps: int,
    ) -> None:
        """Before the first checkpoint (1), at one (2), in mid epoch (5), between epochs (8), in the second (11, 15)."""
        recipe = make_recipe(training=STEADY, lora=LORA)
        killed_after(steps, lambda: run(recipe, splits, tiny))
        assert not (recipe.run_folder / "adapter").exists()
        result = run(recipe, splits, tiny)
        assert same(weights(recipe), weights(finished[0]))
        assert (result.steps, result.history[-1].step) == (STEPS, STEPS)
        assert result.best_validation_loss == finished[1].best_validation_loss
        assert result.train_loss == pytest.approx(finished[1].train_loss, rel=1e-6)

    def test_counts_the_time_before_the_kill_too(
        self, make_recipe: MakeRecipe, splits: Splits, tiny: Base, killed_after: Callable[..., None]
    ) -> None:
        recipe = make_recipe(training=STEADY, lora=LORA)
        killed_after(5, lambda: run(recipe, splits, tiny))
        note = recipe.run_folder / "checkpoint-4" / TRAINER_STATE_NAME
        state = json.loads(note.read_text())
        clock = state["stateful_callbacks"]["Clock"]
        assert clock["attributes"]["before"] > 0
        clock["attributes"]["before"] = 1000
        note.write_text(json.dumps(state))
        assert run(recipe, splits, tiny).seconds > 1000

    def test_may_be_killed_again(
        self,
        finished: tuple[Recipe, RunRecord],
        make_recipe: MakeRecipe,
        splits: Splits,
        tiny: Base,
        killed_after: Callable[..., None],
    ) -> None:
        recipe = make_recipe(training=STEADY, lora=LORA)
        for steps in (5, 5, 3):
            killed_after(steps, lambda: run(recipe, splits, tiny))
        run(recipe, splits, tiny)
        assert same(weights(recipe), weights(finished[0]))

    def test_may_have_been_killed_while_it_wrote_a_checkpoint(
        self,
        finished: tuple[Recipe, RunRecord],
        make_recipe: MakeRecipe,
        splits: Splits,
        tiny: Base,
        killed_after: Callable[..., None],
    ) -> None:
        recipe = make_recipe(training=STEADY, lora=LORA)
        killed_after(5, lambda: run(recipe, splits, tiny))
        half = recipe.run_folder / "checkpoint-6"
        half.mkdir()
        (half / WEIGHTS).write_bytes(b"half a file")
        run(recipe, splits, tiny)
        assert same(weights(recipe), weights(finished[0]))

    @pytest.mark.parametrize("steps", [3, 5])
    def test_goes_on_counting_towards_an_early_stop(
        self,
        make_recipe: MakeRecipe,
        splits: Splits,
        tiny: Base,
        killed_after: Callable[..., None],
        steps: int,
    ) -> None:
        recipe = make_recipe(training=STEADY | {"learning_rate": 1e-12, "patience": 2})
        killed_after(steps, lambda: run(recipe, splits, tiny))
        assert run(recipe, splits, tiny).steps == 2 * (1 + 2)

    @pytest.mark.parametrize("change", ["recipe", "rows", "base"])
    def test_is_begun_afresh_where_something_has_changed(
        self,
        make_recipe: MakeRecipe,
        splits: Splits,
        tiny: Base,
        killed_after: Callable[..., None],
        change: str,
    ) -> None:
        recipe, rows, base = make_recipe(training=STEADY, lora=LORA), splits, tiny
        killed_after(11, lambda: run(recipe, splits, tiny))
        (recipe.run_folder / "trace").touch()
        if change == "recipe":
            recipe = make_recipe(training=STEADY, lora=LORA | {"alpha": 9})
        elif change == "rows":
            rows = Splits(splits.train[:-1], splits.validation, splits.test, {})
        else:
            base = Base(tiny.name, tiny.folder, "sha256:" + "0" * 64, tiny.tokenizer, tiny.end_id)
        result = run(recipe, rows, base)
        assert not (recipe.run_folder / "trace").exists()
        assert result.history[0].step == 1, "no step of the old run is counted"
        fresh = recipe.model_copy(update={"output": recipe.run_folder.with_name("fresh")})
        run(fresh, rows, base)
        assert same(weights(recipe), weights(fresh))


@pytest.fixture(scope="module")
def model(tiny: Base) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32).eval()


class TestTheLoss:
    LENGTHS = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=5)

    @staticmethod
    def examples(lengths: list[tuple[int, int]]) -> list[dict[str, list[int]]]:
        drawn = torch.Generator().manual_seed(3)
        made = []
        for prompt, answer in lengths:
            ids = torch.randint(3, 290, (prompt + answer,), generator=drawn).tolist()
            made.append({"input_ids": ids, "labels": [IGNORED] * prompt + ids[prompt:]})
        return made

    @staticmethod
    def by_hand(model: Any, examples: list[dict[str, list[int]]]) -> list[torch.Tensor]:
        """One row at a time, no padding, all logits: the cross entropy of every answer token."""
        losses = []
        for example in examples:
            logits = model(input_ids=torch.tensor([example["input_ids"]])).logits[0, :-1]
            losses += cross_entropy(
                logits, torch.tensor(example["labels"][1:]), ignore_index=IGNORED, reduction="none"
            )[torch.tensor(example["labels"][1:]) != IGNORED]
        return losses

    @pytest.mark.parametrize("counted", [None, 3.0, 40.0])
    @hypothesis_settings(max_examples=15, deadline=None)
    @given(lengths=LENGTHS)
    @torch.no_grad()
    def test_is_that_of_the_answer_tokens_alone(
        self, model: Any, lengths: list[tuple[int, int]], counted: float | None
    ) -> None:
        examples = self.examples(lengths)
        losses = self.by_hand(model, examples)
        trainer = AnswerTrainer.__new__(AnswerTrainer)
        trainer.accelerator = SimpleNamespace(num_processes=1)
        number = None if counted is None else torch.tensor(counted)
        loss = trainer.compute_loss(model, collate(pad_id=2)(examples), num_items_in_batch=number)
        expected = torch.stack(losses).sum() / (counted or len(losses))
        torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)

    @torch.no_grad()
    def test_of_a_label_is_mostly_that_among_the_labels(
        self, model: Any, tiny: Base, sentiment_task: ClassificationTask, summary_task: SummarizationTask
    ) -> None:
        asked = [
            (Row("a moving film", "positive", "g"), sentiment_task),
            (Row("a dull film", "dull", "h"), summary_task),
        ]
        examples = [Encoded([each], tiny)[0] for each in asked]
        [label, summary] = (
            answer_loss(model, collate(pad_id=2)([{k: e[k] for k in ("input_ids", "labels")}]))[0] for e in examples
        )
        ids = torch.tensor([examples[0]["input_ids"][:-1]])
        log_p = model(input_ids=ids).logits[0, -1].log_softmax(-1)[[each.token_id for each in sentiment_task.labels]]
        others = -log_p.logsumexp(-1)  # minus the log-probability that it is a label at all
        total, _, _ = answer_loss(model, collate(pad_id=2)(examples))
        torch.testing.assert_close(total, label - 0.9 * others + summary, atol=1e-4, rtol=1e-4)

    @torch.no_grad()
    def test_does_not_depend_on_what_pads(self, model: Any) -> None:
        examples = self.examples([(3, 1), (11, 4)])
        trainer = AnswerTrainer.__new__(AnswerTrainer)
        losses = [trainer.compute_loss(model, collate(pad_id=pad)(examples)) for pad in (2, 99)]
        torch.testing.assert_close(losses[0], losses[1])

    def test_has_a_gradient_for_the_whole_prompt(self, tiny: Base) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
        trainer = AnswerTrainer.__new__(AnswerTrainer)
        examples = self.examples([(6, 1)])
        trainer.compute_loss(model, collate(pad_id=2)(examples)).backward()
        seen = model.get_input_embeddings().weight.grad[examples[0]["input_ids"][:6]]
        assert (seen.abs().sum(dim=1) > 0).all()


class TestBatches:
    def test_are_padded_on_the_left(self) -> None:
        short, long = {"input_ids": [5, 6], "labels": [IGNORED, 6]}, {"input_ids": [7, 8, 9], "labels": [IGNORED, 8, 9]}
        batch = {name: tensor.tolist() for name, tensor in collate(pad_id=2)([short, long]).items()}
        assert batch == {
            "input_ids": [[2, 5, 6], [7, 8, 9]],
            "labels": [[IGNORED, IGNORED, 6], [IGNORED, 8, 9]],
            "attention_mask": [[0, 1, 1], [1, 1, 1]],
        }

    @pytest.mark.parametrize("kind", ["classification", "summarization"])
    def test_hold_the_task_s_own_prompt_and_answer(
        self, tiny: Base, sentiment_task: ClassificationTask, summary_task: SummarizationTask, kind: str
    ) -> None:
        task = sentiment_task if kind == "classification" else summary_task
        answer = "positive" if kind == "classification" else "a moving film"
        [example] = Encoded([(Row("a film " * 9, answer, "g"), task)], tiny)  # type: ignore[misc]
        prompt = task.prompt("a film " * 9, tiny.tokenizer).ids
        target = task.target(answer, tiny.tokenizer, end=tiny.end_id)
        assert example["input_ids"] == prompt + target
        assert example["labels"] == [IGNORED] * len(prompt) + target

    @hypothesis_settings(max_examples=40, deadline=None)
    @given(lengths=st.lists(st.integers(1, 99), min_size=1, max_size=80), size=st.integers(1, 16))
    def test_take_every_row_once_an_epoch(self, lengths: list[int], size: int) -> None:
        sampler = LengthGrouped(lengths, size, seed=1)
        assert sorted(sampler) == list(range(len(lengths)))
        assert len(sampler) == len(lengths)

    def test_are_of_like_length(self) -> None:
        lengths = [n % 50 for n in range(400)]
        order = list(LengthGrouped(lengths, 8, seed=1))
        batches = [[lengths[i] for i in order[start : start + 8]] for start in range(0, 400, 8)]
        assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 5

    def test_are_the_same_for_seed_and_epoch_and_no_other(self) -> None:
        def order(seed: int, epoch: int) -> list[int]:
            torch.rand(1)  # whatever else draws from the global generator
            sampler = LengthGrouped(list(range(100)), 4, seed)
            sampler.set_epoch(epoch)
            return list(sampler)

        assert order(1, 0) == order(1, 0)
        assert order(1, 0) != order(1, 1)
        assert order(1, 0) != order(2, 0)


def test_shrinking_keeps_the_smallest_share_that_is_as_good_on_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    class Layer(torch.nn.Module, LoraLayer):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.scaling = {"default": 2.0}

    class Task:
        def score(self, outputs, references):
            return {"accuracy": {2.0: 0.90, 1.5: 0.91, 1.0: 0.90, 0.5: 0.89}[outputs]}

    model = torch.nn.Module()
    model.layer, model.peft_config = Layer(), {"default": SimpleNamespace(lora_alpha=16)}
    monkeypatch.setattr("trainer.train.predict", lambda model, *_: model.layer.scaling["default"])
    rows = [Row("text", "positive", str(n)) for n in range(400)]
    assert shrink(model, (1.0, 0.75, 0.5, 0.25), rows, Codec(Task(), None)) == 0.5
    assert (model.layer.scaling["default"], model.peft_config["default"].lora_alpha) == (1.0, 8)
