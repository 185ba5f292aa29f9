"""Which trainer pursues which objective: ours for supervised tuning, TRL's for the others."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainingArguments

from trainer.batches import collate
from trainer.frozen_layers import Rows
from trainer.job import Job
from trainer.supervised import AnswerTrainer


def make_trainer(job: Job, model: Any, arguments: dict[str, Any], learnt: Rows, held_out: Rows | None) -> Trainer:
    """Return what trains ``model`` for the recipe's objective; ``arguments`` are those of transformers' Trainer. The
    rows that are ``learnt`` and ``held_out`` are for the supervised one; others read the splits."""
    if held_out is not None:
        return AnswerTrainer(
            model=model,
            recipe=job.recipe,
            args=TrainingArguments(**arguments),
            train_dataset=learnt,
            eval_dataset=held_out,
            data_collator=collate(job.base.end_id),
        )
    from trainer import preference, reinforce, reward  # TRL takes seconds to import

    makers = {
        "dpo": preference.pair_trainer,
        "kto": preference.thumb_trainer,
        "reward": reward.reward_trainer,
        "grpo": reinforce.reinforce_trainer,
    }
    return makers[job.recipe.objective](job, model, arguments)
