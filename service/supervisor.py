"""The engine's life: started beside the open port, watched, and started again when it dies or hangs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from service.engine.base import Engine, EngineDown
from service.group import Group
from service.heartbeat import Heartbeat
from service.metrics import Metrics
from service.processes.fleet import Fleet
from service.rollout.promotion import Promotion
from service.rollout.reconciler import Reconciler
from service.serving.answering import Answering
from service.serving.residency import Residency

logger = logging.getLogger("hotswap")

WATCH_SECONDS = 0.1
# Large models are read from slow disks and compiled; an engine that takes longer than this never comes.
START_SECONDS = 3600.0
STOP_SECONDS = 30.0
# An engine that dies so often within so long will die again: the process ends, for whoever supervises it.
DEATHS, WITHIN_SECONDS = 3, 600.0


class Supervisor:
    """Keeps the engine running, and the service open only while it runs.

    ``phase`` is ``starting``, ``serving``, ``restarting its engine``, ``stopping`` or ``failed``.
    """

    def __init__(
        self,
        engine: Engine,
        residency: Residency,
        reconciler: Reconciler,
        promotion: Promotion,
        answering: Answering,
        metrics: Metrics,
        heartbeat: Heartbeat,
        fleet: Fleet | None = None,
    ) -> None:
        self._fleet = fleet
        self._engine, self._residency = engine, residency
        self._reconciler, self._promotion = reconciler, promotion
        self._answering, self._metrics, self._heartbeat = answering, metrics, heartbeat
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self.phase = "starting"

    async def run(self, on_ready: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """Serve until cancelled. ``on_ready`` is called once; ``on_failure`` where it is no use to go on, also for
        a fault of ours: a process that follows nothing any more must not look well."""
        try:
            await self._run(on_ready)
        except Exception:
            logger.exception("the supervisor failed")
        self._close("failed")
        on_failure()

    def stop(self) -> None:
        self._close("stopping")

    async def _run(self, on_ready: Callable[[], None]) -> None:
        """Return where it is no use to go on."""
        if not await self._start():
            return
        began = time.monotonic()
        await self._reconciler.settle()
        logger.info("released adapters prepared in %.1f s", time.monotonic() - began)
        await self._open()
        _announce(on_ready)
        while True:
            await self._serve()
            if self._fleet and self._fleet.failed:
                return
            logger.error("the engine has died; it is started again")
            while True:
                self._close("restarting its engine")
                self._deaths.append(time.monotonic())
                if len(self._deaths) == DEATHS and self._deaths[-1] - self._deaths[0] < WITHIN_SECONDS:
                    logger.error("the engine died %d times in %.0f s", DEATHS, WITHIN_SECONDS)
                    return
                if self._fleet:
                    self._fleet.down()
                await self._residency.forget()
                await self._stop()
                if await self._start():
                    break
            await self._reconciler.warm()
            self._metrics.engine_restarts.inc()
            await self._open()

    async def _start(self) -> bool:
        began = time.monotonic()
        try:
            async with asyncio.timeout(START_SECONDS):
                await self._engine.start()
        except Exception as error:
            logger.error("the engine did not start: %s", error, exc_info=not isinstance(error, EngineDown))
            return False
        logger.info("engine started in %.1f s", time.monotonic() - began)
        if self._fleet:
            self._fleet.up()
        return True

    async def _stop(self) -> None:
        """What is left of a dead engine may not be there to be stopped; a new one is started all the same."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._engine.stop()
        except Exception:
            logger.exception("the engine could not be stopped")

    async def _serve(self) -> None:
        """Follow the store, and the canaries, until the engine dies or hangs."""
        async with Group() as group:
            group.keep("reconciler", self._reconciler.run)
            group.keep("promotion", self._promotion.run)
            beating = group.start(self._heartbeat.follow())
            while self._engine.alive and not beating.done() and not (self._fleet and self._fleet.failed):
                await asyncio.sleep(WATCH_SECONDS)
        if self._engine.alive and beating.done():
            self._close("restarting its engine")
            await self._engine.kill()

    async def _open(self) -> None:
        if self._fleet:
            await self._fleet.joined()
            self._fleet.phase("serving")
        self.phase, self._answering.open = "serving", True
        self._metrics.ready.set(1)

    def _close(self, phase: str) -> None:
        self.phase, self._answering.open = phase, False
        if self._fleet:
            self._fleet.phase(phase)
        self._metrics.ready.set(0)


def _announce(on_ready: Callable[[], None]) -> None:
    """Say that the service is ready. Who should hear it may be gone, which is no reason not to serve."""
    try:
        on_ready()
    except Exception as error:
        logger.warning("nobody could be told that the service is ready: %s", error)
