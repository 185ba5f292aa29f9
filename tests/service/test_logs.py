"""The log: a line a message, and tracebacks as they are."""

from __future__ import annotations

import logging

from service.logs import OneLine


def formatted(message: str, *arguments: object, error: Exception | None = None) -> str:
    info = (type(error), error, error.__traceback__) if error else None
    return OneLine("%(levelname)s %(message)s").format(
        logging.LogRecord("hotswap", logging.INFO, "", 0, message, arguments, info)
    )


def test_what_comes_from_elsewhere_cannot_begin_a_line_or_move_a_cursor() -> None:
    forged = "x\r\n23:59 INFO mood: generation 9\x1b[31m\u202e\u2028\x00"
    assert formatted("why: %s", forged) == r"INFO why: x\r\n23:59 INFO mood: generation 9\x1b[31m\u202e\u2028\x00"


def test_letters_of_any_language_stay() -> None:
    assert formatted("für 猫 …") == "INFO für 猫 …"


def test_a_traceback_keeps_its_lines_and_loses_its_escapes() -> None:
    try:
        raise ValueError("bad\x1b[31m")
    except ValueError as error:
        lines = formatted("failed", error=error).splitlines()
    assert lines[:2] == ["INFO failed", "Traceback (most recent call last):"]
    assert lines[-1] == r"ValueError: bad\x1b[31m"
