"""What a training says while it runs, and when it stops for good."""

from __future__ import annotations

import math
import sys
import time
from typing import Any

from tqdm import tqdm
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from adapters.errors import HotswapError


class Progress(TrainerCallback):
    """A bar where there is a terminal, and a line per report. On stderr: transformers' own go to stdout, which
    is for results."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        quiet = None if state.is_world_process_zero else True
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step", disable=quiet)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        losses = {name: logs[key] for key, name in (("loss", "loss"), ("eval_loss", "validation loss")) if key in logs}
        for name, loss in losses.items():
            tqdm.write(f"step {state.global_step} of {state.max_steps}: {name} {loss:.4f}", file=sys.stderr)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._bar.close()


def spoken(seconds: float) -> str:
    """Return a length of time as it is said: 40 s, 12 min, 1 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Clock(TrainerCallback, ExportableState):
    """Counts the seconds of a run, over all the processes that it took where it was killed."""

    def __init__(self) -> None:
        self.before, self._started = 0.0, time.monotonic()

    def seconds(self) -> float:
        return self.before + time.monotonic() - self._started

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"args": {}, "attributes": {"before": self.seconds()}}


def seconds_of(trainer: Trainer) -> float:
    """Return how long a run has taken. (Where it went on from a checkpoint, the trainer has put another clock in the
    place of the one it was given.)"""
    return max(each.seconds() for each in trainer.callback_handler.callbacks if isinstance(each, Clock))


class Diverged(HotswapError):
    """The weights are of no use, and neither is going on."""

    def __init__(self) -> None:
        super().__init__("the training diverged into infinite weights; set a lower training.learning_rate.")


class StopAtNaN(TrainerCallback):
    """What follows a loss that is no number costs time and cannot be mended."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not all(math.isfinite(logs.get(key, 0.0)) for key in ("loss", "eval_loss", "grad_norm")):
            control.should_training_stop = True
