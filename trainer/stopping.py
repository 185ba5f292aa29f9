"""A training that is asked to stop leaves a checkpoint first, and goes on from it later."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any, Self

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback

from adapters.errors import HotswapError
from adapters.progress import say
from trainer.runs import STOP


class Stopped(HotswapError):
    """Somebody asked for it."""


class Stopping(TrainerCallback):
    """Ends a training after the step in which the run's folder has a file ``stop``, or Ctrl-C or SIGTERM came. A second
    signal ends it at once."""

    def __init__(self, folder: Path, *, resumable: bool = True) -> None:
        """``resumable``: whether what is in the folder will be gone on from."""
        self._resumable = resumable
        self._file = folder / STOP
        self._signal: int | None = None
        self._before: dict[int, Any] = {}
        self._said: str | None = None

    def __enter__(self) -> Self:
        # Of several processes each would stop at another step, and wait for the others forever.
        if PartialState().num_processes == 1 and threading.current_thread() is threading.main_thread():
            heard = [each for each in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(each) != signal.SIG_IGN]
            self._before = {each: signal.signal(each, self._on_signal) for each in heard}
        return self

    def __exit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before = {}

    def _on_signal(self, number: int, _: Any) -> None:
        self._signal = number
        self._give_back()
        os.write(2, b"stopping after this step; once more ends it at once\n")  # print may be at work below

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._asked() or state.global_step >= state.max_steps:
            return
        kept = self._resumable and args.save_strategy != "no"
        control.should_save |= kept
        control.should_training_stop = True
        after = f"stopped after step {state.global_step} of {state.max_steps}"
        goes_on = f"with a checkpoint: python -m trainer runs resume {self._file.parent} goes on."
        lost = "without a checkpoint, which this method cannot go on from." if self._resumable else "of this trial."
        self._said = f"{after}, {goes_on if kept else lost}"

    def _asked(self) -> bool:
        asked = [self._signal is not None or self._file.exists()]
        if PartialState().num_processes > 1:
            broadcast_object_list(asked)  # all stop at the step at which the first one saw it
        return asked[0]

    def end(self) -> None:
        """Raise where the training was stopped: :class:`Stopped`, or what the signal would have raised."""
        if self._said is None:
            return
        if self._signal is None:
            raise Stopped(self._said)
        say(self._said)
        raise KeyboardInterrupt if self._signal == signal.SIGINT else SystemExit(128 + self._signal)
