"""The sequential test behind guarded promotion: it may be looked at after every answer, and is still right."""

from __future__ import annotations

import random

import pytest

from adapters.releases import Guard
from service.rollout.evidence import Counts, interval, verdict


@pytest.mark.parametrize("truth", [0.02, 0.2, 0.7])
def test_the_truth_leaves_the_interval_at_any_time_as_rarely_as_promised(truth: float) -> None:
    dice, alpha, missed = random.Random(7), 0.1, 0
    for _ in range(200):
        hits = 0
        for trial in range(1, 301):
            hits += dice.random() < truth
            low, high = interval(hits, trial, alpha)
            if not low <= truth <= high:
                missed += 1
                break
    assert missed <= 200 * alpha


def test_the_interval_narrows_and_knows_nothing_at_first() -> None:
    assert interval(0, 0, 0.05) == (0.0, 1.0)
    assert interval(0, 10, 0.05)[1] > interval(0, 1000, 0.05)[1]
    low, high = interval(500, 10_000, 0.05)
    assert 0.03 < low < 0.05 < high < 0.07
    assert interval(1_000_000, 1_000_000, 0.05)[1] == 1.0


GUARD = Guard(samples=100, seconds=0)
FINE = Counts(answers=2000, failed=2, slow=40)


@pytest.mark.parametrize(
    ("canary", "worse", "why"),
    [
        (Counts(), None, "0 answers"),
        (Counts(answers=99), None, "99 answers"),
        (Counts(answers=2000, failed=2, slow=45), False, "not worse than 2000"),
        (Counts(answers=30, failed=20), True, "20 of 30 of its answers failed"),
        (Counts(answers=2000, failed=2, slow=600), True, "took over 2.5 s"),
        (Counts(answers=2000, judged=300, wrong=90), True, "were wrong by feedback"),
        (Counts(answers=2000, judged=3, wrong=3), False, "feedback of three people proves nothing"),
    ],
)
def test_a_canary_is_judged_by_what_is_shown(canary: Counts, worse: bool | None, why: str) -> None:
    stable = Counts(answers=2000, failed=2, slow=40, judged=300, wrong=15)
    found = verdict(GUARD, stable, canary)
    assert found.worse is worse
    assert worse is False or why in found.why


def test_a_fault_that_the_stable_version_has_too_is_not_held_against_the_canary() -> None:
    sick = Counts(answers=1000, failed=300, slow=900)
    assert verdict(GUARD, sick, Counts(answers=1000, failed=300, slow=900)).worse is not True


@pytest.mark.parametrize(
    ("compared", "differing", "worse"), [(0, 0, None), (50, 1, None), (2000, 40, False), (300, 150, True)]
)
def test_label_agreement_must_be_shown_where_it_is_asked_for(compared: int, differing: int, worse: bool | None) -> None:
    guard = Guard(samples=100, seconds=0, disagreement=0.1)
    canary = Counts(answers=2000, compared=compared, differing=differing)
    assert verdict(guard, FINE, canary).worse is worse
