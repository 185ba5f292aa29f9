"""Uploaded files: rows in the database, bytes in a folder."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO

from sqlalchemy import delete, func, insert, or_, select

from adapters.database import Database
from adapters.errors import NotKept, QuotaSpent, Untimely
from adapters.jobs.ids import new_id
from adapters.jobs.pages import Record, now, page
from adapters.jobs.rows import Checked
from adapters.jobs.states import UNFINISHED
from adapters.jobs.tables import files, jobs

PART, DAY = ".part", 86_400


class Files:
    """What keys have uploaded. ``owner`` is a key's name; none sees all. Methods raise :class:`DatabaseAway`."""

    def __init__(self, database: Database, folder: Path) -> None:
        self._database, self._folder = database, folder

    def prepare(self) -> None:
        """Make the folder; remove what uploads that were killed have left there."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for part in self._folder.glob(f"*{PART}"):
            with suppress(OSError):
                if part.stat().st_mtime < time.time() - DAY:
                    part.unlink()

    def take(self, source: IO[bytes]) -> Path:
        """Return a file of ours with the content of ``source``; :meth:`add` or the caller removes it.

        Raises :class:`OSError` where it cannot be written, and leaves nothing then.
        """
        part = self._folder / f"{new_id('file')}{PART}"
        try:
            with open(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                while block := source.read(1 << 20):
                    file.write(block)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        return part

    def add(self, part: Path, owner: str, filename: str, checked: Checked, most_bytes: int) -> Record:
        """Return the file that ``part`` becomes. Raises :class:`QuotaSpent` beyond ``most_bytes`` of the owner's."""
        size = part.stat().st_size
        place = part.with_suffix("")
        with self._database.writing() as connection:
            kept = connection.scalar(select(func.coalesce(func.sum(files.c.bytes), 0)).where(files.c.owner == owner))
            if int(kept or 0) + size > most_bytes:
                raise QuotaSpent(f"a key's files hold {most_bytes} bytes at most, and {kept} are taken; delete some.")
            row = {
                **{"id": place.name, "owner": owner, "filename": filename, "bytes": size},
                **{"rows": checked.rows, "paired": checked.paired, "created_at": now(connection)},
            }
            connection.execute(insert(files).values(row))
            part.replace(place)  # before the commit: a row never names a file that is not there
        return row

    def get(self, id: str, owner: str | None) -> Record:
        """Raise :class:`NotKept` where there is none, or it is another's."""
        with self._database.reading() as connection:
            row = connection.execute(select(files).where(files.c.id == id)).mappings().first()
        if row is None or owner not in (None, row["owner"]):
            raise NotKept(f"No file is called '{id[:64]}'.")
        return dict(row)

    def path(self, id: str) -> Path:
        """Return where the bytes are of a file that :meth:`get` knows."""
        return self._folder / id

    def listed(self, owner: str | None, *, after: str | None, limit: int, oldest: bool) -> tuple[list[Record], bool]:
        """Return a page, and whether there are more."""
        query = select(files) if owner is None else select(files).where(files.c.owner == owner)
        with self._database.reading() as connection:
            return page(connection, query, files, after=after, limit=limit, oldest=oldest)

    def delete(self, id: str, owner: str | None) -> None:
        """Raise :class:`NotKept`, and :class:`Untimely` while a job that is not finished needs it."""
        self.get(id, owner)
        using = or_(jobs.c.training_file == id, jobs.c.validation_file == id)
        with self._database.writing() as connection:
            job = connection.scalar(select(jobs.c.id).where(using, jobs.c.status.in_(UNFINISHED)).limit(1))
            if job is not None:
                raise Untimely(f"{id} is needed by {job}, which is not finished; cancel that first.")
            connection.execute(delete(files).where(files.c.id == id))
        self.path(id).unlink(missing_ok=True)
