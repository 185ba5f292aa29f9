"""Train an adapter: load, construct, train, save."""

from __future__ import annotations

import math
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.store import WEIGHTS
from adapters.tasks import ClassificationTask, SummarizationTask
from adapters.tasks.base import BaseTask
from trainer import methods, statistics
from trainer.batches import IGNORED, Encoded, LengthGrouped, collate
from trainer.config import CONVERTED, IDENTITY, ClassificationRecipe, Recipe
from trainer.conversion import changes_of, to_lora
from trainer.data import Row, Splits, labels_of
from trainer.evaluate import predict
from trainer.soft_prompts import spelled


def make_task(recipe: Recipe, splits: Splits, base: Base) -> ClassificationTask | SummarizationTask:
    """Return the Task that training, evaluation and the service will share."""
    settings = recipe.task.model_dump(exclude={"kind", "template", "labels"})
    if isinstance(recipe.task, ClassificationRecipe):
        labels = labels_of(recipe.task, splits.train)
        return ClassificationTask.of(recipe.task.template, labels, base.tokenizer, **settings)
    return SummarizationTask.of(recipe.task.template, **settings)


def train(
    recipe: Recipe, splits: Splits, task: BaseTask, base: Base, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """Train and leave the adapter in ``recipe.run_folder / "adapter"``; return what the run was like.

    A run that was interrupted goes on from its last checkpoint, with the result it would have had; a run
    folder of another recipe, data or base is started afresh. Raises :class:`HotswapError` where the recipe
    does not fit the base model.
    """
    folder = recipe.run_folder
    for tracker in recipe.training.report_to:
        if find_spec(tracker) is None:
            raise HotswapError(f"training.report_to: {tracker} is not installed; pip install {tracker}.")
    checkpoint = _prepare_folder(folder, recipe.run_identity(splits.fingerprint, base.digest))
    set_seed(recipe.seed)
    steps = _steps(recipe, len(splits.train))
    model = methods.adapt(methods.load_base(base, recipe), recipe, base, steps)
    trainer = AnswerTrainer(
        model=model,
        recipe=recipe,
        args=_arguments(recipe, folder, steps),
        train_dataset=Encoded(splits.train, task, base),
        eval_dataset=Encoded(splits.validation, task, base),
        data_collator=collate(base.end_id),
        callbacks=[Progress(), *callbacks],
    )
    trainer.remove_callback(PrinterCallback)
    started = time.monotonic()
    result = trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.monotonic() - started
    weights = [p for p in model.parameters() if p.requires_grad]
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = losses[-1] if recipe.method == "adalora" and losses else trainer.state.best_metric
    if best is None or not math.isfinite(best) or not all(w.half().isfinite().all() for w in weights):
        raise HotswapError("the training diverged into infinite weights; set a lower training.learning_rate.")
    weights_count = sum(w.numel() for w in weights)
    shrunk = shrink(model, recipe.training.shrink, splits.validation, task, base)
    calibration = _temperature(model, splits.validation, task, base)
    converted = _save(model, recipe, folder / "adapter", splits, task, base)
    history = [entry for entry in trainer.state.log_history if "loss" in entry or "eval_loss" in entry]
    return {
        "data": splits.fingerprint,
        "rows": splits.counts(),
        "base": base.digest,
        "machine": f"{torch.get_num_threads()} threads of a {platform.machine()} CPU"
        if not torch.cuda.is_available()
        else torch.cuda.get_device_name(),
        "seconds": round(seconds, 1),
        "tokens_per_second": round(sum(trainer.train_dataset.lengths) * recipe.training.epochs / seconds, 1),
        "steps": trainer.state.global_step,
        "train_loss": result.training_loss,
        "best_validation_loss": best,
        "shrunk_to": shrunk,
        "temperature": calibration,
        "trainable_parameters": weights_count,
        **({"converted": converted} if converted else {}),
        "history": history,
    }


def _prepare_folder(folder: Path, identity: str) -> str | None:
    """Return the checkpoint to go on from, if the folder holds one of exactly this run."""
    note = folder / IDENTITY
    if note.is_file() and note.read_text() == identity:
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / TRAINER_STATE_NAME).is_file():  # written last: a kill left this one incomplete
                shutil.rmtree(checkpoint)
        return get_last_checkpoint(str(folder))
    if note.is_file():
        shutil.rmtree(folder)
    elif folder.exists() and any(folder.iterdir()):
        raise HotswapError(f"{folder} is not empty and not a run of this trainer; set output to another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(identity)
    return None


def _steps(recipe: Recipe, rows: int) -> int:
    training = recipe.training
    return max(1, round(rows / (training.batch_size * training.accumulate) * training.epochs))


def _arguments(recipe: Recipe, folder: Path, steps: int) -> TrainingArguments:
    training = recipe.training
    # AdaLoRA's ranks are settled at the end of the run, and PEFT's checkpoints lack what they are chosen by: such a run
    # neither stops early nor goes on after a kill.
    whole = recipe.method == "adalora"
    every = max(1, steps // training.evaluations)
    return TrainingArguments(
        output_dir=str(folder),
        seed=recipe.seed,
        data_seed=recipe.seed,
        learning_rate=training.learning_rate,
        lr_scheduler_type=training.schedule,
        warmup_steps=round(steps * training.warmup),
        num_train_epochs=training.epochs,
        per_device_train_batch_size=training.batch_size,
        per_device_eval_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulate,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="no" if whole else "steps",
        save_steps=every,
        save_total_limit=2,
        logging_steps=max(1, every // 5),
        load_best_model_at_end=not whole,
        restore_callback_states_from_checkpoint=not whole,  # early stopping goes on counting after a kill
        metric_for_best_model="eval_loss",
        bf16=_bfloat16(training.precision),
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        gradient_checkpointing=training.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False} if training.gradient_checkpointing else None,
        report_to=list(training.report_to),
        disable_tqdm=True,  # Progress draws the bar
    )


def shrink(model: Any, shares: Sequence[float], rows: list[Row], task: BaseTask, base: Base) -> float:
    """Scale the update to the smallest of ``shares`` whose accuracy on ``rows`` is within one standard error of
    the best, and return that share.

    Between the base and the fine-tuned weights lie models that are as good on the data trained on and better
    on other data (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903); the one-standard-error rule (Breiman et
    al. 1984) chooses among them without looking at that other data. For LoRA it is a smaller ``alpha``.
    """
    if not shares:
        return 1.0
    references = [row.answer for row in rows]
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    full = [layer.scaling["default"] for layer in layers]

    def scale(share: float) -> None:
        for layer, scaling in zip(layers, full, strict=True):
            layer.scaling["default"] = share * scaling

    model.eval()
    accuracy = {}
    for share in shares:
        scale(share)
        accuracy[share] = task.score(predict(model, rows, task, base, f"share {share}"), references)["accuracy"]
    best = max(accuracy.values())
    chosen = min(s for s in shares if accuracy[s] >= best - math.sqrt(best * (1 - best) / len(rows)))
    scale(chosen)
    model.peft_config["default"].lora_alpha *= chosen
    return chosen


def _temperature(model: Any, rows: list[Row], task: BaseTask, base: Base) -> float:
    if not isinstance(task, ClassificationTask) or len(rows) < statistics.CALIBRATION_ROWS:
        return 1.0
    model.eval()
    outputs = predict(model, rows, task, base, "validation: confidence")
    return statistics.temperature(outputs, [row.answer for row in rows])


def _bfloat16(precision: str) -> bool:
    """Whether to multiply in bfloat16 (autocast; weights stay float32). On a CPU only where asked for: it is
    twice as fast with AVX512-bf16, several times slower without, and the result depends on the machine."""
    if precision == "auto":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return precision == "bfloat16"


def _save(
    model: Any, recipe: Recipe, folder: Path, splits: Splits, task: BaseTask, base: Base
) -> dict[str, Any] | None:
    """Write the adapter in half precision: half the bytes to store and load.

    Evaluation reads this file back, so that what is measured is what will be served. Returns, for what had to be made
    into a LoRA, how that went, and the held-out scores from before.
    """
    if recipe.method in CONVERTED:
        model.eval()
        rows = splits.test
        scores = task.score(predict(model, rows, task, base, "test: as trained"), [row.answer for row in rows])
        changes = changes_of(model, methods.load_base(base, recipe))
        return {**to_lora(changes, recipe.convert, folder, base), "as_trained": scores}
    model.peft_config["default"].base_model_name_or_path = base.name
    model.save_pretrained(folder, save_embedding_layers=False)  # or PEFT asks the network for base.name
    weights = folder / WEIGHTS
    save_file({k: v.half().contiguous() for k, v in load_file(weights).items()}, weights, metadata={"format": "pt"})
    (folder / "README.md").unlink(missing_ok=True)
    return None


class Progress(TrainerCallback):
    """A bar where there is a terminal, and a line per report. On stderr: transformers' own go to stdout, which
    is for results."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=None)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        losses = {name: logs[key] for key, name in (("loss", "loss"), ("eval_loss", "validation loss")) if key in logs}
        for name, loss in losses.items():
            tqdm.write(f"step {state.global_step} of {state.max_steps}: {name} {loss:.4f}", file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


class AnswerTrainer(Trainer):
    """transformers' Trainer with the loss on the answer only.

    The vocabulary projection is a fifth of a small model's work: it is done for the answer's positions,
    not for the prompt's.
    """

    def __init__(self, recipe: Recipe, **options: Any) -> None:
        super().__init__(**options)
        self._recipe = recipe
        if recipe.method == "adalora":
            self.add_callback(RankAllocation())
        else:
            self.add_callback(EarlyStoppingCallback(recipe.training.patience))

    def create_optimizer(self, *given: Any) -> torch.optim.Optimizer:
        """Return the Trainer's own, or for LoRA+ PEFT's, in which B learns faster than A."""
        ratio = self._recipe.lora.plus
        if ratio is None:
            return super().create_optimizer(*given)
        kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
        options.setdefault("lr", self.args.learning_rate)
        decay = self.args.weight_decay
        self.optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
            self.model, kind, loraplus_lr_ratio=ratio, loraplus_weight_decay=decay, **options
        )
        return self.optimizer

    def _get_train_sampler(self, train_dataset: Any = None) -> torch.utils.data.Sampler:
        data = train_dataset if train_dataset is not None else self.train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGrouped(data.lengths, batch, self.args.seed)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        labels = inputs.pop("labels")
        answers = int((labels != IGNORED).any(dim=0).sum())
        called, inputs = spelled(model, inputs)
        outputs = called(**inputs, logits_to_keep=answers + 1)
        logits = outputs.logits[:, :-1].float()
        targets = labels[:, -answers:]
        total = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
        loss = total / (num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum())
        return (loss, outputs) if return_outputs else loss


class RankAllocation(TrainerCallback):
    """AdaLoRA moves its ranks to where they matter, between the gradients and their deletion."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)
