"""The worker that the service keeps where HOTSWAP_JOBS is ``local``: a niced process, another one when it dies."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence

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
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Ask the worker to go, and wait until it has."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self.process is not None:
            await asyncio.to_thread(_stop, self.process)

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            try:
                # Not asyncio's: uvloop forks, and what is forked from this process runs launch.keep_from_forks first.
                self.process = process = subprocess.Popen(  # noqa: ASYNC220
                    self._command, env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
                )
                logger.info("fine-tuning jobs are done by process %d", process.pid)
                status = await asyncio.to_thread(process.wait)
                logger.warning("the worker of fine-tuning jobs ended with status %d", status)
            except OSError as error:
                logger.error("the worker of fine-tuning jobs did not start: %s", error)
            pause = FIRST_PAUSE if time.monotonic() - began > STEADY_SECONDS else min(LONGEST_PAUSE, 2 * pause)
            await asyncio.sleep(pause)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
