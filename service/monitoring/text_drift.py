"""Are these texts like those? A kernel two-sample test says whether, and a classifier says by which words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERMUTATIONS = 999
# Of each side: the kernel of both has 32 MB then.
MOST = 1000
LEAST = 20
SHOWN_WORDS, SHOWN_TEXTS, FOLDS = 20, 15, 5


@dataclass(frozen=True)
class Difference:
    """What tells ``live`` texts from ``reference`` ones.

    ``p_value`` of the null hypothesis that both are drawn alike; ``auc`` of a classifier on texts that it did not see:
    0.5 where nothing tells them apart. ``words`` of live texts, and of reference texts, with their weights; ``newest``
    are the live texts that look least like the reference, with the probability that they are live.
    """

    reference: int
    live: int
    p_value: float
    auc: float
    words: list[tuple[str, float]]
    missing: list[tuple[str, float]]
    newest: list[tuple[str, float]]


def difference(reference: Sequence[str], live: Sequence[str], seed: int = 0) -> Difference:
    """Compare two samples of texts, at most MOST of each.

    The test is the maximum mean discrepancy with a linear kernel of TF-IDF vectors, its p-value by permutation
    (Gretton et al. 2012, "A Kernel Two-Sample Test"), which holds for samples of any size. Raises :class:`ValueError`
    where there are fewer than LEAST of either, or no words.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    chance = np.random.default_rng(seed)
    ours, theirs = (_sample(texts, chance) for texts in (reference, live))
    if min(len(ours), len(theirs)) < LEAST:
        raise ValueError(f"{len(ours)} reference texts and {len(theirs)} live ones: {LEAST} of each are needed")
    texts, side = [*ours, *theirs], np.repeat([0, 1], [len(ours), len(theirs)])
    words = TfidfVectorizer(sublinear_tf=True, min_df=2)
    vectors = words.fit_transform(texts)
    model = LogisticRegression(C=10.0, max_iter=1000, class_weight="balanced")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(model, vectors, side, cv=folds, method="predict_proba")[:, 1]
    weights = model.fit(vectors, side).coef_[0]
    names, order = words.get_feature_names_out(), np.argsort(weights)
    newest = sorted(zip(theirs, scores[side == 1], strict=True), key=lambda each: -each[1])
    return Difference(
        len(ours),
        len(theirs),
        _p_value((vectors @ vectors.T).toarray(), side, chance),
        float(roc_auc_score(side, scores)),
        [(str(names[i]), float(weights[i])) for i in order[::-1][:SHOWN_WORDS] if weights[i] > 0],
        [(str(names[i]), float(-weights[i])) for i in order[:SHOWN_WORDS] if weights[i] < 0],
        [(text, float(score)) for text, score in newest[:SHOWN_TEXTS]],
    )


def _sample(texts: Sequence[str], chance: np.random.Generator) -> list[str]:
    """Return distinct texts, at most MOST of them: one text that is sent again and again is no new kind of texts."""
    distinct = list(dict.fromkeys(texts))
    chosen = chance.permutation(len(distinct))[:MOST]
    return [distinct[i] for i in sorted(chosen)]


def _p_value(kernel: np.ndarray, side: np.ndarray, chance: np.random.Generator) -> float:
    sides = np.stack([side, *(chance.permutation(side) for _ in range(PERMUTATIONS))])
    signs = sides / sides.sum(1, keepdims=True) - (1 - sides) / (1 - sides).sum(1, keepdims=True)
    found = ((signs @ kernel) * signs).sum(1)
    return float((found >= found[0] - 1e-12).mean())
