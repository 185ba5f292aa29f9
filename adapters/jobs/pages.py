"""Pages of rows, in the order in which they came or the other way round."""

from __future__ import annotations

from datetime import UTC
from typing import Any

from sqlalchemy import Connection, Select, Table, func, select

from adapters.errors import NotKept

Record = dict[str, Any]


def page(
    connection: Connection, query: Select[Any], table: Table, *, after: str | None, limit: int, oldest: bool = False
) -> tuple[list[Record], bool]:
    """Return ``limit`` of a query's rows behind the one with the id ``after``, and whether there are more.

    Raises :class:`NotKept` where there is no such row.
    """
    number = table.c.number
    if after is not None:
        last = connection.scalar(select(number).where(table.c.id == after))
        if last is None:
            raise NotKept(f"after: there is no '{after[:64]}'.")
        query = query.where(number > last if oldest else number < last)
    found = connection.execute(query.order_by(number if oldest else number.desc()).limit(limit + 1))
    rows = [dict(row) for row in found.mappings()]
    return rows[:limit], len(rows) > limit


def now(connection: Connection) -> int:
    """Return the database's own time."""
    found = connection.scalar(select(func.now()))
    assert found is not None
    return int(found.replace(tzinfo=UTC).timestamp())
