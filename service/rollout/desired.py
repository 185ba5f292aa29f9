"""What the store says shall be served, looked up as cheaply as can be."""

from __future__ import annotations

import time
from dataclasses import dataclass

from adapters.catalogue import Catalogue
from adapters.store import Store


@dataclass(frozen=True)
class Look:
    """The whole store as it was ``at`` a moment (monotonic seconds), when it had this ``pulse``."""

    catalogue: Catalogue
    pulse: str | None
    at: float


class Desired:
    """When to look at the store again.

    The store is listed only when its pulse has changed, and every ``sweep_seconds``: a writer may have been
    killed before its pulse, be of an older kind, or have copied files by hand.
    """

    def __init__(self, store: Store, sweep_seconds: float) -> None:
        self._store, self._sweep_seconds = store, sweep_seconds
        # Set by who takes a look over: one that was given up may still end in its thread, and nobody knows what it saw.
        self.last = Look(Catalogue(), None, float("-inf"))

    def is_due(self) -> bool:
        """Whether something has changed since the last look, or it is time. Raises :class:`StoreUnavailable`."""
        last = self.last
        pulse = self._store.pulse(last.pulse)
        return pulse is None or pulse != last.pulse or time.monotonic() - last.at >= self._sweep_seconds

    def look(self, known: Catalogue) -> Look:
        """Return the store as of now; what is ``known`` of it is not read again. Raises :class:`StoreUnavailable`."""
        # The pulse before the store: what is released in between changes it again.
        pulse, now = self._store.pulse(), time.monotonic()
        return Look(self._store.catalogue(known), pulse, now)
