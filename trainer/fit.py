"""One training, whatever it trains: its arguments, its processes, and what is done where memory or disk run out."""

from __future__ import annotations

import errno
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from safetensors import SafetensorError
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import TrainOutput, get_last_checkpoint

from adapters.architecture import Architecture
from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.modules import numbers_of
from adapters.progress import say, spoken
from trainer import methods
from trainer.batches import Encoded
from trainer.frozen_layers import Rows, lower_layers_once
from trainer.job import Job
from trainer.long_documents import in_parts
from trainer.memory import fitting
from trainer.objectives import make_trainer
from trainer.precision import in_bfloat16, settle_attention
from trainer.progress import Progress, StopAtNaN
from trainer.recipe import PROMPTS, Recipe
from trainer.reward import reward_model
from trainer.speed import tokens_per_second
from trainer.stopping import Stopping
from trainer.supervised import TOKENS_AT_A_TIME

BACKWARD = 2  # a step takes at least so many times as long as scoring the same rows


def processes() -> PartialState:
    """Return which of how many processes this one is."""
    return PartialState(cpu=not torch.cuda.is_available())


def check_processes(recipe: Recipe) -> None:
    count = processes().num_processes
    if count == 1:
        return
    if recipe.objective != "supervised" or recipe.method in (*PROMPTS, "adalora", "qlora"):
        raise HotswapError(
            f"objective {recipe.objective} with method {recipe.method} trains in one process; start it without "
            "torchrun or accelerate."
        )
    if recipe.training.batch_size % count:
        raise HotswapError(f"training.batch_size is shared by {count} processes: make it a multiple of {count}.")


