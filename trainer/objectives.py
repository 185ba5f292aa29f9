"""Which trainer pursues which objective: ours for supervised tuning, TRL's for the others."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from adapters.base_model import Base
from adapters.tasks.base import BaseTask
from trainer.batches import Encoded, collate
from trainer.data import Splits
from trainer.frozen_layers import HiddenStates, SkipFrozenLayers, frozen_below
from trainer.long_documents import in_parts
from trainer.mixture import Asked
from trainer.recipe import Recipe
from trainer.supervised import AnswerTrainer


def make_trainer(
    recipe: Recipe,
    model: Any,
    arguments: dict[str, Any],
    rows: list[Asked],
    splits: Splits,
    task: BaseTask,
    base: Base,
) -> Trainer:
    """Return what trains ``model`` for the recipe's objective; ``arguments`` are those of transformers' Trainer, and
    ``rows`` what :func:`~trainer.mixture.mixture` makes of the splits."""
    if recipe.objective == "supervised":
        return _answer_trainer(recipe, model, arguments, rows, splits, task, base)
    from trainer import preference, reinforce, reward  # TRL takes seconds to import

    makers = {
        "dpo": preference.pair_trainer,
        "kto": preference.thumb_trainer,
        "reward": reward.reward_trainer,
        "grpo": reinforce.reinforce_trainer,
    }
    return makers[recipe.objective](recipe, model, arguments, splits, task, base)


def _answer_trainer(
    recipe: Recipe,
    model: Any,
    arguments: dict[str, Any],
    rows: list[Asked],
    splits: Splits,
    task: BaseTask,
    base: Base,
) -> Trainer:
    train: Any = Encoded(rows, base)
    validation: Any = Encoded([(row, task) for row in in_parts(splits.validation, task, base)], base)
    layers = frozen_below(model) if PartialState().num_processes == 1 else 0
    files = [recipe.run_folder / f"{name}.hidden" for name in ("train", "validation")]
    if layers:
        if torch.cuda.is_available():
            model.cuda()
        train, validation = (
            HiddenStates(part, model, layers, file) for part, file in zip((train, validation), files, strict=True)
        )
    trainer = AnswerTrainer(
        model=model,
        recipe=recipe,
        args=TrainingArguments(**arguments),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate(base.end_id),
    )
    if layers:
        trainer.add_callback(SkipFrozenLayers(model, layers, files))
    return trainer


def without_reference(model: Any) -> Any:
    """Take away the copy of the adapter as it began, which TRL compares with."""
    if isinstance(model, PeftModel) and "ref" in model.peft_config:
        model.delete_adapter("ref")
    return model
