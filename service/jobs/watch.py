"""The queue of fine-tuning jobs as metrics: what all replicas and workers share, as this one sees it."""

from __future__ import annotations

import asyncio
import logging

from adapters.jobs.states import ENDED, STATES, Tally
from service.errors import ServiceError
from service.jobs.desk import Desk
from service.metrics import Metrics

logger = logging.getLogger("hotswap")
SECONDS = 15.0


class Watch:
    """Looks at the queue now and then; while its database is away, the metrics stay as they were."""

    def __init__(self, desk: Desk, metrics: Metrics, seconds: float = SECONDS) -> None:
        self._desk, self._metrics, self._seconds = desk, metrics, seconds
        self._task: asyncio.Task[None] | None = None
        self._write(Tally({}, {}, 0))

    def start(self) -> None:
        if self._desk.is_open:
            self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def look(self) -> None:
        """Write what the queue holds now. Raises :class:`ServiceError` where that cannot be told."""
        self._write(await self._desk.queue("metrics", lambda queue: queue.tally()))

    def _write(self, tally: Tally) -> None:
        for state in STATES:
            self._metrics.jobs.labels(state).set(tally.jobs.get(state, 0))
        for state in ENDED:
            self._metrics.jobs_seconds.labels(state).set(tally.seconds.get(state, 0))
        self._metrics.jobs_waited.set(tally.waited)

    async def _keep(self) -> None:
        while True:
            try:
                await self.look()
            except ServiceError as error:
                logger.warning("the queue of fine-tuning jobs cannot be counted: %s", error.detail)
            await asyncio.sleep(self._seconds)
