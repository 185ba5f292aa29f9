"""What the store says shall be served, looked up as cheaply as can be."""

from __future__ import annotations

import time

from adapters.catalogue import Catalogue
from adapters.store import Store


class Desired:
    """The newest catalogue.

    The store is listed only when its pulse has changed, and every ``sweep_seconds``: a writer may have been
    killed before its pulse, be of an older kind, or have copied files by hand.
    """

    def __init__(self, store: Store, sweep_seconds: float) -> None:
        self._store, self._sweep_seconds = store, sweep_seconds
        # One value: a look that was given up may still be under way in its thread when the next one begins, and
        # must not leave what it saw under the other's pulse.
        self._seen: tuple[str | None, float, Catalogue] = (None, float("-inf"), Catalogue())

    def is_due(self) -> bool:
        """Whether something has changed, or it is time to look at all. Raises :class:`StoreUnavailable`."""
        known, swept, _ = self._seen
        pulse = self._store.pulse(known)
        return pulse is None or pulse != known or time.monotonic() - swept >= self._sweep_seconds

    @property
    def catalogue(self) -> Catalogue:
        """What was seen last."""
        return self._seen[2]

    def look(self) -> Catalogue:
        """Return the store as of now. Raises :class:`StoreUnavailable`."""
        # The pulse before the store: what is released in between changes it again.
        pulse, now = self._store.pulse(), time.monotonic()
        catalogue = self._store.catalogue(self.catalogue)
        self._seen = pulse, now, catalogue
        return catalogue
