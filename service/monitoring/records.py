"""What is asked of the feedback database, statement by statement."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Integer, Row, Select, case, delete, exists, func, literal, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from service.monitoring.database import Database
from service.monitoring.tables import judgements, predictions

# Rows that one transaction deletes: others wait for it.
AT_ONCE = 1000
MOST_ASKED = 10_000
# A file is emptied before it is full: what is deleted needs room, too.
FULL = 0.9


@dataclass(frozen=True)
class Judgement:
    """What somebody said of one answer; ``evidence`` where it may count about a canary."""

    prediction: str
    item: int
    said_by: str
    right: bool
    better: str | None
    evidence: bool


@dataclass(frozen=True)
class Verdict:
    """Whether a judgement was the ``first`` of its answer, and is ``evidence``: the first of its prediction."""

    first: bool
    evidence: bool


def add(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Write predictions; those that are there stay as they are."""
    if rows:
        connection.execute(_insert(connection, predictions).on_conflict_do_nothing(), rows)


def judge(connection: Connection, judgement: Judgement) -> Verdict:
    """Write a judgement if its prediction is there and the answer has none."""
    its_own = predictions.c.id == judgement.prediction
    said = ("prediction", "item", "said_by", "right", "better")
    values = select(*(literal(getattr(judgement, name), judgements.c[name].type) for name in said))
    insert = _insert(connection, judgements).from_select(said, values.where(exists().where(its_own)))
    insert = insert.on_conflict_do_nothing().execution_options(preserve_rowcount=True)
    first = connection.execute(insert).rowcount == 1
    evidence = first and judgement.evidence
    if evidence:
        claim = update(predictions).where(its_own, predictions.c.counted.is_(False)).values(counted=True)
        evidence = connection.execute(claim).rowcount == 1
    return Verdict(first, evidence)


def find(database: Database, prediction: str) -> Row[Any] | None:
    """Return a prediction's row. Raises :class:`DatabaseAway`."""
    with database.reading() as connection:
        return connection.execute(select(predictions).where(predictions.c.id == prediction)).one_or_none()


def now(connection: Connection) -> datetime:
    """Return the database's time."""
    return connection.execute(select(func.now())).scalar_one()


def expire(connection: Connection, days: float) -> int:
    """Delete some of what is older than ``days``, the oldest first; return how many."""
    old = predictions.c.at < now(connection) - timedelta(days=days)
    return _delete(connection, select(predictions.c.id).where(old))


def make_room(connection: Connection, most_bytes: int) -> int:
    """Delete some of the oldest predictions that nobody judged, if a SQLite file is nearly full; return how many."""
    if connection.dialect.name != "sqlite":
        return 0
    pages, free, size = (
        int(connection.exec_driver_sql(f"PRAGMA {name}").scalar_one())
        for name in ("page_count", "freelist_count", "page_size")
    )
    if (pages - free) * size < FULL * most_bytes:
        return 0
    return _delete(connection, select(predictions.c.id).where(~_judged()))


def erase(connection: Connection, name: str) -> tuple[int, int]:
    """Delete some of the predictions that a caller asked for, and of what it said; return how many of each."""
    theirs = or_(predictions.c.asked_by == name, predictions.c.caller == name)
    ids = _some(connection, select(predictions.c.id).where(theirs))
    about = or_(judgements.c.prediction.in_(ids), judgements.c.said_by == name)
    said = connection.execute(delete(judgements).where(about)).rowcount
    return connection.execute(delete(predictions).where(predictions.c.id.in_(ids))).rowcount, said


def judged(database: Database, adapter: str, since: datetime | None) -> Iterator[Row[Any]]:
    """Yield an adapter's judged answers, in the order in which they were judged. Raises :class:`DatabaseAway`."""
    query = (
        select(predictions, judgements.c.item, judgements.c.right, judgements.c.better, judgements.c.at.label("said"))
        .join(judgements, judgements.c.prediction == predictions.c.id)
        .where(predictions.c.adapter == adapter)
        .order_by(judgements.c.at, predictions.c.id, judgements.c.item)
    )
    if since is not None:
        query = query.where(judgements.c.at >= since)
    with database.reading() as connection:
        yield from connection.execution_options(yield_per=AT_ONCE).execute(query)


def asked(database: Database, adapter: str, since: datetime | None) -> Iterator[Any]:
    """Yield what was asked of an adapter: ``form`` and ``texts``, the newest first. Raises :class:`DatabaseAway`."""
    query = select(predictions.c.form, predictions.c.texts).where(predictions.c.adapter == adapter)
    if since is not None:
        query = query.where(predictions.c.at >= since)
    with database.reading() as connection:
        yield from connection.execute(query.order_by(predictions.c.at.desc()).limit(MOST_ASKED))


def stats(database: Database) -> list[dict[str, Any]]:
    """Return what there is of each version. Raises :class:`DatabaseAway`."""
    said = (
        select(
            judgements.c.prediction,
            func.count().label("judged"),
            func.sum(case((judgements.c.right, 1), else_=0)).cast(Integer).label("right"),
        )
        .group_by(judgements.c.prediction)
        .subquery()
    )
    query = (
        select(
            predictions.c.adapter,
            predictions.c.version,
            func.count().label("predictions"),
            func.coalesce(func.sum(said.c.judged), 0).cast(Integer).label("judged"),
            func.coalesce(func.sum(said.c.right), 0).cast(Integer).label("right"),
            func.min(predictions.c.at).label("first"),
            func.max(predictions.c.at).label("last"),
        )
        .outerjoin(said, said.c.prediction == predictions.c.id)
        .group_by(predictions.c.adapter, predictions.c.version)
        .order_by(predictions.c.adapter, predictions.c.version)
    )
    with database.reading() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def _insert(connection: Connection, table: Any) -> Any:
    """Return an INSERT that can pass over what is there: the databases spell it each in its own way."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _judged() -> Any:
    return exists().where(judgements.c.prediction == predictions.c.id)


def _some(connection: Connection, query: Select[Any]) -> list[str]:
    return list(connection.execute(query.order_by(predictions.c.at).limit(AT_ONCE)).scalars())


def _delete(connection: Connection, query: Select[Any]) -> int:
    ids = _some(connection, query)
    return connection.execute(delete(predictions).where(predictions.c.id.in_(ids))).rowcount if ids else 0
