"""How many texts a key may have answered in a time, on each replica."""

from __future__ import annotations

import math
import time

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from adapters.errors import HotswapError
from service.errors import RateLimited


class Quota:
    """Counts texts, not requests: a request may carry 256. Two counters per caller, whatever the rate."""

    def __init__(self) -> None:
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def check(self, caller: str, rate: RateLimitItem | None) -> None:
        """Raise :class:`RateLimited` where not one text is left."""
        if rate is not None and not self._limiter.test(rate, caller):
            self.counted(caller, rate, 1)

    async def charge(self, caller: str, rate: RateLimitItem | None) -> None:
        """Count one text, whether or not there was one left."""
        if rate is not None:
            self._limiter.hit(rate, caller)

    async def take(self, caller: str, rate: RateLimitItem | None, texts: int) -> dict[str, str]:
        """Return the headers that tell the caller what is left (none without a ``rate``).

        Raises :class:`RateLimited`, which costs the caller nothing.
        """
        return {} if rate is None else self.counted(caller, rate, texts)

    def counted(self, caller: str, rate: RateLimitItem, texts: int) -> dict[str, str]:
        """Count so many texts, as above."""
        taken = self._limiter.hit(rate, caller, cost=texts)
        left = self._limiter.get_window_stats(rate, caller)
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


def read_rate(text: str) -> RateLimitItem:
    """Return what ``600/minute`` means. Raises :class:`HotswapError`."""
    try:
        return parse(text)
    except ValueError:
        raise HotswapError(f"'{text}' is no rate; write it like 600/minute or 10/second.") from None


def _window(rate: RateLimitItem) -> str:
    seconds = rate.get_expiry()
    return {1: "a second", 60: "a minute", 3600: "an hour", 86400: "a day"}.get(seconds, f"{seconds} seconds")
