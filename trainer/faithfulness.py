"""How a summary stands to its source: what it copies, how much it leaves out, and what it may have made up."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import mean

NUMBER = re.compile(r"\d+(?:[.,:/-]\d+)*")
# A capital that no sentence begins with: a name, most of the time, in languages that write nouns small.
NAME = re.compile(r"(?<=[a-z0-9,;:)] )[A-Z][\w-]+")


def faithfulness(sources: Sequence[str], summaries: Sequence[str]) -> dict[str, float]:
    """Return means over the summaries.

    ``coverage``: share of a summary's words that are in fragments copied from the source; ``density``: mean squared
    length of these; ``compression``: source words per summary word (all Grusky et al. 2018, arXiv:1804.11283).
    ``novel_bigrams``: share of its pairs of words that the source does not have. ``unsupported``: share of summaries
    with a number or name that is not in the source: a hint of invention to be read, not a verdict.
    """
    rows = [_one(_words(source), _words(summary)) for source, summary in zip(sources, summaries, strict=True)]
    means = {name: mean(row[name] for row in rows) for name in rows[0]}
    doubtful = [bool(unsupported(source, summary)) for source, summary in zip(sources, summaries, strict=True)]
    return {**means, "unsupported": mean(doubtful)}


def unsupported(source: str, summary: str) -> list[str]:
    """Return the summary's numbers and names that are not in the source."""
    known = source.lower()
    return [found for found in (*NUMBER.findall(summary), *NAME.findall(summary)) if found.lower() not in known]


def _one(source: list[str], summary: list[str]) -> dict[str, float]:
    lengths, words = list(_fragments(source, summary)), max(1, len(summary))
    pairs = set(pairwise(source))
    own = list(pairwise(summary))
    return {
        "coverage": sum(lengths) / words,
        "density": sum(length**2 for length in lengths) / words,
        "compression": len(source) / words,
        "novel_bigrams": sum(pair not in pairs for pair in own) / max(1, len(own)),
    }


def _fragments(source: list[str], summary: list[str]) -> Iterator[int]:
    """Yield the lengths of the longest runs of words shared in order, found greedily from the left."""
    where: dict[str, list[int]] = {}
    for position, word in enumerate(source):
        where.setdefault(word, []).append(position)
    at = 0
    while at < len(summary):
        best = max((_shared(source[start:], summary[at:]) for start in where.get(summary[at], ())), default=0)
        if best:
            yield best
        at += max(1, best)


def _shared(one: list[str], other: list[str]) -> int:
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", text.lower())
