"""Learning from comparisons: DPO from pairs of answers, KTO from answers that were found good or bad. By TRL."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from adapters.base_model import Base
from adapters.tasks.base import BaseTask
from trainer.data import Splits
from trainer.recipe import Recipe
from trainer.rows import Row


def pair_trainer(
    recipe: Recipe, model: Any, arguments: dict[str, Any], splits: Splits, task: BaseTask, base: Base
) -> Trainer:
    """Return TRL's DPO trainer. The reference is the model as it begins."""
    return _Pairs(
        model=model,
        args=DPOConfig(**arguments, beta=recipe.preference.beta, max_length=None),
        train_dataset=pairs(splits.train, task, base),
        eval_dataset=pairs(splits.validation, task, base),
        processing_class=AutoTokenizer.from_pretrained(base.folder),
    )


def thumb_trainer(
    recipe: Recipe, model: Any, arguments: dict[str, Any], splits: Splits, task: BaseTask, base: Base
) -> Trainer:
    """Return TRL's KTO trainer. Good and bad answers weigh the same in all, however many there are of each (equation
    8 of the paper)."""
    good = sum(row.good for row in splits.train)
    share = good / (len(splits.train) - good)
    batch = arguments["per_device_train_batch_size"]
    return _Thumbs(
        model=model,
        args=KTOConfig(
            **arguments,
            beta=recipe.preference.beta,
            max_length=None,
            desirable_weight=max(1.0, 1 / share),
            undesirable_weight=max(1.0, share),
        ),
        train_dataset=_with_strangers(thumbs(splits.train, task, base), batch),
        eval_dataset=_with_strangers(thumbs(splits.validation, task, base), batch),
        processing_class=AutoTokenizer.from_pretrained(base.folder),
    )


def pairs(rows: list[Row], task: BaseTask, base: Base) -> Dataset:
    """Return rows as TRL's collators want them: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``. The ids are the
    task's own, so that what is learnt is what will be asked; TRL would make others of the text."""
    return Dataset.from_list(
        [
            {
                "prompt_ids": task.prompt(row.text, base.tokenizer).ids,
                "chosen_ids": task.target(row.answer, base.tokenizer, end=base.end_id),
                "rejected_ids": task.target(row.rejected, base.tokenizer, end=base.end_id),
            }
            for row in rows
        ]
    )


def thumbs(rows: list[Row], task: BaseTask, base: Base) -> Dataset:
    """Return rows as ``prompt_ids``, ``completion_ids`` and ``label``, which is whether the answer was good."""
    return Dataset.from_list(
        [
            {
                "prompt_ids": task.prompt(row.text, base.tokenizer).ids,
                "completion_ids": task.target(row.answer, base.tokenizer, end=base.end_id),
                "label": row.good,
            }
            for row in rows
        ]
    )


def _with_strangers(dataset: Dataset, batch_size: int) -> Dataset:
    """Give each prompt the answer to the one before it in its batch: KTO measures by these how far the model is from
    where it began. Batches are of neighbours, because TRL's sampler keeps the order."""

    def rotate(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        answers = rows["completion_ids"]
        return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

    return dataset.map(rotate, batched=True, batch_size=batch_size)


class _Pairs(DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # it has ids already


class _Thumbs(KTOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset
