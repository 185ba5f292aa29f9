"""The worker that the service keeps where HOTSWAP_JOBS is ``local``: a niced process, another one when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import Sequence
from contextlib import suppress

from adapters.jobs.place import Place
from service.settings import PREFIX, Settings

logger = logging.getLogger("hotswap")
COMMAND = (sys.executable, "-m", "trainer", "jobs", "--attached")
STOP_SECONDS = 40.0  # it gives a training time for a checkpoint
FIRST_PAUSE, LONGEST_PAUSE, STEADY_SECONDS = 1.0, 60.0, 60.0


class LocalWorker:
    """A process that ends with this one, however that ends: its standard input does."""

    def __init__(self, settings: Settings, place: Place, store: str, command: Sequence[str] = COMMAND) -> None:
        self._environment = {
            **os.environ,
            f"{PREFIX}STORE": store,
            f"{PREFIX}CACHE": str(settings.cache),
            f"{PREFIX}BASE_MODEL": settings.base_model or "",
            f"{PREFIX}JOBS_FOLDER": str(place.folder),
            f"{PREFIX}JOBS_DATABASE": place.database,
        }
        self._command = command
        self._task: asyncio.Task[None] | None = None
        self.process: Process | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Ask the worker to go, and wait until it has."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        process = self.process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                self.process = await asyncio.create_subprocess_exec(
                    *self._command, env=self._environment, stdin=PIPE, stdout=DEVNULL
                )
                logger.info("fine-tuning jobs are done by process %d", self.process.pid)
                logger.warning("the worker of fine-tuning jobs ended with status %d", await self.process.wait())
            except OSError as error:
                logger.error("the worker of fine-tuning jobs did not start: %s", error)
            pause = FIRST_PAUSE if time.monotonic() - began > STEADY_SECONDS else min(LONGEST_PAUSE, 2 * pause)
            await asyncio.sleep(pause)
