"""Labels that are probably wrong, by the opinion of a classifier that did not see them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

FOLDS, LEAST_ROWS = 5, 100


def suspects(texts: Sequence[str], labels: Sequence[str], seed: int = 0) -> list[tuple[int, str]]:
    """Return (position, the likelier label), the most suspicious first; nothing of fewer than 100 rows.

    Confident learning (Northcutt et al. 2021, arXiv:1911.00068) by cleanlab, on out-of-fold scores of a logistic
    regression on words and pairs of words: quick, and blind to the base model's own mistakes.
    """
    counts = Counter(labels)
    if len(texts) < LEAST_ROWS or len(counts) < 2 or min(counts.values()) < FOLDS:
        return []
    from cleanlab.filter import find_label_issues
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    names = sorted(counts)
    given = np.array([names.index(label) for label in labels])
    judge = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    scores = cross_val_predict(judge, list(texts), given, cv=folds, method="predict_proba")
    ranked = find_label_issues(given, scores, return_indices_ranked_by="self_confidence", n_jobs=1)
    return [(int(position), names[int(scores[position].argmax())]) for position in ranked]
