"""The log: a line a message, and tracebacks as they are."""

from __future__ import annotations

import json
import logging

from service import tracing
from service.logs import OneLine, as_json


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


def test_as_json_a_failure_has_its_frames_without_the_values_of_variables_and_its_request() -> None:
    def fail(text: str) -> None:
        raise ValueError("bad")

    try:
        fail("what a user wrote")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    told = tracing.facts.set({"request": "req_1", "adapter": "mood"})
    record = logging.LogRecord("hotswap", logging.ERROR, "", 0, "it %s", ("failed\nhere",), info)
    line = as_json().format(record)
    tracing.facts.reset(told)
    assert "\n" not in line
    content = json.loads(line)
    assert (content["event"], content["level"], content["request"]) == ("it failed\nhere", "error", "req_1")
    assert content["exception"][0]["exc_value"] == "bad"
    assert content["exception"][0]["frames"][-1]["name"] == "fail"
    assert "what a user wrote" not in line
