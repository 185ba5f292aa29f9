"""How many texts a key may have answered in a time: on each replica, or on all of them together."""

from __future__ import annotations

import asyncio
import logging
import math
import time

from limits import RateLimitItem, WindowStats, parse
from limits.aio.strategies import SlidingWindowCounterRateLimiter as SharedLimiter
from limits.errors import ConfigurationError, StorageError
from limits.storage import MemoryStorage, storage_from_string
from limits.strategies import SlidingWindowCounterRateLimiter

from adapters.errors import HotswapError
from service.errors import RateLimited

logger = logging.getLogger("hotswap")
# Nobody waits for the counting for longer; where it takes longer, it is left alone for a while.
SHARED_SECONDS, AWAY_SECONDS = 0.5, 5.0


class Quota:
    """Counts texts, not requests: a request may carry 256. Two counters per caller, whatever the rate."""

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def check(self, caller: str, rate: RateLimitItem | None) -> None:
        """Raise :class:`RateLimited` where not one text is left."""
        if rate is not None and not await self._test(caller, rate):
            await self.counted(caller, rate, 1)

    async def charge(self, caller: str, rate: RateLimitItem | None) -> None:
        """Count one text, whether or not there was one left."""
        if rate is not None:
            await self._hit(caller, rate, 1)

    async def take(self, caller: str, rate: RateLimitItem | None, texts: int) -> dict[str, str]:
        """Return the headers that tell the caller what is left (none without a ``rate``).

        Raises :class:`RateLimited`, which costs the caller nothing.
        """
        return {} if rate is None else await self.counted(caller, rate, texts)

    async def counted(self, caller: str, rate: RateLimitItem, texts: int) -> dict[str, str]:
        """Count so many texts, as above."""
        taken, left = await self._hit(caller, rate, texts)
        seconds = max(1, math.ceil(left.reset_time - time.time()))
        headers = {
            "RateLimit-Limit": str(rate.amount),
            "RateLimit-Remaining": str(max(0, left.remaining)),
            "RateLimit-Reset": str(seconds),
        }
        if taken:
            return headers
        raise RateLimited(
            f"This key has {rate.amount} texts in {_window(rate)}, at most {rate.amount} at once; "
            f"{max(0, left.remaining)} are left.",
            retry_after=seconds,
            headers=headers,
        )

    async def _test(self, caller: str, rate: RateLimitItem) -> bool:
        return self._limiter.test(rate, caller)

    async def _hit(self, caller: str, rate: RateLimitItem, texts: int) -> tuple[bool, WindowStats]:
        """Count so many texts if there are as many left; return whether there were, and what is left."""
        return self._limiter.hit(rate, caller, cost=texts), self._limiter.get_window_stats(rate, caller)


class SharedQuota(Quota):
    """Counts in Redis or Valkey, for all replicas together; while that is away, each replica counts by itself.

    Raises :class:`HotswapError` for an address that is none.
    """

    def __init__(self, address: str) -> None:
        super().__init__()
        seconds = {"socket_timeout": SHARED_SECONDS, "socket_connect_timeout": SHARED_SECONDS}
        try:
            storage = storage_from_string(f"async+{address}", implementation="redispy", wrap_exceptions=True, **seconds)
        except (ConfigurationError, ValueError) as error:
            raise HotswapError(
                f"HOTSWAP_RATE_STORE cannot be used ({error}); write redis://host:6379/0, and install hotswap[redis]."
            ) from None
        self._shared, self._away, self._again = SharedLimiter(storage), False, 0.0

    async def _test(self, caller: str, rate: RateLimitItem) -> bool:
        if time.monotonic() >= self._again:
            try:
                async with asyncio.timeout(SHARED_SECONDS):
                    return await self._shared.test(rate, caller)
            except Exception as error:
                self._leave_alone(error)
        return await super()._test(caller, rate)

    async def _hit(self, caller: str, rate: RateLimitItem, texts: int) -> tuple[bool, WindowStats]:
        if time.monotonic() >= self._again:
            try:
                async with asyncio.timeout(SHARED_SECONDS):
                    taken = await self._shared.hit(rate, caller, cost=texts)
                    left = await self._shared.get_window_stats(rate, caller)
            except Exception as error:  # of an answer that is none of Redis's the library raises whatever it met
                self._leave_alone(error)
            else:
                if self._away:
                    self._away = False
                    logger.warning("rates are counted for all replicas together again")
                return taken, left
        return await super()._hit(caller, rate, texts)

    def _leave_alone(self, error: Exception) -> None:
        self._again = time.monotonic() + AWAY_SECONDS
        if not self._away:
            self._away = True
            cause = error.storage_error if isinstance(error, StorageError) else error
            logger.warning("rates are counted on this replica alone: %s: %s", type(cause).__name__, cause)


def read_rate(text: str) -> RateLimitItem:
    """Return what ``600/minute`` means. Raises :class:`HotswapError`."""
    try:
        return parse(text)
    except ValueError:
        raise HotswapError(f"'{text}' is no rate; write it like 600/minute or 10/second.") from None


def _window(rate: RateLimitItem) -> str:
    seconds = rate.get_expiry()
    return {1: "a second", 60: "a minute", 3600: "an hour", 86400: "a day"}.get(seconds, f"{seconds} seconds")
