"""The detector on what it promises: silent while answers are the reference's, and soon heard when they are not."""

from __future__ import annotations

import numpy as np
import pytest

from service.monitoring.detector import Detector

CONFIDENCE = (0.0, 0.05, 0.06, 0.08, 0.12, 0.12, 0.2, 0.37)
LABELS = (0.5, 0.3, 0.2)


def first_alarm(truth: tuple[float, ...], live: tuple[float, ...], *, rows: int, answers: int, seed: int) -> int | None:
    """Return after how many answers there is an alarm, with a reference of ``rows`` rows drawn from ``truth``."""
    chance, bins = np.random.default_rng(seed), [str(n) for n in range(len(truth))]
    shares = chance.multinomial(rows, truth) / rows
    detector = Detector(dict(zip(bins, shares, strict=True)), rows, bins, 1e6)
    for n, drawn in enumerate(chance.choice(len(live), answers, p=live)):
        detector.observe(bins[drawn])
        if detector.evidence >= 1:
            return n + 1
    return None


@pytest.mark.parametrize("truth", [CONFIDENCE, LABELS])
@pytest.mark.parametrize("rows", [30, 400, 5000])
def test_a_reference_that_is_a_sample_never_alarms_for_being_one(truth: tuple[float, ...], rows: int) -> None:
    assert [first_alarm(truth, truth, rows=rows, answers=20_000, seed=seed) for seed in range(5)] == [None] * 5


@pytest.mark.parametrize("truth", [CONFIDENCE, LABELS])
def test_answers_that_come_the_other_way_round_are_heard_within_500(truth: tuple[float, ...]) -> None:
    for seed in range(5):
        heard = first_alarm(truth, truth[::-1], rows=400, answers=500, seed=seed)
        assert heard is not None
        assert heard > 10, "one odd answer is no drift"


def test_evidence_fades_when_answers_are_again_as_they_were() -> None:
    detector = Detector({"a": 0.5, "b": 0.5}, 400, ("a", "b"), 1e6)
    assert detector.evidence == 0
    for _ in range(300):
        detector.observe("a")
    assert detector.evidence >= 1
    for n in range(4000):
        detector.observe("ab"[n % 2])
    assert detector.evidence < 0.1


def test_a_bin_that_no_held_out_row_was_in_is_evidence_and_no_error() -> None:
    detector = Detector({"a": 1.0}, 400, ("a", "b", "c"), 1e6)
    for _ in range(200):
        detector.observe("c")
    assert detector.evidence >= 1
