"""Where feedback is kept."""

from __future__ import annotations

from pathlib import Path

from adapters import database
from adapters.database import Schema
from adapters.errors import DatabaseAway
from adapters.seed import of_store
from service.monitoring.tables import SCHEMA_TABLE

__all__ = ["Database", "DatabaseAway", "default_place"]

MIGRATIONS = Path(__file__).parent / "migrations"
SETTING = "HOTSWAP_FEEDBACK_DATABASE"


class Database(database.Database):
    """The feedback database at a ``place``, a path or an address. Raises :class:`HotswapError` for what is none."""

    def __init__(self, place: str, most_bytes: int = 2**60) -> None:
        made_by = "the service makes it when it starts"
        super().__init__(place, Schema("feedback", SETTING, MIGRATIONS, SCHEMA_TABLE, made_by), most_bytes)


def default_place(cache: Path, store: str) -> str:
    """Return where the feedback of a store is kept unless told otherwise: every replica on this machine finds it."""
    return str(cache / "feedback" / f"{of_store(store)}.db")
