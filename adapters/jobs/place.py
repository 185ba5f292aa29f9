"""Where files and jobs are kept: a folder for what is large, a database for what is asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.seed import DEFAULT_STORE, of_store

if TYPE_CHECKING:
    from adapters.database import Database

SETTING = "HOTSWAP_JOBS_DATABASE"


@dataclass(frozen=True)
class Place:
    """``folder`` has the uploaded files and the jobs' own folders; ``database`` is a path or an address."""

    folder: Path
    database: str

    @classmethod
    def of(cls, cache: Path, store: str | None, folder: Path | None = None, database: str | None = None) -> Place:
        """Return the place that service and worker find by the same settings, wherever each of them runs."""
        found = (folder or cache / "jobs" / of_store(store or str(DEFAULT_STORE))).expanduser()
        return cls(found, database or str(found / "jobs.db"))

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def open(self) -> Database:
        """Return the database, whose tables may have to be made yet. Raises :class:`HotswapError`."""
        from adapters.database import Database, Schema  # half a second, and only who has jobs pays it
        from adapters.jobs.tables import SCHEMA_TABLE

        made_by = "the service makes it when it starts with HOTSWAP_JOBS"
        migrations = Path(__file__).parent / "migrations"
        return Database(self.database, Schema("jobs", SETTING, migrations, SCHEMA_TABLE, made_by))
