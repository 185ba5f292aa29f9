"""Reward models: a score for an answer, learnt from which of two was preferred (Bradley and Terry 1952)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer
from transformers.utils.logging import disable_progress_bar

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.tasks.base import BaseTask
from trainer import methods
from trainer.codec import Codec
from trainer.job import Job
from trainer.recipe import Recipe
from trainer.rows import Row

BATCH = 16
Answered = tuple[str, str]  # a text and an answer to it


def reward_model(base: Base, recipe: Recipe) -> Any:
    """Return the base with a head for one number in the place of its vocabulary, and the recipe's LoRA."""
    model = _headed(base)
    settings = methods.low_rank(model, recipe, methods.layers_of(model, recipe)) | {"task_type": "SEQ_CLS"}
    return get_peft_model(model, LoraConfig(r=recipe.lora.rank, use_rslora=recipe.lora.rslora, **settings))


def _headed(base: Base) -> Any:
    disable_progress_bar()
    model = AutoModelForSequenceClassification.from_pretrained(base.folder, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = base.end_id
    model.config.use_cache = False
    return model


def reward_trainer(job: Job, model: Any, arguments: dict[str, Any]) -> Trainer:
    """Return TRL's trainer for reward models."""
    from trl import RewardConfig, RewardTrainer

    from trainer.preference import pairs

    def whole(row: dict[str, list[int]]) -> dict[str, list[int]]:
        return {key: row["prompt_ids"] + row[key] for key in ("chosen_ids", "rejected_ids")}

    return RewardTrainer(
        model=model,
        args=RewardConfig(**arguments, max_length=None),
        train_dataset=pairs(job.splits.train, job.codec).map(whole),
        eval_dataset=pairs(job.splits.validation, job.codec).map(whole),
        processing_class=AutoTokenizer.from_pretrained(job.base.folder),
    )


class Judge:
    """A trained reward model, ready to score."""

    def __init__(self, folder: Path, base: Base) -> None:
        """Read what a run with objective ``reward`` made; raises :class:`HotswapError` where it is no such run."""
        try:
            kind = PeftConfig.from_pretrained(folder / "adapter").task_type
        except (OSError, ValueError) as error:
            raise HotswapError(f"{folder} holds no reward model; train one there first.") from error
        if kind != "SEQ_CLS":
            raise HotswapError(f"{folder} holds an adapter, not a reward model; train one with objective reward.")
        try:
            self._model = PeftModel.from_pretrained(_headed(base), folder / "adapter").eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise HotswapError(f"{folder} holds no reward model for {base.name}; train one there first.") from error
        if torch.cuda.is_available():
            self._model.cuda()
        self._base = base

    @torch.inference_mode()
    def scores(self, answered: Sequence[Answered], task: BaseTask) -> list[float]:
        """Return how good each answer is to its text; only differences between answers to one text mean anything."""
        codec, end = Codec(task, self._base), self._base.end_id
        rows = [codec.prompt(text) + codec.target(answer) for text, answer in answered]
        found: list[float] = []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            width = max(map(len, part))
            ids = torch.tensor([row + [end] * (width - len(row)) for row in part], device=self._model.device)
            mask = torch.tensor([[1] * len(r) + [0] * (width - len(r)) for r in part], device=self._model.device)
            found += self._model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
        return found


def judged(folder: Path, rows: list[Row], codec: Codec) -> dict[str, float]:
    """Return the share of held-out pairs whose chosen answer the model scores higher, and what two rules that know
    nothing would reach: prefer the longer answer, and prefer the shorter one."""
    judge, task = Judge(folder, codec.base), codec.task
    chosen = judge.scores([(row.text, row.answer) for row in rows], task)
    rejected = judge.scores([(row.text, row.rejected) for row in rows], task)
    longer = sum(len(row.answer) > len(row.rejected) for row in rows) / len(rows)
    shorter = sum(len(row.answer) < len(row.rejected) for row in rows) / len(rows)
    right = sum(better > worse for better, worse in zip(chosen, rejected, strict=True)) / len(rows)
    return {"pairs": len(rows), "accuracy": right, "longer_wins": longer, "shorter_wins": shorter}
