"""The objective of most recipes: give the answers of the rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback

from trainer.batches import IGNORED, LengthGrouped, parts_of
from trainer.recipe import Recipe
from trainer.soft_prompts import spelled

# What it weighs that an answer is one of the labels at all; which of them it is weighs 1. With 1 here too it would be
# the loss over the whole vocabulary, most of whose first gradients are about leaving the other 49,000 tokens.
OTHERS = 0.1
# Tokens of one forward and backward pass on a CPU: 1.2 MB each are kept of them for a base of 135M. A machine without
# the memory for more kills the process, where a GPU raises an error that can be answered.
TOKENS_AT_A_TIME = 2048


class AnswerTrainer(Trainer):
    """transformers' Trainer with the loss on the answer only, and of labels on which of them it is.

    The vocabulary projection is a fifth of a small model's work: it is done for the answer's positions,
    not for the prompt's.
    """

    def __init__(self, recipe: Recipe, **options: Any) -> None:
        super().__init__(**options)
        self._recipe = recipe
        if recipe.method == "adalora":
            self.add_callback(RankAllocation())

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
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return LengthGrouped(data.lengths, batch, self.args.seed)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # The Trainer looks for the best checkpoint's folder before FSDP has made it, and then takes an older one.
        if self.is_fsdp_enabled:
            Path(self.args.output_dir, f"checkpoint-{self.state.global_step}").mkdir(exist_ok=True)
        super()._save_checkpoint(model, trial)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # the Trainer's estimate counts token ids, of which there may be none

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        if num_items_in_batch is None or self.args.world_size > 1 or not self.args.use_cpu:
            return super().training_step(model, inputs, num_items_in_batch)
        step = super().training_step
        losses = [step(model, part, num_items_in_batch) for part in parts_of(inputs, TOKENS_AT_A_TIME)]
        return torch.stack(losses).sum()

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        total, count, outputs = answer_loss(model, inputs)
        if num_items_in_batch is None:
            loss = total / count
        else:  # of all processes, whose gradients are then averaged
            loss = total / num_items_in_batch * self.accelerator.num_processes
        return (loss, outputs) if return_outputs else loss


def answer_loss(model: Any, inputs: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return the summed loss of a batch's answers, how many tokens these have, and what the model gave back."""
    inputs = dict(inputs)
    labels, choices = inputs.pop("labels"), inputs.pop("choices", None)
    answers = int((labels != IGNORED).any(dim=0).sum())
    called, inputs = spelled(model, inputs)
    outputs = called(**inputs, logits_to_keep=answers + 1)
    logits = outputs.logits[:, :-1].float()
    targets = labels[:, -answers:]
    total = cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    if choices is not None:
        total = total - (1 - OTHERS) * _leaving_the_choices(logits[:, -1], choices).sum()
    return total, (targets != IGNORED).sum(), outputs


def _leaving_the_choices(logits: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """Return minus the log-probability of all of a row's choices together, for rows that have any.

    ``logits`` are those of the answer slot, (rows, vocabulary); ``choices`` is (rows, most), filled up with IGNORED. A
    label's loss is this and the loss of the label among the labels, which is what is scored when it is served.
    """
    closed = choices[:, 0] != IGNORED
    logits, choices = logits[closed], choices[closed]
    scores = logits.gather(1, choices.clamp(min=0)).masked_fill(choices == IGNORED, -torch.inf)
    return logits.logsumexp(1) - scores.logsumexp(1)


class RankAllocation(TrainerCallback):
    """AdaLoRA moves its ranks to where they matter, between the gradients and their deletion."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.base_model.update_and_allocate(state.global_step)
