"""The queue: who asked for which job, which worker has it, and what became of it.

A job belongs to the worker that claimed it until its lease is over: a worker that is killed renews no lease, and
another one goes on. Every change names the state it starts from, so that of a worker that publishes and a client that
cancels at the same moment one wins, and the other is told.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, func, insert, or_, select, true, update

from adapters.database import Database
from adapters.errors import NotKept, QuotaSpent, Untimely
from adapters.jobs.ids import new_id
from adapters.jobs.pages import Record, now, page
from adapters.jobs.states import UNFINISHED, Tally
from adapters.jobs.tables import events, jobs

LEASE_SECONDS, RETRY_SECONDS = 60, 60
# A job that has taken so many workers down, or found no room so often, is no better the next time.
MOST_ATTEMPTS = 5
ACTIVE = ("validating_files", "running")
WAITING = ("queued", *ACTIVE)


class Queue:
    """Jobs and their events. ``owner`` is a key's name; none sees all. Methods raise :class:`DatabaseAway`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, job: Record, most: int) -> Record:
        """Return the job that is queued. Raises :class:`QuotaSpent` where its owner has ``most`` unfinished ones."""
        mine = and_(jobs.c.owner == job["owner"], jobs.c.status.in_(UNFINISHED))
        with self._database.writing() as connection:
            if (connection.scalar(select(func.count()).select_from(jobs).where(mine)) or 0) >= most:
                raise QuotaSpent(f"a key may have {most} unfinished jobs at a time; wait for one, or cancel it.")
            row = {"status": "queued", "created_at": now(connection), **job}
            connection.execute(insert(jobs).values(row))
            _tell(connection, row["id"], f"Created fine-tuning job: {row['id']}")
            return _one(connection, row["id"])

    def get(self, id: str, owner: str | None = None) -> Record:
        """Raise :class:`NotKept` where there is none, or it is another's."""
        with self._database.reading() as connection:
            return _one(connection, id, owner)

    def listed(
        self, owner: str | None, *, after: str | None, limit: int, labels: dict[str, str] | None = None
    ) -> tuple[list[Record], bool]:
        """Return the newest jobs first, those with ``labels`` as their metadata only, and whether there are more."""
        query = select(jobs) if owner is None else select(jobs).where(jobs.c.owner == owner)
        for key, value in (labels or {}).items():
            query = query.where(jobs.c.labels[key].as_string() == value)
        with self._database.reading() as connection:
            return page(connection, query, jobs, after=after, limit=limit)

    def events(self, id: str, *, after: str | None, limit: int) -> tuple[list[Record], bool]:
        """Return what was told of a job, the newest first, and whether there is more."""
        with self._database.reading() as connection:
            query = select(events).where(events.c.job == id)
            return page(connection, query, events, after=after, limit=limit)

    def cancel(self, id: str, owner: str | None) -> Record:
        """Have a job end here. Raises :class:`Untimely` for one that is finished or being published."""
        return self._turn(id, owner, UNFINISHED, "cancelled", "Fine-tuning job cancelled", finish=True)

    def pause(self, id: str, owner: str | None) -> Record:
        """Have a job wait until it is resumed, with what it has learnt by then."""
        return self._turn(id, owner, WAITING, "paused", "Fine-tuning job paused")

    def resume(self, id: str, owner: str | None) -> Record:
        """Have a job that was paused go on."""
        return self._turn(id, owner, ("paused",), "queued", "Fine-tuning job resumed")

    def claim(self, worker: str, base: str) -> Record | None:
        """Return the oldest job for ``base`` (a digest) that nobody is at, which is the worker's for LEASE_SECONDS."""
        with self._database.writing() as connection:
            while (job := self._free(connection, base)) is not None:
                if job["attempts"] >= MOST_ATTEMPTS:
                    told = f"given up after {MOST_ATTEMPTS} attempts; the events before say what ended them"
                    _finish(connection, job["id"], "failed", {"code": "attempts", "message": told, "param": None})
                    continue
                if job["worker"] is not None:
                    _tell(connection, job["id"], "The worker was lost; another one goes on", "warn")
                status = "running" if job["status"] == "running" else "validating_files"
                taken = {"worker": worker, "lease": now(connection) + LEASE_SECONDS, "status": status}
                connection.execute(_of(job["id"]).values(**taken, attempts=job["attempts"] + 1))
                return _one(connection, job["id"])
        return None

    def keep(self, id: str, worker: str) -> bool:
        """Renew the lease; return whether the job is still the worker's to do."""
        return self._change(id, worker)

    def begin(self, id: str, worker: str) -> bool:
        """Say that the rows are right and training begins; return whether it may."""
        return self._change(id, worker, status="running", told="Fine-tuning job started")

    def publishing(self, id: str, worker: str) -> bool:
        """Say that the adapter is about to be published, after which nobody can cancel; return whether it may be."""
        return self._change(id, worker, publishing=True, told="The adapter passed its gate and is published")

    def report(
        self,
        id: str,
        worker: str,
        message: str,
        *,
        level: str = "info",
        data: Record | None = None,
        seconds_left: float | None = None,
    ) -> bool:
        """Tell of a job's progress, with metrics as ``data``; return whether it is still the worker's to do."""
        with self._database.writing() as connection:
            more = {} if seconds_left is None else {"estimated_finish": now(connection) + round(seconds_left)}
            held = _held(connection, id, worker, **more)
            if held:
                _tell(connection, id, message, level, data)
            return held

    def succeed(self, id: str, worker: str, **found: Any) -> bool:
        """End a job with what came of it (``fine_tuned_model``, ``result``, ``trained_tokens``)."""
        with self._database.writing() as connection:
            held = _held(connection, id, worker)
            if held:
                connection.execute(_of(id).values(**found))
                _tell(connection, id, f"New fine-tuned model created: {found['fine_tuned_model']}")
                _finish(connection, id, "succeeded")
            return held

    def fail(self, id: str, worker: str, code: str, message: str, param: str | None = None) -> bool:
        """End a job with why there is no adapter."""
        with self._database.writing() as connection:
            held = _held(connection, id, worker)
            if held:
                _finish(connection, id, "failed", {"code": code, "message": message, "param": param})
            return held

    def let_go(self, id: str, worker: str, why: str = "", *, count: bool = True, later: bool = False) -> None:
        """Give a job back that is not finished: ``later`` it is tried again after RETRY_SECONDS, else at once;
        ``count``: as an attempt that failed."""
        with self._database.writing() as connection:
            lease = now(connection) + RETRY_SECONDS if later else None
            free: dict[str, Any] = {"worker": None, "lease": lease}
            if not count:
                free["attempts"] = jobs.c.attempts - 1
            held = connection.execute(_of(id).where(jobs.c.worker == worker).values(free)).rowcount
            if held and why:
                _tell(connection, id, why, "warn")

    def finished(self, ids: Sequence[str]) -> list[str]:
        """Return those of the jobs that nobody will go on with, or that are not known at all."""
        with self._database.reading() as connection:
            needed = or_(jobs.c.status.in_(UNFINISHED), jobs.c.lease >= now(connection))
            rows = connection.execute(select(jobs.c.id).where(jobs.c.id.in_(ids), needed))
            kept = {row.id for row in rows}
        return [id for id in ids if id not in kept]

    def waiting(self) -> dict[str, int]:
        """Return how many jobs wait, by their base's digest."""
        query = select(jobs.c.base, func.count()).where(jobs.c.status == "queued").group_by(jobs.c.base)
        with self._database.reading() as connection:
            return {row[0]: row[1] for row in connection.execute(query)}

    def tally(self) -> Tally:
        """Return how many jobs are in each state, how long the oldest of the queue has waited, and how many seconds
        those that ended took, from being asked for on."""
        took = func.sum(jobs.c.finished_at - jobs.c.created_at)
        oldest = select(func.min(jobs.c.created_at)).where(jobs.c.status == "queued")
        with self._database.reading() as connection:
            rows = connection.execute(select(jobs.c.status, func.count(), took).group_by(jobs.c.status)).all()
            asked_at = connection.scalar(oldest)
            waited = 0 if asked_at is None else max(0, now(connection) - asked_at)
        return Tally({row[0]: row[1] for row in rows}, {row[0]: int(row[2] or 0) for row in rows}, waited)

    def _free(self, connection: Connection, base: str) -> Record | None:
        over = or_(jobs.c.lease.is_(None), jobs.c.lease < now(connection))
        free = and_(jobs.c.base == base, jobs.c.status.in_(WAITING), over)
        query = select(jobs).where(free).order_by(jobs.c.number).limit(1).with_for_update(skip_locked=True)
        row = connection.execute(query).mappings().first()
        return None if row is None else dict(row)

    def _change(self, id: str, worker: str, *, told: str = "", **values: Any) -> bool:
        with self._database.writing() as connection:
            held = _held(connection, id, worker, **values)
            if held and told:
                _tell(connection, id, told)
            return held

    def _turn(
        self, id: str, owner: str | None, before: Sequence[str], after: str, told: str, *, finish: bool = False
    ) -> Record:
        with self._database.writing() as connection:
            job = _one(connection, id, owner)
            found = _of(id).where(jobs.c.status.in_(before), ~jobs.c.publishing)
            if not connection.execute(found.values(status=after, estimated_finish=None)).rowcount:
                state = "being published" if job["publishing"] and job["status"] in ACTIVE else job["status"]
                raise Untimely(f"{id} is {state}: it cannot be {after if after != 'queued' else 'resumed'}.")
            if finish:
                connection.execute(_of(id).values(finished_at=now(connection)))
            _tell(connection, id, told)
            return _one(connection, id)


