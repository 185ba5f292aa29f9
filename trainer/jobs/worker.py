"""The worker: takes one job after the other from the queue, and tells what becomes of it."""

from __future__ import annotations

import math
import os
import shutil
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from ulid import ULID

from adapters.base_model import Base
from adapters.errors import DatabaseAway
from adapters.jobs.place import Place
from adapters.jobs.queue import LEASE_SECONDS, Queue
from adapters.progress import say
from trainer.jobs.child import COMMAND, Child, Event
from trainer.jobs.order import Order

NICENESS = 10
# How often the queue is asked for a job, and whether the one that is done is still wanted.
POLL_SECONDS, BEAT_SECONDS = 2.0, LEASE_SECONDS / 12
AWAY_SECONDS = 10.0


class Worker:
    """Does jobs for ``base`` one at a time, each in a process of its own, until :attr:`stopping` is set."""

    def __init__(self, place: Place, store: str, base: Base, command: Sequence[str] = COMMAND) -> None:
        self._place, self._store, self._base, self._command = place, store, base, command
        self._database = place.open()
        self._queue = Queue(self._database)
        self._name = f"{socket.gethostname()}:{os.getpid()}:{ULID()}"
        self.stopping = threading.Event()
        self._told: dict[str, int] = {}

    def run(self, *, once: bool = False) -> None:
        """Work until asked to stop, or, if only ``once``, until nothing is left to do. A database that is away is
        waited for, but for that."""
        os.nice(max(0, NICENESS - os.nice(0)))  # what serves comes first
        while not self.stopping.is_set():
            try:
                self._database.prepare()
                while not self.stopping.is_set():
                    if not self.work() and (once or self.stopping.wait(POLL_SECONDS)):
                        return
            except DatabaseAway as error:
                if once:
                    raise
                say(f"{error}; tried again in {AWAY_SECONDS:.0f} s")
                self.stopping.wait(AWAY_SECONDS)

    def work(self) -> bool:
        """Do the next job, if there is one; return whether there was. Raises :class:`DatabaseAway`."""
        self._tidy()
        job = self._queue.claim(self._name, self._base.digest)
        if job is None:
            self._tell_waiting()
            return False
        say(f"{job['id']}: {job['status']}, attempt {job['attempts']}")
        doing = Doing(self._queue, job["id"], self._name)
        try:
            order = Order.of(job, self._place, self._store)
            order.write(self._place.runs / order.id)
        except OSError as error:
            doing.later(f"{error.strerror or error}: the worker's folder cannot be written")
            return True
        doing.follow(Child(self._place.runs / order.id, self._command), self.stopping)
        return True

    def _tidy(self) -> None:
        """Remove the folders of jobs that nobody will go on with: they hold rows."""
        folders = [path for path in self._place.runs.glob("ftjob-*") if path.is_dir()]
        for id in self._queue.finished([path.name for path in folders]) if folders else ():
            shutil.rmtree(self._place.runs / id, ignore_errors=True)

    def _tell_waiting(self) -> None:
        """Say, once, that jobs wait for a worker with another base."""
        others = {base: count for base, count in self._queue.waiting().items() if base != self._base.digest}
        if others != self._told and others:
            say(f"{sum(others.values())} jobs wait for a worker with another base than {self._base.name}")
        self._told = others


class Doing:
    """One job while it is done: what its process tells goes to the queue, what the queue says to the process."""

    def __init__(self, queue: Queue, id: str, worker: str) -> None:
        self._queue, self._id, self._worker = queue, id, worker
        self._beat_at = time.monotonic()
        self._ended = False

    def follow(self, child: Child, stopping: threading.Event) -> None:
        """Return when the process has ended, by itself or because the job is not to be done any more."""
        try:
            while not stopping.is_set() and (event := child.next(BEAT_SECONDS)) is not None:
                if not self._take(event, child):
                    self._stop(child)
                    return
            if stopping.is_set():
                child.stop()
                self._queue.let_go(self._id, self._worker, "The worker stops; another one goes on", count=False)
            elif (status := child.wait()) and not self._ended:
                self.later(f"The process that did the job ended with status {status}")
        except DatabaseAway:  # the lease runs out: who goes on will find a checkpoint
            child.stop()
            raise
        if self._ended:
            self._queue.let_go(self._id, self._worker)

    def later(self, why: str) -> None:
        """Give the job back, to be tried again."""
        say(f"{self._id}: {why}")
        self._queue.let_go(self._id, self._worker, f"{why}; it is tried again", later=True)
        self._ended = False

    def _stop(self, child: Child) -> None:
        """The job was paused, cancelled, or is another worker's by now."""
        status = self._queue.get(self._id)["status"]
        child.stop(keep=status in ("paused", "queued"))
        say(f"{self._id}: {status}")
        self._queue.let_go(self._id, self._worker, count=False)

    def _take(self, event: Event, child: Child) -> bool:
        """Pass on what the process tells; return whether the job is still to be done."""
        queue, id, worker = self._queue, self._id, self._worker
        match event.get("event"):
            case "begin":
                return queue.begin(id, worker)
            case "message":
                return queue.report(id, worker, str(event.get("text")))
            case "step" | "validation":
                return queue.report(id, worker, **_metrics(event))
            case "scores":
                return queue.report(id, worker, f"Scores on {event['test']}", data=event["values"])
            case "ready":
                allowed = queue.publishing(id, worker)
                if allowed:
                    child.publish()
                return allowed
            case "failed":
                self._ended = True
                return queue.fail(id, worker, event["code"], event["message"], event.get("param"))
            case "later":
                child.wait()
                self.later(event["message"])
                self._ended = True
                return True
            case "done":
                self._ended = True
                return self._succeed(event)
        if time.monotonic() - self._beat_at < BEAT_SECONDS:
            return True
        self._beat_at = time.monotonic()
        return queue.keep(id, worker)

    def _succeed(self, event: Event) -> bool:
        model = event["model"]
        result = {key: event[key] for key in ("steps", "train_loss", "valid_loss")}
        self._queue.report(self._id, self._worker, f"{model}: {event['released']}")
        say(f"{self._id}: {model}, {event['released']}")
        tokens = event["tokens"]
        return self._queue.succeed(self._id, self._worker, fine_tuned_model=model, result=result, trained_tokens=tokens)


def _metrics(event: Event) -> dict[str, Any]:
    """Return a step or a validation as OpenAI's events have it."""
    validation = event["event"] == "validation"
    loss = event["loss"]
    name, said = ("valid_loss", "validation loss") if validation else ("train_loss", "training loss")
    shown = f"{loss:.4f}" if isinstance(loss, float) and math.isfinite(loss) else "none"
    return {
        "message": f"Step {event['step']}/{event['of']}: {said}={shown}",
        "data": {"step": event["step"], "total_steps": event["of"], name: loss},
        "seconds_left": event.get("seconds_left"),
    }
