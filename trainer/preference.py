"""Learning from comparisons: DPO from pairs of answers, KTO from answers that were found good or bad. By TRL."""

from __future__ import annotations

from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, Trainer
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from trainer.codec import Codec
from trainer.job import Job
from trainer.reference import BesideReference
from trainer.rows import Row


def pair_trainer(job: Job, model: Any, arguments: dict[str, Any]) -> Trainer:
    """Return TRL's DPO trainer. The reference is the model as it begins."""
    return _Pairs(
        model=model,
        args=DPOConfig(**arguments, beta=job.recipe.preference.beta, max_length=None),
        train_dataset=pairs(job.splits.train, job.codec),
        eval_dataset=pairs(job.splits.validation, job.codec),
        processing_class=AutoTokenizer.from_pretrained(job.base.folder),
    )


def thumb_trainer(job: Job, model: Any, arguments: dict[str, Any]) -> Trainer:
    """Return TRL's KTO trainer. Good and bad answers weigh the same in all, however many there are of each (equation
    8 of the paper)."""
    good = sum(row.good for row in job.splits.train)
    share = good / (len(job.splits.train) - good)
    batch = arguments["per_device_train_batch_size"]
    return _Thumbs(
        model=model,
        args=KTOConfig(
            **arguments,
            beta=job.recipe.preference.beta,
            max_length=None,
            desirable_weight=max(1.0, 1 / share),
            undesirable_weight=max(1.0, share),
        ),
        train_dataset=_with_strangers(thumbs(job.splits.train, job.codec), batch),
        eval_dataset=_with_strangers(thumbs(job.splits.validation, job.codec), batch),
        processing_class=AutoTokenizer.from_pretrained(job.base.folder),
    )


def pairs(rows: list[Row], codec: Codec) -> Dataset:
    """Return rows as TRL's collators want them: ``prompt_ids``, ``chosen_ids``, ``rejected_ids``. The ids are the
    task's own, so that what is learnt is what will be asked; TRL would make others of the text."""
    return Dataset.from_list(
        [
            {
                "prompt_ids": codec.prompt(row.text, row.before),
                "chosen_ids": codec.target(row.answer),
                "rejected_ids": codec.target(row.rejected),
            }
            for row in rows
        ]
    )


def thumbs(rows: list[Row], codec: Codec) -> Dataset:
    """Return rows as ``prompt_ids``, ``completion_ids`` and ``label``, which is whether the answer was good."""
    return Dataset.from_list(
        [
            {
                "prompt_ids": codec.prompt(row.text, row.before),
                "completion_ids": codec.target(row.answer),
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


class _Pairs(BesideReference, DPOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset  # it has ids already


class _Thumbs(BesideReference, KTOTrainer):
    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset
