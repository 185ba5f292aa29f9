"""What failed, why, and when it makes sense to try again."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Hashable
from dataclasses import dataclass

FIRST_SECONDS, MOST_SECONDS = 1.0, 300.0
# 2 to the power of more is above any limit, and at last above what a float can hold.
MOST_DOUBLINGS = 30


@dataclass(frozen=True)
class Failure:
    """``error`` is the answer to whoever comes before ``retry_at`` (of :func:`time.monotonic`, maybe infinite)."""

    error: Exception
    attempts: int
    retry_at: float

    @property
    def wait(self) -> float:
        """Seconds until the next attempt; not positive when it is due."""
        return self.retry_at - time.monotonic()

    def again(self) -> Exception:
        """Return the error to raise once more: a copy, for every raise adds frames to the one that is raised."""
        return copy.copy(self.error)


class Backoff:
    """Failures by key; each further one doubles the wait. What a retry cannot mend waits for ever."""

    def __init__(self) -> None:
        self._failures: dict[Hashable, Failure] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def wait(self, key: Hashable, *, again: bool) -> float:
        """Return the seconds to wait after one more failure; ``again`` says whether the same may succeed later."""
        attempts = self._failures[key].attempts if key in self._failures else 0
        return min(MOST_SECONDS, FIRST_SECONDS * 2.0 ** min(attempts, MOST_DOUBLINGS)) if again else math.inf

    def note(self, key: Hashable, error: Exception, wait: float) -> None:
        """Remember a failure, for so many seconds."""
        attempts = self._failures[key].attempts + 1 if key in self._failures else 1
        # A copy: what is raised to whoever waits holds on to their requests.
        self._failures[key] = Failure(copy.copy(error), attempts, time.monotonic() + wait)

    def get(self, key: Hashable) -> Failure | None:
        """Return the last failure, whether or not its wait is over."""
        return self._failures.get(key)

    def clear(self, key: Hashable) -> None:
        """Forget: it succeeded, or someone said that it can now."""
        self._failures.pop(key, None)
