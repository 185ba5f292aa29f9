"""Which trainer pursues which objective: ours for supervised tuning, TRL's for the others."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel
from transformers import Trainer, TrainingArguments

from trainer.batches import Encoded, collate
from trainer.frozen_layers import HiddenStates, SkipFrozenLayers, frozen_below
from trainer.job import Job
from trainer.precision import in_bfloat16
from trainer.supervised import AnswerTrainer


def make_trainer(job: Job, model: Any, arguments: dict[str, Any], learnt: Encoded, held_out: Encoded | None) -> Trainer:
    """Return what trains ``model`` for the recipe's objective; ``arguments`` are those of transformers' Trainer. The
    rows that are ``learnt`` and ``held_out`` are for the supervised one; others read the splits."""
    if held_out is not None:
        return _answer_trainer(job, model, arguments, learnt, held_out)
    from trainer import preference, reinforce, reward  # TRL takes seconds to import

    makers = {
        "dpo": preference.pair_trainer,
        "kto": preference.thumb_trainer,
        "reward": reward.reward_trainer,
        "grpo": reinforce.reinforce_trainer,
    }
    return makers[job.recipe.objective](job, model, arguments)


def _answer_trainer(job: Job, model: Any, arguments: dict[str, Any], learnt: Encoded, held_out: Encoded) -> Trainer:
    train: Any = learnt
    validation: Any = held_out
    layers = frozen_below(model) if PartialState().num_processes == 1 else 0
    files = [job.recipe.run_folder / f"{name}.hidden" for name in ("train", "validation")]
    if layers:
        if torch.cuda.is_available():
            model.cuda()
        precise = {"bfloat16": in_bfloat16(job.recipe.training.precision)}
        train, validation = (
            HiddenStates(part, model, layers, file, **precise)
            for part, file in zip((train, validation), files, strict=True)
        )
    trainer = AnswerTrainer(
        model=model,
        recipe=job.recipe,
        args=TrainingArguments(**arguments),
        train_dataset=train,
        eval_dataset=validation,
        data_collator=collate(job.base.end_id),
    )
    if layers:
        trainer.add_callback(SkipFrozenLayers(model, layers, files))
    return trainer


def without_reference(model: Any) -> Any:
    """Take away the copy of the adapter as it began, which TRL compares with."""
    if isinstance(model, PeftModel) and "ref" in model.peft_config:
        model.delete_adapter("ref")
    return model
