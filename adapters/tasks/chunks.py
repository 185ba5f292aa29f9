"""A long text in pieces that a model can read: whole sentences, of about the same length."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

BLOCK_CHARS = 2000


def in_chunks(text: str, limit: int, count: Callable[[str], int]) -> list[str]:
    """Return ``text`` in as few pieces as fit, none of which ``count`` finds longer than ``limit``.

    A sentence that is too long by itself is divided between words, a word between characters.
    """
    pieces = [piece for sentence in sentences(text) for piece in _fitting(sentence, limit, count)]
    sizes = [count(piece) for piece in pieces]
    wanted = sum(sizes) / max(1, math.ceil(sum(sizes) / limit))
    chunks: list[str] = []
    size = math.inf
    for piece, more in zip(pieces, sizes, strict=True):
        if size + more > limit or size + more / 2 > wanted:
            chunks.append("")
            size = 0
        chunks[-1] += piece
        size += more
    # The tokens of a chunk may be a few more than those of its pieces together.
    fitting = (part.strip() for chunk in chunks for part in _fitting(chunk, limit, count))
    return [part for part in fitting if part]


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of each line, the white space behind them included: their sum is the text."""
    for line in text.splitlines(keepends=True):
        for block in _blocks(line):
            yield from _segmenter().segment(block) if block.strip() else [block]


def _blocks(line: str) -> Iterator[str]:
    """Yield a line in pieces whose length pysbd can bear: its time grows with the square of it."""
    while len(line) > BLOCK_CHARS:
        end = max(line.rfind(mark, 0, BLOCK_CHARS) + 2 for mark in (". ", "! ", "? "))
        end = end if end > 1 else line.rfind(" ", 0, BLOCK_CHARS) + 1 or BLOCK_CHARS
        yield line[:end]
        line = line[end:]
    yield line


@cache
def _segmenter() -> Any:
    import pysbd  # of rules, no model; abbreviations and numbers do not end its sentences

    return pysbd.Segmenter(language="en", clean=False)


def _fitting(text: str, limit: int, count: Callable[[str], int]) -> Iterator[str]:
    if len(text) < 2 or count(text) <= limit:
        yield text
        return
    blank = text.rfind(" ", 1, len(text) // 2 + 1)
    middle = blank if blank > 0 else len(text) // 2
    yield from _fitting(text[:middle], limit, count)
    yield from _fitting(text[middle:], limit, count)
