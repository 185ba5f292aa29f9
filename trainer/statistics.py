"""How sure a score is, which of two is better, and how much a confidence is worth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import DegenerateDataWarning, bootstrap, wilcoxon
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from adapters.tasks.base import BaseTask

Output = dict[str, Any]  # as a task reads it
Outputs = Sequence[Output]
RESAMPLES = 1000
MOST_NUMBERS = 10_000_000  # in memory at a time, 8 bytes each
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
    task: BaseTask,
    outputs: Outputs,
    references: Sequence[str],
    groups: Sequence[str] = (),
    seed: int = 0,
    *,
    merit_only: bool = False,
) -> dict[str, list[float]]:
    """Return 95 % intervals: metric → [low, high], by the BCa bootstrap (Efron 1987) over ``groups`` of rows, because
    rows of one group are alike; over the rows, where there are none. BCa corrects what plain percentiles get wrong of
    macro-F1 and of groups of unlike size: a bias, and a spread that depends on the value. Where all rows are right, or
    all wrong, every resample is the same: then accuracy has Wilson's interval (1927), and the others have none.
    ``merit_only`` leaves out what takes seconds, macro-F1 of many labels."""
    if len(outputs) < 2:
        return {}
    worth = merits(task, outputs, references)
    _, member = np.unique(list(groups) or np.arange(len(outputs)), return_inverse=True)

    def interval(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray]) -> list[float] | None:
        of_groups = np.zeros((int(member.max()) + 1, sums.shape[1]))
        np.add.at(of_groups, member, sums)
        return _interval(of_groups, statistic, seed)

    if len(np.unique(worth)) == 1:
        return {"accuracy": _wilson(int(worth.sum()), len(worth))} if task.closed else {}
    mean = interval(np.column_stack([worth, np.ones(len(worth))]), lambda totals: totals[..., 0] / totals[..., 1])
    if merit_only or not task.closed:
        return _without_none(**{task.merit_metric: mean})
    counted = _counted(task, outputs, references)
    share = float((counted.sum(axis=0).reshape(3, -1)[1:].sum(axis=0) > 0).mean())
    return _without_none(accuracy=mean, macro_f1=interval(counted, lambda totals: share * _mean_f1(totals)))


def _counted(task: BaseTask, outputs: Outputs, references: Sequence[str]) -> np.ndarray:
    """Return what F1 is made of: (rows, 3 times the labels), ones where a row was given a label rightly, is of it, and
    was given it."""
    place = {name: number for number, name in enumerate(task.answers)}
    truth, told = (np.array([place[name] for name in names]) for names in (references, map(task.answer, outputs)))
    counted = np.zeros((len(truth), 3, len(place)))
    rows = np.arange(len(truth))
    counted[rows, 0, truth] = truth == told
    counted[rows, 1, truth] = 1
    counted[rows, 2, told] = 1
    return counted.reshape(len(truth), -1)


def _mean_f1(totals: np.ndarray) -> np.ndarray:
    """Return the mean F1 of the labels that occur: a resample without a rare label says nothing of it, and a zero would
    draw every resample down."""
    right, truth, told = np.moveaxis(totals.reshape(*totals.shape[:-1], 3, -1), -2, 0)
    either = truth + told
    f1 = np.divide(2 * right, either, out=np.zeros_like(right), where=either > 0)
    return np.asarray(f1.sum(axis=-1) / (either > 0).sum(axis=-1))


def _interval(sums: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], seed: int) -> list[float] | None:
    """Return the interval of a ``statistic`` of (…, n) totals over resampled groups, whose own are ``sums``:
    (groups, n)."""
    if len(sums) < 2:
        return None

    def of_groups(chosen: np.ndarray, axis: int) -> np.ndarray:
        return statistic(sums[np.moveaxis(chosen, axis, -1)].sum(axis=-2))

    batch = max(1, MOST_NUMBERS // sums.size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DegenerateDataWarning)  # then both ends are nan
        found = bootstrap(
            (np.arange(len(sums)),), of_groups, n_resamples=RESAMPLES, method="BCa", batch=batch, axis=-1, rng=seed
        ).confidence_interval
    if not np.isfinite([found.low, found.high]).all() or found.low == found.high:
        return None
    return [round(float(found.low), 4), round(float(found.high), 4)]


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
