"""What a sensible person tries first, without a language model: it says whether fine-tuning was worth it."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from adapters.progress import counted
from adapters.tasks.base import BaseTask
from adapters.tasks.chunks import sentences
from trainer.data import Splits
from trainer.rows import Row
from trainer.statistics import Output, merits

Answer = Callable[[Sequence[Row]], list[Output]]
INVERSE_PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
MOST_ROWS = 20_000  # of which a word model is made: more cost minutes and tell it little


@dataclass(frozen=True)
class Baseline:
    """``name`` says what it does; ``answer`` gives an output of the task for each row."""

    name: str
    answer: Answer


def baseline_of(splits: Splits, task: BaseTask) -> Baseline | None:
    """Return what the adapter has to beat, fitted on the training rows and chosen on those of validation: TF-IDF with
    logistic regression, the lead of the text, or an answer of the training rows. None where the rows do not allow for
    one."""
    train, validation = ([row for row in rows if row.good] for rows in (splits.train, splits.validation))
    if not train or not validation:
        return None
    if task.conversational:
        return _known_answer(train, validation, task)
    return _word_model(train, validation, task) if task.closed else _lead(train, validation, task)


def _word_model(train: list[Row], validation: list[Row], task: BaseTask) -> Baseline | None:
    """Words and pairs of words, weighed by TF-IDF with sublinear counts; the penalty is that with the best accuracy on
    validation."""
    train = train[:MOST_ROWS]  # they are shuffled
    labels = [row.answer for row in train]
    if len(set(labels)) < 2:
        return None
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    try:
        seen = words.fit_transform(row.text for row in train)
    except ValueError:  # no words at all
        return None
    held_out, wanted = words.transform(row.text for row in validation), [row.answer for row in validation]
    model = LogisticRegression(max_iter=300, warm_start=True)
    best, coefficients = -1.0, (model, 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for inverse in counted(INVERSE_PENALTIES, len(INVERSE_PENALTIES), "TF-IDF", "penalties"):
            model.set_params(C=inverse).fit(seen, labels)
            if (reached := float(model.score(held_out, wanted))) > best:
                best, coefficients = reached, (_copied(model), inverse)
    chosen, inverse = coefficients

    def answer(rows: Sequence[Row]) -> list[Output]:
        shares = chosen.predict_proba(words.transform(row.text for row in rows))
        return [_output(dict(zip(chosen.classes_, map(float, row), strict=True)), task) for row in shares]

    return Baseline(f"TF-IDF with logistic regression (C = {inverse:g})", answer)


def _copied(model: LogisticRegression) -> LogisticRegression:
    """Return the model as it is; a warm start goes on in the same arrays."""
    copy = LogisticRegression()
    copy.classes_, copy.coef_, copy.intercept_ = model.classes_, model.coef_.copy(), model.intercept_.copy()
    copy.n_features_in_ = model.n_features_in_
    return copy


def _output(shares: dict[str, float], task: BaseTask) -> Output:
    scores = {label: shares.get(label, 0.0) for label in task.answers}
    best = max(scores, key=scores.__getitem__)
    return {"label": best, "score": scores[best], "scores": scores}


def _lead(train: list[Row], validation: list[Row], task: BaseTask) -> Baseline:
    """The beginning of the text is the strongest simple summary there is: its first sentence, or as many words as the
    training summaries have (their median), whichever has the better ROUGE-L on validation."""
    count = max(1, round(median(len(row.answer.split()) for row in train)))
    leads = {
        "the first sentence": lambda text: next((s.strip() for s in sentences(text) if s.strip()), text),
        f"the first {count} words": lambda text: " ".join(text.split()[:count]),
    }

    def answering(lead: Callable[[str], str]) -> Answer:
        return lambda rows: [task.saying(lead(re.sub(r"\s+", " ", row.text))) for row in rows]

    return _best({name: answering(lead) for name, lead in leads.items()}, validation, task)


def _known_answer(train: list[Row], validation: list[Row], task: BaseTask) -> Baseline:
    """The answer of the training row whose text is nearest by TF-IDF, or that which most of them have, whichever has
    the better ROUGE-L on validation: what looks answers up instead of making them."""
    train = train[:MOST_ROWS]
    usual = Counter(row.answer for row in train).most_common(1)[0][0]
    known: dict[str, Answer] = {"the most frequent answer": lambda rows: [task.saying(usual) for _ in rows]}
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, dtype=np.float32)
    try:
        seen = words.fit_transform(row.asked for row in train)
    except ValueError:  # no words at all
        return _best(known, validation, task)

    def nearest(rows: Sequence[Row]) -> list[Output]:
        found = (words.transform([row.asked]) @ seen.T for row in rows)
        return [task.saying(train[int(similar.toarray().argmax())].answer) for similar in found]

    return _best({**known, "the answer to the nearest text (TF-IDF)": nearest}, validation, task)


def _best(ways: dict[str, Answer], validation: list[Row], task: BaseTask) -> Baseline:
    references = [row.answer for row in validation]
    reached = {name: merits(task, answer(validation), references).mean() for name, answer in ways.items()}
    best = max(reached, key=reached.__getitem__)
    return Baseline(best, ways[best])
