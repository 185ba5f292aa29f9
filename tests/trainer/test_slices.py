"""Test rows scored apart: whom does the adapter serve worse?"""

from __future__ import annotations

import pytest

from trainer.slices import fairness


def groups(*sizes: int) -> dict[str, list[int]]:
    """Return groups of rows that follow one another."""
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    return {f"group {n}": list(range(s, s + size)) for n, (s, size) in enumerate(zip(starts, sizes, strict=True))}


def test_fairness_is_what_differs_most_between_groups() -> None:
    wanted = ["yes"] * 20 + ["no"] * 20 + ["yes"] * 20 + ["no"] * 20
    given = ["yes"] * 20 + ["no"] * 20 + ["yes"] * 10 + ["no"] * 30  # of the second group's, every other yes is missed
    found = fairness(groups(40, 40), given, wanted)
    assert found == {"demographic_parity": pytest.approx(0.25), "equal_opportunity": pytest.approx(0.5)}


def test_groups_that_differ_are_told_apart_from_answers_that_do() -> None:
    wanted = ["yes"] * 40 + ["no"] * 40
    assert fairness(groups(40, 40), wanted, wanted) == {"demographic_parity": 1.0, "equal_opportunity": None}


def test_groups_of_a_few_rows_are_not_compared() -> None:
    assert fairness(groups(40, 19), ["yes"] * 59, ["yes"] * 59) == {
        "demographic_parity": None,
        "equal_opportunity": None,
    }
