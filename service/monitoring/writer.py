"""Predictions and judgements on their way to the database: in a thread of their own, which no request waits for."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from adapters.errors import StoreUnavailable
from service.metrics import Metrics
from service.monitoring import records
from service.monitoring.database import Database, DatabaseAway
from service.monitoring.records import Judgement, Verdict
from service.monitoring.texts import Form, kept
from service.offload import Offload

logger = logging.getLogger("hotswap")
# What waits to be written at most: fewer predictions than are remembered, so that what waits is remembered, too.
MOST, MOST_CHARS = 10_000, 20_000_000
# One transaction is for so many, or for what came in so long.
BATCH, FLUSH_SECONDS = 500, 0.1
# How long feedback waits to hear whether it is the first about its answer.
VERDICT_SECONDS = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
# How often is looked for what is too old, and how far a clock may be off since the last look.
SWEEP_SECONDS, DRIFT_SECONDS, HELD_SECONDS = 60.0, 300.0, 3600.0
CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class _Said:
    """A judgement that somebody may wait for."""

    judgement: Judgement
    loop: asyncio.AbstractEventLoop
    verdict: asyncio.Future[Verdict | None]

    def answer(self, verdict: Verdict | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self.loop.call_soon_threadsafe(self._set, verdict)

    def _set(self, verdict: Verdict | None) -> None:
        if not self.verdict.done():
            self.verdict.set_result(verdict)


class Writer:
    """Writes in batches what it is given, in order. What a database that is away or slow leaves no room for is shed and
    counted; it is tried again until it is back."""

    def __init__(self, database: Database, metrics: Metrics, form: Form, days: float | None) -> None:
        self._database, self._metrics, self._form, self._days = database, metrics, form, days
        self._queue: deque[dict[str, Any] | _Said] = deque()
        self._batch: list[dict[str, Any] | _Said] = []
        self._chars, self._urgent, self._stopping = 0, False, False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="feedback", daemon=True)
        self._prepared, self._answers, self._up = False, True, False
        self._pause, self._told = FIRST_PAUSE, ""
        self._sweep_at, self._clock = 0.0, _Clock()
        metrics.feedback_queue.set_function(lambda: len(self._queue) + len(self._batch))

    def start(self) -> None:
        self._thread.start()

    async def close(self) -> None:
        """Write what waits, for a moment, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            with suppress(StoreUnavailable):
                await Offload(CLOSE_SECONDS, 1)("feedback", self._thread.join)
        if left := len(self._queue) + len(self._batch):
            logger.warning("feedback: %d predictions and judgements were not written", left)

    def keep(self, row: dict[str, Any]) -> bool:
        """Take a prediction to be written, its texts as they are; return whether there was room."""
        chars = _chars(row)
        with self._changed:
            if self._stopping or len(self._queue) >= MOST or self._chars + chars > MOST_CHARS:
                self._metrics.feedback_writes.labels("shed").inc()
                return False
            self._chars += chars
            self._put(row)
        return True

    async def judge(self, judgement: Judgement) -> Verdict | None:
        """Have a judgement written; return what the database makes of it, or none where it does not say in time."""
        loop = asyncio.get_running_loop()
        said = _Said(judgement, loop, loop.create_future())
        with self._changed:
            if self._stopping or len(self._queue) >= 2 * MOST:
                self._metrics.feedback_writes.labels("shed").inc()
                return None
            self._urgent = True
            self._put(said)
        if not self._answers:
            return None
        done, _ = await asyncio.wait((said.verdict,), timeout=VERDICT_SECONDS)
        if not done:
            self._answers = False  # until something is written again: one in a row waits in vain, not each
        return said.verdict.result() if done else None

    def _put(self, item: dict[str, Any] | _Said) -> None:
        self._queue.append(item)
        # Waking the thread for every prediction would have it compete with requests for the interpreter.
        if self._urgent or len(self._queue) in (1, BATCH):
            self._changed.notify()

    def _run(self) -> None:
        while not (self._stopping and (not self._prepared or not (self._queue or self._batch))):
            try:
                if not self._prepared:
                    self._prepare()
                self._sweep()
                if not self._batch:  # else it is not known yet whether it takes what it refused
                    self._works()
                self._next()
                self._write()
            except DatabaseAway as error:
                self._away(error)
            except Exception:  # a fault of ours: what it was about goes, the next is written
                logger.exception("feedback could not be written")
                self._metrics.feedback_writes.labels("failed").inc(len(self._batch))
                self._batch = []
                self._rest()
        self._database.close()

    def _prepare(self) -> None:
        self._database.prepare()
        self._prepared, self._sweep_at = True, 0.0

    def _works(self) -> None:
        self._answers, self._pause, self._told = True, FIRST_PAUSE, ""
        if not self._up:
            self._up = True
            self._metrics.feedback_database_up.set(1)
            logger.info("feedback is kept in %s", self._database.place)

    def _away(self, error: DatabaseAway) -> None:
        """Say so, once for each reason; have nobody wait; and wait before it is tried again."""
        self._prepared = self._answers = self._up = False
        self._metrics.feedback_database_up.set(0)
        if str(error) != self._told:
            self._told = str(error)
            logger.warning("%s; feedback is counted from memory until it works again", error)
        with self._changed:
            waiting = [item for item in (*self._batch, *self._queue) if isinstance(item, _Said)]
        for said in waiting:
            said.answer(None)
        self._rest()

    def _rest(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._stopping, self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE)

    def _next(self) -> None:
        """Take the next batch, unless one has still to be written; return when there is one, or it is time to sweep."""
        if self._batch:
            return
        with self._changed:
            until_sweep = max(0.0, self._sweep_at - time.monotonic())
            self._changed.wait_for(lambda: self._queue or self._stopping, until_sweep)
            self._changed.wait_for(self._full, FLUSH_SECONDS if self._queue else 0)
            taken = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            self._urgent = any(isinstance(item, _Said) for item in self._queue)
            self._chars -= sum(_chars(item) for item in taken if isinstance(item, dict))
        self._batch = taken
        self._batch = [item for item in map(self._formed, taken) if item is not None]

    def _formed(self, item: dict[str, Any] | _Said) -> dict[str, Any] | _Said | None:
        """Return ``item`` as it may leave this process's memory; none where a text cannot be made so."""
        if isinstance(item, _Said):
            return item
        try:
            return formed(item, self._form)
        except Exception as error:
            self._lose(error)
            return None

    def _full(self) -> bool:
        return self._urgent or self._stopping or len(self._queue) >= BATCH

    def _write(self) -> None:
        """Write the batch; where the database refuses a row, the others one by one."""
        try:
            self._commit(self._batch)
        except DatabaseAway:
            raise
        except Exception:
            for item in list(self._batch):
                try:
                    self._commit([item])
                except DatabaseAway:
                    raise
                except Exception as error:
                    self._lose(error)
                    self._batch = self._batch[1:]
                    if isinstance(item, _Said):
                        item.answer(None)

    def _lose(self, error: Exception) -> None:
        """Say it without the error's own words, which may hold what is in the row."""
        logger.error("a prediction or judgement cannot be kept: %s", type(error).__name__)
        self._metrics.feedback_writes.labels("failed").inc()

    def _commit(self, items: list[dict[str, Any] | _Said]) -> None:
        """Write the first of the batch in one transaction, then tell who waits."""
        if not items:
            return
        said = [item for item in items if isinstance(item, _Said)]
        with self._database.writing() as connection:
            records.add(connection, [item for item in items if not isinstance(item, _Said)])
            verdicts = [records.judge(connection, each.judgement) for each in said]
        self._batch = self._batch[len(items) :]
        self._metrics.feedback_writes.labels("written").inc(len(items))
        for each, verdict in zip(said, verdicts, strict=True):
            each.answer(verdict)

    def _sweep(self) -> None:
        """Delete a little of what is too old or too much; the rest after the next batch."""
        if time.monotonic() < self._sweep_at:
            return
        with self._database.writing() as connection:
            deleted = records.make_room(connection, self._database.most_bytes)
            if self._days is not None and self._clock.holds(records.now(connection)):
                deleted += records.expire(connection, self._days)
        if not deleted:
            self._sweep_at = time.monotonic() + SWEEP_SECONDS


class _Clock:
    """Tells whether a clock has lately gone as time does: one that jumps years ahead must not empty the database."""

    def __init__(self) -> None:
        self._last: tuple[datetime, float] | None = None
        self._trusted_at = 0.0

    def holds(self, now: datetime) -> bool:
        passed = time.monotonic()
        if self._last is not None:
            drift = (now - self._last[0]).total_seconds() - (passed - self._last[1])
            if abs(drift) > DRIFT_SECONDS:
                logger.warning("the clock was set by %.0f s: no feedback is deleted for an hour", drift)
                self._trusted_at = passed + HELD_SECONDS
        self._last = now, passed
        return passed >= self._trusted_at


def formed(row: dict[str, Any], form: Form) -> dict[str, Any]:
    """Return a prediction as it may leave this process's memory."""
    answers = row["answers"]
    if row["task"] != "classification":
        answers = [answer if answer is None else kept(form, answer) for answer in answers]
    return {
        **row,
        "form": form,
        "answers": answers,
        "texts": None if form == "off" else [kept(form, text) for text in row["texts"]],
        "caller": row["caller"] and kept("plain", row["caller"]),
    }


def _chars(row: dict[str, Any]) -> int:
    return sum(map(len, row["texts"]))