def _one(connection: Connection, id: str, owner: str | None = None) -> Record:
    row = connection.execute(select(jobs).where(jobs.c.id == id)).mappings().first()
    if row is None or owner not in (None, row["owner"]):
        raise NotKept(f"No fine-tuning job is called '{id[:64]}'.")
    return dict(row)


def _of(id: str, holds: ColumnElement[bool] = true()) -> Any:  # noqa: B008 - immutable
    return update(jobs).where(jobs.c.id == id, holds)


def _held(connection: Connection, id: str, worker: str, **values: Any) -> bool:
    """Renew a worker's lease, and change what is given with it; return whether the job was still its own."""
    mine = and_(jobs.c.worker == worker, jobs.c.status.in_(ACTIVE))
    lease = now(connection) + LEASE_SECONDS
    return bool(connection.execute(_of(id, mine).values(lease=lease, **values)).rowcount)


def _finish(connection: Connection, id: str, status: str, error: Record | None = None) -> None:
    done = {"status": status, "error": error, "finished_at": now(connection), "estimated_finish": None}
    connection.execute(_of(id).values(**done))
    told = "The job has successfully completed" if error is None else f"The job failed: {error['message']}"
    _tell(connection, id, told, "info" if error is None else "error")


def _tell(connection: Connection, id: str, message: str, level: str = "info", data: Record | None = None) -> None:
    row = {"id": new_id("ftevent"), "job": id, "created_at": now(connection), "level": level, "message": message}
    connection.execute(insert(events).values(**row, type="metrics" if data else "message", data=data))
