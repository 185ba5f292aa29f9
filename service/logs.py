"""The server's log: a line a message, whatever text is in it; as text for people, or as JSON for machines."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

from adapters.text import escaped
from service import tracing


class OneLine(logging.Formatter):
    """Names and reasons come from users and from the store; only a traceback has lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return escaped(super().formatException(ei), keep="\n")  # type: ignore[arg-type]


def as_json() -> logging.Formatter:
    """Return what writes an object a line: time, level, event, and what is known of the request; tracebacks as
    lists of frames without the values of variables, which may be texts of users."""
    frames = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.ExtraAdder(),
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _of_the_request,
            structlog.processors.ExceptionRenderer(frames),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
    )


def _of_the_request(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {**(tracing.facts.get() or {}), **event}


def set_up(level: str, form: Literal["text", "json"] = "text") -> None:
    """Have the server's messages, and warnings of its libraries, on standard error. SIGUSR1 turns debugging on, and
    off again."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(as_json() if form == "json" else OneLine("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    ours, uvicorn = logging.getLogger("hotswap"), logging.getLogger("uvicorn")
    for logger in (ours, uvicorn):
        logger.handlers[:] = [handler]
        logger.propagate = False
    ours.setLevel(level.upper())
    # Of clients that speak no HTTP it would say so each time.
    uvicorn.setLevel(logging.ERROR)

    def toggle(*_: object) -> None:
        ours.setLevel(level.upper() if ours.level == logging.DEBUG else logging.DEBUG)
        ours.warning("log level: %s", logging.getLevelName(ours.level).lower())

    signal.signal(signal.SIGUSR1, toggle)
