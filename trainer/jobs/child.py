"""The process that does a job: started, listened to, told to publish, stopped."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trainer.jobs.chain import GO

COMMAND = (sys.executable, "-m", "trainer", "jobs", "run")
STOP_SECONDS = 30.0  # until a training that is asked to stop has done its step and left a checkpoint
Event = dict[str, Any]


class Child:
    """A process that does the job in ``folder``; it ends when this process does, however that ends."""

    def __init__(self, folder: Path, command: Sequence[str] = COMMAND) -> None:
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [*command, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def next(self, seconds: float) -> Event | None:
        """Return what it tells next; an empty event where it says nothing for so long, none when it has ended."""
        try:
            return self._events.get(timeout=seconds)
        except queue.Empty:
            return {}

    def publish(self) -> None:
        """Let it publish what it has made."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{GO}\n")
            self._process.stdin.flush()

    def stop(self, *, keep: bool = True) -> int:
        """End it and return its exit status; to ``keep`` what it has learnt it is given time for a checkpoint."""
        if keep:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(STOP_SECONDS)
        self._process.kill()
        return self._process.wait()

    def wait(self) -> int:
        """Return the exit status of a process that has told all it had to tell."""
        try:
            return self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            return self.stop(keep=False)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if isinstance(event, dict) and "event" in event:
                self._events.put(event)
            else:
                sys.stderr.write(line)  # a traceback is for whoever runs the worker
        self._events.put(None)
