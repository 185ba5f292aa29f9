"""What is wrong with rows, and what will be with the adapter that is trained on them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from adapters.personal import personal
from trainer.data import columns_of, fold_rows, folding_of, placed
from trainer.duplicates import near_duplicates
from trainer.label_noise import MOST_ROWS, suspects
from trainer.labels import doubtful
from trainer.origin import Data
from trainer.recipe import Recipe
from trainer.rows import Columns, Row, as_compared, found_table, open_table
from trainer.tables import FileTable
from trainer.task_recipe import SummarizationRecipe

SHOWN = 10
FEW_OF_A_CLASS, MAJORITY, LONG_SHARE = 10, 0.9, 0.01
# UTF-8 that was read as Latin-1 or Windows-1252 somewhere, or bytes that could not be read at all.
MANGLED = re.compile("\ufffd|Ã[\x80-\xbf©¨¼¶¤Ÿ]|â€[™œ\x9d“”˜¦]|Â[\xa0-\xbf]")


@dataclass(frozen=True)
class Finding:
    """``error``: training would refuse it; ``warning``: look at it; ``note``: good to know. Rows count from 1."""

    level: Literal["error", "warning", "note"]
    check: str
    message: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Rows:
    """The rows that can be used, and the number of each in its file."""

    numbers: list[int]
    rows: list[Row]

    @property
    def texts(self) -> list[str]:
        """All that each row's answer is an answer to."""
        return [row.asked for row in self.rows]

    @property
    def answers(self) -> list[str]:
        return [row.answer for row in self.rows]

    def numbered(self, positions: Sequence[int]) -> tuple[int, ...]:
        return tuple(self.numbers[position] for position in positions[:SHOWN])


def check_data(recipe: Recipe, cache: Path, count_tokens: Callable[[str], int]) -> list[Finding]:
    """Return what is found in the recipe's own rows, the worst first; ``count_tokens`` measures the texts.

    Raises :class:`HotswapError` where the rows cannot be read at all.
    """
    data, columns = recipe.data, columns_of(recipe)
    records = found_table(data, columns, cache).records
    if isinstance(records, FileTable) and records.problems:
        return [Finding("error", "lines", line) for line in records.problems[:SHOWN]]
    table = open_table(data, columns, cache)
    unusable, rows = [], _Rows([], [])
    for number, row, problem in table.rows():
        if row is None:
            unusable.append(Finding("error", "cells", f"row {number}: {problem}", (number,)))
            continue
        rows.numbers.append(number)
        rows.rows.append(row)
    found = [*unusable[:SHOWN], Finding("note", "rows", f"{len(rows.texts)} usable rows")]
    found += [Finding("note", "read", note) for note in table.notes]
    if table.left_out:
        text = f"{table.left_out} rows that annotators rejected, skipped or did not reach are left out"
        found.append(Finding("note", "read", text))
    rows, folded = _folded(rows, recipe, cache)
    found += folded
    if len(unusable) > SHOWN:
        found.append(Finding("error", "cells", f"and {len(unusable) - SHOWN} more rows of that kind"))
    if columns.objective == "supervised":  # elsewhere a text has several answers on purpose
        found += _same(rows)
    found += _nearly_the_same(rows, data, recipe.seed, columns.kind == "classification")
    found += _tested_elsewhere(rows, data, columns, cache)
    found += _personal(rows)
    found += _mangled(rows)
    if recipe.task.makes.closed and columns.objective == "supervised":
        found += _classes(rows)
    if rows.texts:
        found += _lengths(rows, [count_tokens(row.text) for row in rows.rows], recipe)
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.level))


def _same(rows: _Rows) -> Iterator[Finding]:
    places: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(rows.texts):
        places[as_compared(text)].append(position)
    repeated = [positions for positions in places.values() if len(positions) > 1]
    differing = [p for p in repeated if len({rows.rows[position].answer for position in p}) > 1]
    if repeated:
        extra = [position for positions in repeated for position in positions[1:]]
        text = f"{len(extra)} rows repeat the text of another; the first of each is used"
        yield Finding("note", "duplicates", text, rows.numbered(extra))
    if differing:
        text = f"{len(differing)} texts have different answers in different rows; the first one is used"
        yield Finding("warning", "contradictions", text, rows.numbered([p for ps in differing for p in ps]))


def _folded(rows: _Rows, recipe: Recipe, cache: Path) -> tuple[_Rows, list[Finding]]:
    """Return the rows with the labels they are trained on, and what is to be said about labels that look alike."""
    if recipe.task.kind != "classification":
        return rows, []
    columns, data = columns_of(recipe), recipe.data
    further = (*data.extra_tests.values(), *data.extra_train.values())
    others = [row for test in further for _, row, _ in open_table(test, columns, cache).rows() if row is not None]
    fold = folding_of(recipe, rows.rows, others)
    rows = _Rows(rows.numbers, fold_rows(rows.rows, fold))
    return rows, [
        *(Finding("note", "labels", note) for note in fold.notes()),
        *(Finding("warning", "labels", warning) for warning in fold.warnings()),
        *(Finding("warning", "labels", warning) for warning in islice(doubtful(Counter(rows.answers)), SHOWN)),
    ]


