"""How sure a score is, which of two is better, and how much a confidence is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import bootstrap, wilcoxon
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from adapters.tasks.base import BaseTask

Output = dict[str, Any]  # as a task reads it
Outputs = Sequence[Output]
RESAMPLES = 1000
# Fewer validation rows say less about confidence than the model itself does.
CALIBRATION_ROWS = 100
COOLEST, HOTTEST = 0.5, 5.0


def temperature(outputs: Outputs, references: Sequence[str]) -> float:
    """Return what to divide the label logits by, so that a confidence of 0.8 is right eight times of ten.

    It is what makes the rows likeliest (Guo et al. 2017, "On Calibration of Modern Neural Networks"): one number, which
    changes no answer. 1 where there are too few rows.
    """
    if len(outputs) < CALIBRATION_ROWS:
        return 1.0
    names = list(outputs[0]["scores"])
    logs = np.log(np.clip([[output["scores"][name] for name in names] for output in outputs], 1e-12, None))
    truth = [names.index(reference) for reference in references]

    def surprise(log_temperature: float) -> float:
        return -float(log_softmax(logs / np.exp(log_temperature), axis=1)[range(len(truth)), truth].mean())

    found = minimize_scalar(surprise, bounds=np.log([COOLEST, HOTTEST]), method="bounded")
    return round(float(np.exp(found.x)), 3)


def merits(task: BaseTask, outputs: Outputs, references: Sequence[str]) -> np.ndarray:
    """Return how good each output is: (rows,)."""
    return np.array(task.merits(outputs, references))


def intervals(
    task: BaseTask, outputs: Outputs, references: Sequence[str], groups: Sequence[str] = (), seed: int = 0
) -> dict[str, list[float]]:
    """Return 95 % intervals: metric → [low, high], by the bootstrap (Efron 1979) over ``groups`` of rows, because rows
    of one group are alike; over the rows, where there are none. Where all rows are right, or all wrong, every resample
    is the same: then accuracy has Wilson's interval (1927), and the others have none."""
    if len(outputs) < 2:
        return {}
    worth = merits(task, outputs, references)
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups or map(str, range(len(outputs)))):
        members.setdefault(group, []).append(row)
    together = [np.array(rows) for rows in members.values()]

    def mean(rows: np.ndarray) -> float:
        return float(worth[rows].mean())

    if not task.closed:
        return _without_none(rougeL=_interval(mean, together, seed))
    names = task.answers
    pairs = np.array([(names.index(r), names.index(task.answer(o))) for o, r in zip(outputs, references, strict=True)])

    def macro_f1(rows: np.ndarray) -> float:
        truth, told = pairs[rows].T
        return float(f1_score(truth, told, labels=range(len(names)), average="macro", zero_division=0))

    certain = _wilson(int(worth.sum()), len(worth)) if len(np.unique(worth)) == 1 else None
    return _without_none(
        accuracy=certain or _interval(mean, together, seed),
        macro_f1=None if certain else _interval(macro_f1, together, seed),
    )


def _interval(statistic: Callable[[np.ndarray], float], groups: list[np.ndarray], seed: int) -> list[float] | None:
    if len(groups) < 2:
        return None

    def of_groups(chosen: np.ndarray) -> float:
        return statistic(np.concatenate([groups[number] for number in chosen]))

    told = bootstrap(
        (np.arange(len(groups)),), of_groups, n_resamples=RESAMPLES, method="percentile", vectorized=False, rng=seed
    ).confidence_interval
    return None if told.low == told.high else [round(float(told.low), 4), round(float(told.high), 4)]


def _wilson(right: int, rows: int) -> list[float]:
    low, high = proportion_confint(right, rows, method="wilson")
    return [round(float(low), 4), round(float(high), 4)]


def _without_none(**found: list[float] | None) -> dict[str, list[float]]:
    return {metric: interval for metric, interval in found.items() if interval is not None}


def compare(
    task: BaseTask, ours: Outputs, theirs: Outputs, references: Sequence[str], other: str = "released"
) -> dict[str, float]:
    """Return the mean merit of both on the same rows, as ``candidate`` and as ``other``, and ``p_value``: how likely a
    difference like this is by chance.

    For labels by McNemar's exact test (McNemar 1947), for summaries by Wilcoxon's signed ranks (Wilcoxon 1945).
    """
    one, two = merits(task, ours, references), merits(task, theirs, references)
    if np.array_equal(one, two):
        p = 1.0
    elif task.closed:
        table = [[int(np.sum((one == a) & (two == b))) for b in (1, 0)] for a in (1, 0)]
        p = float(mcnemar(table, exact=True).pvalue)
    else:
        p = float(wilcoxon(one, two).pvalue)
    return {"candidate": float(one.mean()), other: float(two.mean()), "p_value": round(min(p, 1.0), 6)}
