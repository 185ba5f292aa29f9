"""The server's log: a line a message, whatever text is in it."""

from __future__ import annotations

import logging
import sys

from adapters.text import escaped


class OneLine(logging.Formatter):
    """Names and reasons come from users and from the store; only a traceback has lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return escaped(super().formatException(ei), keep="\n")  # type: ignore[arg-type]


def set_up(level: str) -> None:
    """Have the server's messages, and warnings of its libraries, on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    ours, uvicorn = logging.getLogger("hotswap"), logging.getLogger("uvicorn")
    for logger in (ours, uvicorn):
        logger.addHandler(handler)
        logger.propagate = False
    ours.setLevel(level.upper())
    # Of clients that speak no HTTP it would say so each time.
    uvicorn.setLevel(logging.ERROR)
