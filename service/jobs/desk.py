"""Where files and jobs are handed in: the database and the folder, asked in threads of their own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from adapters.errors import DatabaseAway, StoreUnavailable
from adapters.jobs.place import Place
from service.errors import JobsOff, JobsUnavailable, StorageFull
from service.offload import Offload
from service.settings import Settings

if TYPE_CHECKING:
    from adapters.jobs.files import Files
    from adapters.jobs.queue import Queue

logger = logging.getLogger("hotswap")
AT_ONCE, FILE_PATIENCE = 8, 60
P = ParamSpec("P")
T = TypeVar("T")


class Desk:
    """Takes files and jobs, where HOTSWAP_JOBS lets it. What is done raises :class:`JobsOff` where it does not,
    :class:`JobsUnavailable` where the database is away, and :class:`StorageFull`."""

    def __init__(self, settings: Settings, store: str) -> None:
        self.settings = settings
        self.place = Place.of(settings.cache, store, settings.jobs_folder, settings.jobs_database)
        self._offload = Offload(settings.store_seconds, AT_ONCE)
        self._opened: tuple[Files, Queue] | None = None
        self._opening = threading.Lock()

    @property
    def is_open(self) -> bool:
        return self.settings.jobs != "off"

    async def files(self, key: str, work: Callable[Concatenate[Files, P], T], *args: P.args, **more: P.kwargs) -> T:
        """Return what ``work`` does with the files; of one ``key`` few calls run at a time."""
        return await self._ask(key, FILE_PATIENCE, lambda: work(self._open()[0], *args, **more))

    async def queue(self, key: str, work: Callable[Concatenate[Queue, P], T], *args: P.args, **more: P.kwargs) -> T:
        """Return what ``work`` does with the queue."""
        return await self._ask(key, 1, lambda: work(self._open()[1], *args, **more))

    async def _ask(self, key: str, patience: float, work: Callable[[], T]) -> T:
        if not self.is_open:
            raise JobsOff(
                "Set HOTSWAP_JOBS=local to have this server do fine-tuning jobs, or HOTSWAP_JOBS=queue where "
                "`python -m trainer jobs` runs elsewhere."
            )
        try:
            return await self._offload(key, work, patience=patience)
        except (DatabaseAway, StoreUnavailable) as error:
            logger.warning("%s", error)
            raise JobsUnavailable("Retry shortly.") from None
        except OSError as error:
            logger.error("files cannot be kept in %s: %s", self.place.files, error.strerror)
            raise StorageFull("The server has no room for the file, or may not write it.") from None

    def _open(self) -> tuple[Files, Queue]:
        """Return files and queue, their tables and folders made. Raises :class:`DatabaseAway`, :class:`OSError`."""
        from adapters.jobs.files import Files  # SQLAlchemy, which only who has jobs pays for
        from adapters.jobs.queue import Queue

        with self._opening:
            if self._opened is None:
                database = self.place.open()
                database.prepare()
                opened = Files(database, self.place.files), Queue(database)
                opened[0].prepare()
                self._opened = opened
            return self._opened
