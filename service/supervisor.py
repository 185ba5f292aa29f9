"""The engine's life: started beside the open port, watched, and started again when it dies."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable

from service.engine.base import Engine, EngineDown
from service.metrics import Metrics
from service.rollout.promotion import Promotion
from service.rollout.reconciler import Reconciler
from service.serving.answering import Inference
from service.serving.registry import Registry

logger = logging.getLogger("hotswap")

WATCH_SECONDS = 0.1
# An engine that dies so often within so long will die again: the process ends, for whoever supervises it.
DEATHS, WITHIN_SECONDS = 3, 600.0


class Supervisor:
    """Keeps the engine running, and the service open only while it runs.

    ``phase`` is ``starting``, ``serving``, ``restarting its engine``, ``stopping`` or ``failed``.
    """

    def __init__(
        self,
        engine: Engine,
        registry: Registry,
        reconciler: Reconciler,
        promotion: Promotion,
        inference: Inference,
        metrics: Metrics,
    ) -> None:
        self._engine, self._registry = engine, registry
        self._reconciler, self._promotion = reconciler, promotion
        self._inference, self._metrics = inference, metrics
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self.phase = "starting"

    async def run(self, on_ready: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """Serve until cancelled. ``on_ready`` is called once; ``on_failure`` where it is no use to go on."""
        if not await self._start():
            return self._give_up(on_failure)
        began = time.monotonic()
        await self._reconciler.settle()
        logger.info("released adapters prepared in %.1f s", time.monotonic() - began)
        self._open()
        on_ready()
        while True:
            await self._serve()
            logger.error("the engine has died; it is started again")
            while True:
                self._close("restarting its engine")
                self._deaths.append(time.monotonic())
                if len(self._deaths) == DEATHS and self._deaths[-1] - self._deaths[0] < WITHIN_SECONDS:
                    logger.error("the engine died %d times in %.0f s", DEATHS, WITHIN_SECONDS)
                    return self._give_up(on_failure)
                await self._registry.forget()
                await self._engine.stop()
                if await self._start():
                    break
            await self._reconciler.warm()
            self._metrics.engine_restarts.inc()
            self._open()

    def stop(self) -> None:
        self._close("stopping")

    async def _start(self) -> bool:
        began = time.monotonic()
        try:
            await self._engine.start()
        except Exception as error:
            logger.error("the engine did not start: %s", error, exc_info=not isinstance(error, EngineDown))
            return False
        logger.info("engine started in %.1f s", time.monotonic() - began)
        return True

    async def _serve(self) -> None:
        """Follow the store, and the canaries, until the engine dies."""
        following = [asyncio.create_task(work.run()) for work in (self._reconciler, self._promotion)]
        try:
            while self._engine.alive:
                await asyncio.sleep(WATCH_SECONDS)
        finally:
            for task in following:
                task.cancel()
            await asyncio.gather(*following, return_exceptions=True)

    def _open(self) -> None:
        self.phase, self._inference.open = "serving", True
        self._metrics.ready.set(1)

    def _close(self, phase: str) -> None:
        self.phase, self._inference.open = phase, False
        self._metrics.ready.set(0)

    def _give_up(self, on_failure: Callable[[], None]) -> None:
        self._close("failed")
        on_failure()
