"""Test rows scored apart: by their length, and by the columns that a recipe names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from trainer.codec import Codec
from trainer.evaluation import Share, Slice
from trainer.rows import Row
from trainer.statistics import Outputs, merits

LEAST_ROWS = 20  # fewer say too little to be compared
LENGTH = "length"
Positions = dict[str, list[int]]  # a column's value → which rows have it


def slices_of(outputs: Outputs, rows: Sequence[Row], codec: Codec) -> dict[str, Slice]:
    """Return the mean merit (accuracy, ROUGE-L) of the test rows apart, by thirds of their length and by each column of
    ``data.slices``; ``gap`` is the largest difference between those of at least 20 rows, where there are two. For
    labels, columns have :func:`fairness` too."""
    worth = merits(codec.task, outputs, [row.answer for row in rows])
    columns: dict[str, Positions] = {}
    for position, row in enumerate(rows):
        for column, value in row.slices:
            columns.setdefault(column, {}).setdefault(value, []).append(position)
    by = {LENGTH: _thirds([len(codec.base.tokenizer.encode(row.text)) for row in rows])}
    by |= {column: dict(sorted(values.items())) for column, values in columns.items()}
    found = {column: _apart(values, worth) for column, values in by.items()}
    if codec.task.closed:
        given, wanted = [codec.task.answer(output) for output in outputs], [row.answer for row in rows]
        for column in columns:
            found[column] = found[column].model_copy(update=fairness(columns[column], given, wanted))
    return found


def fairness(groups: Positions, given: Sequence[str], wanted: Sequence[str]) -> dict[str, float | None]:
    """Return what differs most between groups of at least 20 rows, over all labels; none where there are no two.

    ``demographic_parity``: the share of rows that are given a label (Dwork et al. 2012, arXiv:1104.3913).
    ``equal_opportunity``: the share of a label's own rows, where a group has 20 of them, that are given it (Hardt et
    al. 2016, arXiv:1610.02413).
    """
    parity: list[float] = []
    opportunity: list[float] = []
    for label in sorted({*given, *wanted}):
        told = {group: np.array([given[p] == label for p in rows]) for group, rows in groups.items()}
        true = {group: np.array([wanted[p] == label for p in rows]) for group, rows in groups.items()}
        parity += _gap([each for each in told.values() if len(each) >= LEAST_ROWS])
        opportunity += _gap([told[group][own] for group, own in true.items() if own.sum() >= LEAST_ROWS])
    return {
        "demographic_parity": max(parity, default=None),
        "equal_opportunity": max(opportunity, default=None),
    }


def _thirds(lengths: list[int]) -> Positions:
    low, high = np.percentile(lengths, [100 / 3, 200 / 3])
    names = (f"to {low:.0f} tokens", f"to {high:.0f} tokens", "longer")
    found: Positions = {name: [] for name in names}
    for position, length in enumerate(lengths):
        found[names[0 if length <= low else 1 if length <= high else 2]].append(position)
    return {name: rows for name, rows in found.items() if rows}


def _apart(values: Positions, worth: np.ndarray) -> Slice:
    compared = [worth[rows] for rows in values.values() if len(rows) >= LEAST_ROWS]
    return Slice(
        values={v: Share(rows=len(rows), score=float(worth[rows].mean())) for v, rows in values.items()},
        gap=next(iter(_gap(compared)), None),
    )


def _gap(groups: Sequence[np.ndarray]) -> list[float]:
    """Return the largest difference between the means of the groups; nothing of fewer than two."""
    means = [float(group.mean()) for group in groups]
    return [max(means) - min(means)] if len(means) > 1 else []
