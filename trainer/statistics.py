"""How sure a score is, which of two is better, and how much a confidence is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scipy.stats import bootstrap, wilcoxon
from sklearn.metrics import f1_score
from statsmodels.stats.contingency_tables import mcnemar

from adapters.tasks.base import BaseTask

Outputs = Sequence[dict[str, Any]]
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
    """Return how good each output is: (rows,), right or wrong for a label, ROUGE-L for a summary."""
    if outputs and "label" in outputs[0]:
        return np.array([float(o["label"] == r) for o, r in zip(outputs, references, strict=True)])
    return np.array([task.score([o], [r])["rougeL"] for o, r in zip(outputs, references, strict=True)])


def intervals(task: BaseTask, outputs: Outputs, references: Sequence[str], seed: int = 0) -> dict[str, list[float]]:
    """Return 95 % intervals by the bootstrap over rows (Efron 1979): metric → [low, high]."""
    if len(outputs) < 2:
        return {}
    worth = merits(task, outputs, references)
    if "label" not in outputs[0]:
        return {"rougeL": _interval(worth, np.mean, seed)}
    names = sorted({*references, *(output["label"] for output in outputs)})
    pairs = np.array([(names.index(r), names.index(o["label"])) for o, r in zip(outputs, references, strict=True)])

    def macro_f1(rows: np.ndarray) -> float:
        truth, told = pairs[rows.astype(int)].T
        return float(f1_score(truth, told, labels=range(len(names)), average="macro", zero_division=0))

    return {
        "accuracy": _interval(worth, np.mean, seed),
        "macro_f1": _interval(np.arange(len(worth)), macro_f1, seed),
    }


def _interval(sample: np.ndarray, statistic: Any, seed: int) -> list[float]:
    if len(np.unique(sample)) == 1:
        return [float(statistic(sample))] * 2  # every resample is the same
    vectorized = statistic is np.mean
    told = bootstrap(
        (sample,), statistic, n_resamples=RESAMPLES, method="percentile", vectorized=vectorized, rng=seed
    ).confidence_interval
    return [round(float(told.low), 4), round(float(told.high), 4)]


def compare(task: BaseTask, ours: Outputs, theirs: Outputs, references: Sequence[str]) -> dict[str, float]:
    """Return the mean merit of both on the same rows, and ``p_value``: how likely a difference like this is by chance.

    For labels by McNemar's exact test (McNemar 1947), for summaries by Wilcoxon's signed ranks (Wilcoxon 1945).
    """
    one, other = merits(task, ours, references), merits(task, theirs, references)
    if np.array_equal(one, other):
        p = 1.0
    elif ours and "label" in ours[0]:
        table = [[int(np.sum((one == a) & (other == b))) for b in (1, 0)] for a in (1, 0)]
        p = float(mcnemar(table, exact=True).pvalue)
    else:
        p = float(wilcoxon(one, other).pvalue)
    return {"candidate": float(one.mean()), "released": float(other.mean()), "p_value": round(min(p, 1.0), 6)}
