"""What the service's users said of its answers, as its log (``HOTSWAP_FEEDBACK_LOG``) and its export have it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from adapters.errors import HotswapError
from adapters.feedback import Record, latest


def read_log(paths: Iterable[Path], adapter: str) -> list[Record]:
    """Return what was said of one adapter's answers; of the same answer to the same text, what was said last.

    Raises :class:`HotswapError` for a line that is none of the service's, and where nothing was said.
    """
    found = latest(_records(paths, adapter))
    if not found:
        raise HotswapError(f"nothing was said of '{adapter}' there; is it the adapter's name?")
    return found


def _records(paths: Iterable[Path], adapter: str) -> Iterator[Record]:
    for path in paths:
        try:
            # Not splitlines, which splits at U+2028 too: JSON may hold it as it is.
            lines = path.read_bytes().decode("utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise HotswapError(f"cannot read {path}: {error}") from None
        for number, line in enumerate(lines, start=1):
            record = _record(line, f"{path}, line {number}") if line.strip() else None
            if record and record["adapter"] == adapter:
                yield record


def _record(line: str, where: str) -> Record:
    try:
        record = json.loads(line)
        texts = [record[key] for key in ("adapter", "task", "text", "answer")]
        fits = all(isinstance(text, str) for text in texts) and isinstance(record["good"], bool)
        fits = fits and isinstance(record.get("better"), str | None)
    except (ValueError, KeyError, TypeError, RecursionError):
        fits = False
    if not fits:
        raise HotswapError(
            f"{where} is no feedback; HOTSWAP_FEEDBACK_LOG and 'python -m service feedback export' write such files "
            "(rows that were exported for an objective are trained on as they are)."
        )
    return {key: _whole(value) if isinstance(value, str) else value for key, value in record.items()}


def _whole(text: str) -> str:
    """Return ``text`` with U+FFFD for halves of surrogate pairs, which JSON can spell and UTF-8 cannot."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text)
