"""A store on a local disk says itself when something was released."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from adapters.store import PULSE, Store

logger = logging.getLogger("hotswap")
# Milliseconds between looks at what the system reported, and for which reports are gathered into one.
STEP = 50


async def watch(store: Store, wake: Callable[[], None]) -> None:
    """Call ``wake`` whenever the store's pulse changes, until cancelled; return at once where there is no folder.

    One folder is watched, not those below it: weights on their way in wake nobody. Where watching is not
    possible the log says so, and polling goes on; a network drive does not report what other machines write.
    """
    if store.folder is None:
        return
    from watchfiles import awatch

    def pulse(_: object, path: str) -> bool:
        return Path(path).name == PULSE

    try:
        async for _ in awatch(store.folder, watch_filter=pulse, recursive=False, debounce=STEP, step=STEP):
            wake()
    except Exception as error:  # no such folder, too many watches, a file system without any
        logger.warning("%s cannot be watched (%s); it is asked every HOTSWAP_POLL_SECONDS", store.place, error)