def _nearly_the_same(rows: _Rows, data: Data, seed: int, labelled: bool) -> Iterator[Finding]:
    first = {as_compared(row.asked): position for position, row in reversed(list(enumerate(rows.rows)))}
    kept = sorted(first.values())
    groups = [[kept[member] for member in group] for group in near_duplicates([rows.rows[p].asked for p in kept])]
    if not groups:
        return
    members = [position for group in groups for position in group]
    text = f"{len(members)} rows are nearly the same as another, in {len(groups)} groups"
    yield Finding("note", "near-duplicates", text, rows.numbered(members))
    if data.near_duplicates == "group":
        return
    where = placed([rows.rows[position] for position in kept], data, seed, labelled=labelled)
    crossing = [g for g in groups if len({where[rows.rows[position].group] for position in g}) > 1]
    if crossing:
        text = f"{len(crossing)} groups of near-duplicates lie in several splits, and scores will be too good: set "
        text += "data.group to a column that keeps them together, or data.near_duplicates: group"
        yield Finding("warning", "leakage", text, rows.numbered([p for g in crossing for p in g]))


def _tested_elsewhere(rows: _Rows, data: Data, columns: Columns, cache: Path) -> Iterator[Finding]:
    known = {as_compared(text) for text in rows.texts}
    further = {f"extra_tests.{name}": origin for name, origin in data.extra_tests.items()}
    further |= {f"extra_train.{name}": origin for name, origin in data.extra_train.items()}
    for name, origin in further.items():
        table = open_table(origin, columns, cache)
        read = list(table.rows())
        yield from (Finding("note", "read", f"{name}: {note}") for note in table.notes)
        unusable = [(number, problem) for number, row, problem in read if row is None]
        for number, problem in unusable[:SHOWN]:
            yield Finding("error", "cells", f"{name}: row {number}: {problem}", (number,))
        shared = [number for number, row, _ in read if row is not None and as_compared(row.asked) in known]
        if shared and name.startswith("extra_tests."):
            text = f"{name}: {len(shared)} rows are in the recipe's own data too, and its scores will be too good: "
            yield Finding("warning", "leakage", text + "take them out of one of the two", tuple(shared[:SHOWN]))


def _personal(rows: _Rows) -> Iterator[Finding]:
    where: dict[str, list[int]] = defaultdict(list)
    for position, text in enumerate(rows.texts):
        for kind in {kind for kind, _, _ in personal(text)}:
            where[kind].append(position)
    for kind, positions in sorted(where.items()):
        what = kind.lower().replace("_", " ")
        text = f"{len(positions)} rows hold personal data ({what}); data.mask: true replaces it"
        yield Finding("warning", "personal data", text, rows.numbered(positions))


def _mangled(rows: _Rows) -> Iterator[Finding]:
    where = [position for position, text in enumerate(rows.texts) if MANGLED.search(text)]
    if where:
        text = f"{len(where)} rows look as if UTF-8 was read as something else; read the source as UTF-8"
        yield Finding("warning", "encoding", text, rows.numbered(where))


def _classes(rows: _Rows) -> Iterator[Finding]:
    counts = Counter(rows.answers)
    if len(counts) < 2:
        yield Finding("error", "classes", f"one label only ({', '.join(counts)}); a classifier needs two")
        return
    shares = ", ".join(f"{label} {count}" for label, count in counts.most_common(SHOWN))
    yield Finding("note", "classes", f"{len(counts)} labels: {shares}")
    if counts.most_common(1)[0][1] > MAJORITY * len(rows.texts):
        text = "one label has nine rows of ten: accuracy will look good for nothing; gate on macro_f1"
        yield Finding("warning", "classes", text)
    for label, count in sorted(counts.items()):
        if count < FEW_OF_A_CLASS:
            yield Finding("warning", "classes", f"'{label}' has {count} rows; find more, or merge it with another")
    doubted = suspects(rows.texts, rows.answers)
    if doubted:
        first = [(rows.numbers[p], rows.rows[p].answer, likelier) for p, likelier in doubted[:5]]
        examples = "; ".join(f"row {number} {answer} → {likelier}?" for number, answer, likelier in first)
        looked_at = f" of {MOST_ROWS} rows, drawn by chance," if len(rows.texts) > MOST_ROWS else ""
        by = "doubted by a classifier that did not see them"
        text = f"{len(doubted)} labels{looked_at} are {by}; look at the first: {examples}"
        yield Finding("warning", "label noise", text, rows.numbered([position for position, _ in doubted]))


def _lengths(rows: _Rows, lengths: list[int], recipe: Recipe) -> Iterator[Finding]:
    limit = recipe.task.max_input_tokens
    median, most = np.percentile(lengths, [50, 95])
    yield Finding("note", "length", f"tokens: median {median:.0f}, 95 % below {most:.0f}, longest {max(lengths)}")
    long = [position for position, length in enumerate(lengths) if length > limit]
    if len(long) > LONG_SHARE * len(lengths):
        in_chunks = isinstance(recipe.task, SummarizationRecipe) and recipe.task.long == "chunks"
        done = "read in parts" if in_chunks else "cut"
        text = f"{len(long)} texts are longer than task.max_input_tokens ({limit}) and are {done}"
        yield Finding("note" if in_chunks else "warning", "length", text, rows.numbered(long))


def as_records(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Return the findings as they are printed and kept."""
    return [{"level": f.level, "check": f.check, "finding": f.message, "rows": list(f.rows)} for f in findings]
