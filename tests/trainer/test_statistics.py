"""How sure a score is: against closed forms, and on answers whose truth is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from adapters.tasks import ClassificationTask, SummarizationTask
from trainer.statistics import compare, intervals, temperature


def told(right: float, label: str = "positive") -> dict[str, Any]:
    other = {"positive": "negative", "negative": "positive"}[label]
    return {"label": label, "score": right, "scores": {label: right, other: 1 - right}}


@pytest.fixture
def summaries() -> SummarizationTask:
    return SummarizationTask.of("Text: {text}\n\nSummary:")


@pytest.mark.parametrize("wanted", [0.7, 1.0, 2.0])
def test_the_temperature_is_found_with_which_answers_were_made_too_sure(wanted: float) -> None:
    dice = np.random.default_rng(0)
    honest = dice.uniform(0.5, 0.99, 20_000)
    truth = ["positive" if hit else "negative" for hit in dice.random(len(honest)) < honest]
    sure = [1 / (1 + math.exp(-wanted * math.log(p / (1 - p)))) for p in honest]
    assert temperature([told(p) for p in sure], truth) == pytest.approx(wanted, rel=0.05)


def test_a_temperature_is_not_guessed_from_a_few_rows() -> None:
    assert temperature([told(0.9)] * 99, ["negative"] * 99) == 1.0
    assert temperature([told(0.9)] * 100, ["negative"] * 100) == pytest.approx(5.0, rel=0.01)


def test_an_interval_is_that_of_the_binomial(sentiment_task: ClassificationTask) -> None:
    outputs, truth = [told(0.9)] * 400, ["positive"] * 320 + ["negative"] * 80
    low, high = intervals(sentiment_task, outputs, truth)["accuracy"]
    half = 1.96 * math.sqrt(0.8 * 0.2 / 400)
    assert (low, high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.01)


def test_an_interval_holds_its_score_and_is_the_same_every_time(
    sentiment_task: ClassificationTask, summaries: SummarizationTask
) -> None:
    outputs = [told(0.9), told(0.8, "negative"), told(0.7), told(0.6)] * 10
    truth = ["positive", "negative", "negative", "positive"] * 10
    found = intervals(sentiment_task, outputs, truth)
    scores = sentiment_task.score(outputs, truth)
    assert all(low < scores[metric] < high for metric, (low, high) in found.items())
    assert intervals(sentiment_task, outputs, truth) == found
    written = [{"summary": "a red thing"}, {"summary": "a blue"}] * 20
    (low, high) = intervals(summaries, written, ["a red thing", "something else"] * 20)["rougeL"]
    assert 0 < low < 0.5 < high < 1


def test_nine_right_answers_of_nine_are_no_certainty(sentiment_task: ClassificationTask) -> None:
    found = intervals(sentiment_task, [told(0.9)] * 9, ["positive"] * 9)
    assert found == {"accuracy": [pytest.approx(9 / (9 + 1.96**2), abs=1e-3), 1.0]}  # Wilson's, in closed form


def test_rows_of_one_group_count_as_what_they_are(sentiment_task: ClassificationTask) -> None:
    outputs = [told(0.9)] * 320 + [told(0.9, "negative")] * 80
    truth, groups = ["positive"] * 400, [f"film {n // 20}" for n in range(400)]
    (low, high), (least, most) = (
        intervals(sentiment_task, outputs, truth, given)["accuracy"] for given in ((), groups)
    )
    assert most - least == pytest.approx((high - low) * math.sqrt(20), rel=0.15)


def test_a_label_that_no_row_has_counts_in_macro_f1_and_in_its_interval(sentiment_task: ClassificationTask) -> None:
    third = sentiment_task.labels[0].model_copy(update={"name": "neutral", "token_id": 300})
    task = sentiment_task.model_copy(update={"labels": (*sentiment_task.labels, third)})
    outputs = [told(0.9), told(0.8, "negative"), told(0.7), told(0.6)] * 10
    truth = ["positive", "negative", "negative", "positive"] * 10
    low, high = intervals(task, outputs, truth)["macro_f1"]
    assert low < task.score(outputs, truth)["macro_f1"] < high < 0.7


LABELS = {"of a few labels": [0.5, 0.25, 0.15, 0.1], "of many": [1 / (n + 1) for n in range(12)]}


@pytest.mark.parametrize("shares", LABELS.values(), ids=LABELS)
def test_of_a_hundred_macro_f1_intervals_about_95_hold_the_truth(
    sentiment_task: ClassificationTask, shares: list[float]
) -> None:
    names = [f"label {n}" for n in range(len(shares))]
    labels = [sentiment_task.labels[0].model_copy(update={"name": n, "token_id": 300 + i}) for i, n in enumerate(names)]
    task = sentiment_task.model_copy(update={"labels": tuple(labels)})
    chances = np.array(shares) / sum(shares)

    def drawn(rows: int, seed: int) -> tuple[list[dict[str, Any]], list[str]]:
        dice = np.random.default_rng(seed)
        truth = dice.choice(names, rows, p=chances)
        right = dice.random(rows) < np.array([0.9 - 0.04 * names.index(name) for name in truth])
        told = np.where(right, truth, dice.choice(names, rows, p=chances))
        return [task.saying(str(name)) for name in told], [str(name) for name in truth]

    true = task.score(*drawn(100_000, 0))["macro_f1"]
    found = [intervals(task, *drawn(300, seed))["macro_f1"] for seed in range(1, 101)]
    assert sum(low <= true <= high for low, high in found) >= 89
    assert max(sum(low > true for low, _ in found), sum(high < true for _, high in found)) <= 9, "on both sides alike"


def test_an_interval_of_summaries_in_groups_of_unlike_size_holds_the_truth(summaries: SummarizationTask) -> None:
    def drawn(seed: int) -> tuple[list[dict[str, Any]], list[str], list[str]]:
        dice = np.random.default_rng(seed)
        outputs, groups = [], []
        for group in range(40):
            size = int(dice.choice([1, 2, 20], p=[0.6, 0.3, 0.1]))
            good = dice.random(size) < dice.beta(2, 2)  # rows of a group are alike
            outputs += [{"summary": "a red thing" if each else "nothing"} for each in good]
            groups += [str(group)] * size
        return outputs, ["a red thing"] * len(outputs), groups

    held = 0
    for seed in range(100):
        low, high = intervals(summaries, *drawn(seed))["rougeL"]
        held += low <= 0.5 <= high
    assert held >= 86


def test_two_versions_are_compared_on_the_rows_where_they_differ(sentiment_task: ClassificationTask) -> None:
    truth = ["positive"] * 100
    ours = [told(0.9)] * 95 + [told(0.9, "negative")] * 5
    theirs = [told(0.9)] * 85 + [told(0.9, "negative")] * 15
    found = compare(sentiment_task, ours, theirs, truth)
    assert (found["candidate"], found["released"]) == pytest.approx((0.95, 0.85))
    assert found["p_value"] == pytest.approx(2 * 0.5**10, abs=1e-6)  # ten rows differ, all of them one way
    assert compare(sentiment_task, ours, ours, truth)["p_value"] == 1.0


def test_summaries_are_compared_row_by_row(summaries: SummarizationTask) -> None:
    truth = [f"thing {n} is red and large" for n in range(20)]
    ours = [{"summary": text} for text in truth]
    theirs = [{"summary": " ".join(text.split()[: 2 + n % 3])} for n, text in enumerate(truth)]
    assert compare(summaries, ours, theirs, truth)["p_value"] < 0.001
