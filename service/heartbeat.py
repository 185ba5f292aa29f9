"""Whether the engine still answers: a process that is stopped, or waits for ever, is not dead and serves nobody."""

from __future__ import annotations

import asyncio
import logging
import time

from service.engine.base import Engine, EngineDown

logger = logging.getLogger("hotswap")

EVERY_SECONDS = 1.0
# Less work than this share of the time is none: what waits for a lock wakes up now and then.
WORKING = 0.02
GRACE_SECONDS = 1.0
# An engine that works and answers nobody is in a step too long to wait for, or in a circle.
MOST_BUSY = 10


class Heartbeat:
    """Asks the engine for a sign of life. ``seconds`` without one, and without work, are death; one that works, in a
    long step or compiling, is given ten times as long."""

    def __init__(self, engine: Engine, seconds: float) -> None:
        self._engine, self._seconds = engine, seconds

    async def follow(self) -> None:
        """Return when the engine has given no sign of life for too long."""
        while True:
            await asyncio.sleep(min(EVERY_SECONDS, self._seconds / 4))
            if not await self._answers():
                return

    async def _answers(self) -> bool:
        began, worked = time.monotonic(), self._engine.work_seconds()
        check = asyncio.ensure_future(self._engine.check())
        try:
            for _ in range(MOST_BUSY):
                if await _done(check, self._seconds):
                    return True
                now_worked = self._engine.work_seconds()
                if now_worked - worked < WORKING * self._seconds and not self._engine.loading:
                    # We may have been stopped ourselves: what was answered meanwhile is still to be read.
                    if await _done(check, GRACE_SECONDS):
                        return True
                    break
                worked = now_worked
        except EngineDown:
            return False
        finally:
            check.cancel()
            await asyncio.gather(check, return_exceptions=True)
        logger.error("the engine has not answered for %.0f s", time.monotonic() - began)
        return False


async def _done(check: asyncio.Future[None], seconds: float) -> bool:
    """Wait for so long; return whether it answered. Raises what it raised."""
    await asyncio.wait((check,), timeout=seconds)
    if check.done():
        check.result()
    return check.done()
