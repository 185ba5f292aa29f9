"""What a training says while it runs, and when it stops for good."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Self

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState

from adapters.errors import HotswapError
from adapters.progress import Bar, bar, say, tell


class Progress(TrainerCallback):
    """One live view of a training where there is a terminal, else a line per report and now and then; events for
    machines. ``tokens`` is how many a step learns from, on average."""

    def __init__(self, tokens: float) -> None:
        self._tokens, self._best = tokens, math.inf
        self._bar: Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began, self._before = time.monotonic(), state.global_step
        self._bar = bar(state.max_steps, "training", "steps", state.global_step, events=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        assert self._bar is not None
        self._bar.figures["tokens/s"] = f"{self._speed(state):.0f}"
        self._bar.update()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        for key, name, event in (("loss", "loss", "step"), ("eval_loss", "validation loss", "validation")):
            if key in logs and self._bar is not None:
                self._report(args, state, name, event, logs[key])

    def _report(self, args: Any, state: Any, name: str, event: str, loss: float) -> None:
        assert self._bar is not None
        about = {"step": state.global_step, "of": state.max_steps, "loss": loss if math.isfinite(loss) else None}
        if event == "validation":
            before = None if args.greater_is_better else state.best_metric  # a reward is no loss
            self._best = min(self._best, loss, before or loss)
            self._bar.figures |= {"validation": f"{loss:.4f}", "best": f"{self._best:.4f}"}
            about["best"] = self._best if math.isfinite(self._best) else None
        else:
            self._bar.figures["loss"] = f"{loss:.4f}"
            left = self._bar.seconds_left()
            about |= {"tokens_per_second": round(self._speed(state), 1), "seconds_left": left and round(left, 1)}
        if not tell(event, **about) and not sys.stderr.isatty():  # where there is a terminal, the bar says it
            say(f"step {state.global_step} of {state.max_steps}: {name} {loss:.4f}")

    def _speed(self, state: Any) -> float:
        """Return tokens a second, validation included."""
        steps: int = state.global_step - self._before
        return self._tokens * steps / max(1e-9, time.monotonic() - self._began)


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


def is_lost(logged: Mapping[str, Any]) -> bool:
    """Return whether what was logged at a step tells of weights that are of no use."""
    return not all(math.isfinite(logged.get(key, 0.0)) for key in ("loss", "eval_loss", "grad_norm"))


class StopAtNaN(TrainerCallback):
    """What follows a loss that is no number costs time and cannot be mended."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if is_lost(logs):
            control.should_training_stop = True