def whole(trainer: Trainer, recipe: Recipe, base: Base, start: Path | None) -> Any:
    """Return the trained model; where FSDP has divided it among processes, one put together in the first."""
    if not trainer.is_fsdp_enabled:
        return trainer.model
    weights = get_model_state_dict(trainer.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not processes().is_main_process:
        return None
    model = methods.adapt(methods.load_base(base, recipe), recipe, base, trainer.state.max_steps, start)
    model.load_state_dict(weights, strict=False)  # tied weights are there once
    return model


def fit(
    job: Job,
    learnt: Encoded,
    callbacks: Sequence[TrainerCallback],
    start: Path | None,
    checkpoint: str | None,
    *,
    resumable: bool = True,
) -> tuple[Trainer, TrainOutput]:
    """Train to the end, from ``checkpoint`` on if there is one; return the trainer and how it went.

    Where memory runs out, go on from the last checkpoint with fewer rows at a time and as many to
    an optimizer step, which gives the same adapter but for rounding."""
    recipe, base = job.recipe, job.base
    answers = len(learnt) * (recipe.reinforce.generations if recipe.objective == "grpo" else 1)
    a_step = recipe.training.batch_size * recipe.training.accumulate
    passes = recipe.training.passes(answers, len(job.task.answers))
    steps = max(1, round(math.ceil(answers / a_step) * passes))
    if checkpoint is not None:  # what fits into the minutes was settled when it began
        steps = json.loads((Path(checkpoint) / TRAINER_STATE_NAME).read_bytes())["max_steps"]
    micro = recipe.training.batch_size // processes().num_processes
    if recipe.objective == "supervised" and processes().num_processes > 1 and not torch.cuda.is_available():
        micro = _at_a_time(micro, max(learnt.lengths))
    again = recipe.training.gradient_checkpointing or False
    if recipe.objective == "supervised" and torch.cuda.is_available():
        micro, again = _by_memory(recipe, base, micro, max(learnt.lengths))
    asked = Stopping(recipe.run_folder, resumable=resumable)
    while True:
        set_seed(recipe.seed)
        if recipe.objective == "reward":
            model = reward_model(base, recipe)
        else:
            model = methods.adapt(methods.load_base(base, recipe), recipe, base, steps, start)
        settle_attention(model, bfloat16=in_bfloat16(recipe.training.precision))
        stopping = () if recipe.method == "adalora" else (EarlyStoppingCallback(recipe.training.patience),)
        try:
            return _attempt(job, model, learnt, (*stopping, *callbacks), steps, micro, again, checkpoint, asked)
        except (RuntimeError, OSError, SafetensorError) as error:
            if _disk_is_full(error):
                raise HotswapError(
                    f"no room left to write {recipe.run_folder}; free some and run the same command again: it goes on "
                    "from the last checkpoint."
                ) from error
            smaller = next((n for n in range(micro // 2, 0, -1) if micro % n == 0), None)
            if not should_reduce_batch_size(error):
                raise
            if smaller is None or recipe.objective in ("kto", "grpo"):  # these compare the answers of a batch
                raise HotswapError(
                    f"{micro} rows at a time do not fit into memory; lower training.batch_size (and raise accumulate), "
                    "or set training.gradient_checkpointing or a smaller task.max_input_tokens."
                ) from error
            say(f"out of memory with {micro} rows at a time; going on with {smaller}")
        micro = smaller
        model = None
        clear_device_cache(garbage_collection=True)
        checkpoint = get_last_checkpoint(str(recipe.run_folder))


def _attempt(
    job: Job,
    model: Any,
    learnt: Encoded,
    callbacks: Sequence[TrainerCallback],
    steps: int,
    micro: int,
    again: bool,
    checkpoint: str | None,
    asked: Stopping,
) -> tuple[Trainer, TrainOutput]:
    training = job.recipe.training
    measured = checkpoint is None and processes().num_processes == 1
    with _rows(model, job, learnt, steps, micro, measured=measured) as (entering, held_out, spent):
        if held_out is not None and measured:
            steps, told = _within_budget(model, job, entering, held_out, steps, micro, spent)
            say(told)
        trainer = make_trainer(job, model, _arguments(job.recipe, steps, micro, again), entering, held_out)
        a_step = training.batch_size * training.accumulate * sum(learnt.lengths) / len(learnt)
        with Progress(a_step) as progress, asked:
            for callback in (progress, StopAtNaN(), *callbacks, asked):
                trainer.add_callback(callback)
            trainer.remove_callback(PrinterCallback)
            result = trainer.train(resume_from_checkpoint=checkpoint)
            asked.end()
            return trainer, result


@contextmanager
def _rows(
    model: Any, job: Job, learnt: Encoded, steps: int, micro: int, *, measured: bool
) -> Iterator[tuple[Rows, Rows | None, float]]:
    """Give what is learnt and what is held out, as the supervised objective takes them, and the seconds that it took to
    compute the lower layers: not done where the steps are too few for each row to be met."""
    recipe = job.recipe
    if recipe.objective != "supervised":
        yield learnt, None, 0.0
        return
    held_out = Encoded([(row, job.task) for row in in_parts(job.splits.validation, job.codec)], job.base)
    if measured and recipe.training.minutes is not None:  # else the steps are settled
        steps, _ = _within_budget(model, job, learnt, held_out, steps, micro, 0.0)
    if steps * recipe.training.batch_size * recipe.training.accumulate < len(learnt):
        yield learnt, held_out, 0.0
        return
    began, precise = time.monotonic(), in_bfloat16(recipe.training.precision)
    with lower_layers_once(model, (learnt, held_out), recipe.run_folder, micro, bfloat16=precise) as (
        entering,
        checked,
    ):
        yield entering, checked, time.monotonic() - began


def _at_a_time(rows: int, longest: int) -> int:
    """Return the largest part of a batch of ``rows`` that stays below TOKENS_AT_A_TIME where all are the longest."""
    parts = (part for part in range(rows, 0, -1) if rows % part == 0)
    return next((part for part in parts if part * longest <= TOKENS_AT_A_TIME), 1)


def _within_budget(
    model: Any, job: Job, learnt: Rows, held_out: Rows, steps: int, micro: int, spent: float
) -> tuple[int, str]:
    """Return how many of the steps fit into the recipe's minutes, of which so many seconds are ``spent``, and how long
    they will take, in words."""
    training = job.recipe.training
    speed = tokens_per_second(model, learnt, micro, job.base, bfloat16=in_bfloat16(training.precision))
    a_step = training.batch_size * training.accumulate
    a_step_seconds = a_step * sum(learnt.lengths) / len(learnt) / speed
    validating = training.evaluations * sum(held_out.lengths) / (BACKWARD * speed)
    if training.minutes is not None:
        steps = max(1, min(steps, int((60 * training.minutes - spent - validating) / a_step_seconds)))
    passes, seconds = steps / math.ceil(len(learnt) / a_step), steps * a_step_seconds + validating
    return steps, (
        f"training: at most {steps} steps, {passes:.2g} passes of {len(learnt)} rows; about {spoken(seconds)} at "
        f"{speed:.0f} tokens/s"
    )


def _disk_is_full(error: Exception) -> bool:
    """Each library that writes a checkpoint has its own way to say so."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return any(said in str(error) for said in ("os error 28", "os error 122", "os error 27", "inline_container"))


def _by_memory(recipe: Recipe, base: Base, rows: int, longest: int) -> tuple[int, bool]:
    """Return how many of the ``rows`` of a batch a GPU takes at a time, and whether it computes activations again."""
    memory = int(torch.cuda.get_device_properties(0).total_memory)
    fit = fitting(
        Architecture.of(base.folder),
        numbers_of(base.folder),
        memory,
        rows=rows,
        longest=longest,
        bfloat16=in_bfloat16(recipe.training.precision),
        four_bit=recipe.method == "qlora",
        # What a prefix puts into every layer cannot be computed again.
        checkpointing=False if recipe.method == "prefix_tuning" else recipe.training.gradient_checkpointing,
    )
    if fit.rows < rows or fit.checkpointing:
        kept = "activations computed again" if fit.checkpointing else "activations kept"
        say(f"GPU of {memory / 2**30:.0f} GiB: {fit.rows} of {rows} rows at a time, {kept}")
    return fit.rows, fit.checkpointing


def _arguments(recipe: Recipe, steps: int, micro: int, again: bool) -> dict[str, Any]:
    """Return what transformers' Trainer is told; ``micro`` rows are in memory at a time, and their activations are kept
    or computed ``again``."""
    training, workers = recipe.training, processes().num_processes
    # AdaLoRA's ranks are settled at the end of the run, and PEFT's checkpoints lack what they are chosen by: such a run
    # neither stops early nor goes on after a kill.
    whole = recipe.method == "adalora"
    every = max(1, steps // training.evaluations)
    return {
        "output_dir": str(recipe.run_folder),
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "learning_rate": training.learning_rate,
        "lr_scheduler_type": training.schedule,
        "warmup_steps": round(steps * training.warmup),
        "max_steps": steps,
        "per_device_train_batch_size": micro,
        "per_device_eval_batch_size": micro,
        "gradient_accumulation_steps": training.accumulate * (training.batch_size // (micro * workers)),
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "eval_strategy": "steps",
        "eval_steps": every,
        "save_strategy": "no" if whole else "steps",
        "save_steps": every,
        "save_total_limit": 2,
        "logging_steps": max(1, every // 5),
        "load_best_model_at_end": not whole,
        "restore_callback_states_from_checkpoint": not whole,  # early stopping goes on counting after a kill
        "metric_for_best_model": "eval_reward" if recipe.objective == "grpo" else "eval_loss",
        "greater_is_better": recipe.objective == "grpo",
        "logging_nan_inf_filter": False,  # it would show the last finite loss instead
        "bf16": in_bfloat16(training.precision),
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
        "remove_unused_columns": False,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "gradient_checkpointing": again,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if again else None,
        "report_to": list(training.report_to),
        "disable_tqdm": True,  # Progress draws the bar
    }
