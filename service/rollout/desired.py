"""What the store says shall be served, looked up as cheaply as can be."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

from adapters.errors import InvalidAdapter
from adapters.store import Release, Store
from service.metrics import Metrics

logger = logging.getLogger("hotswap")


@dataclass(frozen=True)
class Wanted:
    """The newest release of every adapter, and the versions that nobody is to be served by any more."""

    releases: dict[str, Release] = field(default_factory=dict)
    retired: dict[str, set[int]] = field(default_factory=dict)


class Desired:
    """What the store wants served.

    The store is read whole only when its pulse has changed, and every ``sweep_seconds``: a writer may have been
    killed before its pulse, be of an older kind, or have copied files by hand.
    """

    def __init__(self, store: Store, metrics: Metrics, sweep_seconds: float) -> None:
        self._store, self._metrics, self._sweep_seconds = store, metrics, sweep_seconds
        self._damaged: dict[str, str] = {}
        # One value: a look that was given up may still be under way in its thread when the next one begins, and
        # must not leave what it found under the other's pulse.
        self._seen: tuple[str | None, float, Wanted] = (None, float("-inf"), Wanted())

    def look(self, *, sweep: bool = False) -> Wanted:
        """Return it as of now; ``sweep`` reads the store whatever its pulse. Raises :class:`StoreUnavailable`."""
        known, swept, wanted = self._seen
        # The pulse before the store: what is released in between changes it again.
        pulse, now = self._store.pulse(known), time.monotonic()
        if sweep or pulse is None or pulse != known or now - swept >= self._sweep_seconds:
            wanted = self._sweep()
            self._seen = pulse, now, wanted
        return wanted

    def _sweep(self) -> Wanted:
        """A damaged record concerns its own adapter alone."""
        wanted = Wanted()
        for name in self._store.names():
            wanted.retired[name] = self._store.retired(name)
            try:
                release = self._store.released(name)
            except InvalidAdapter as error:
                self._metrics.store_errors.inc()
                if self._damaged.get(name) != str(error):
                    logger.warning("%s What it serves stays.", error)
                self._damaged[name] = str(error)
                continue
            self._damaged.pop(name, None)
            if release is not None:
                wanted.releases[name] = release
        return wanted
