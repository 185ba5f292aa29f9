"""Rows written otherwise: to see what that costs, and to learn from."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from adapters.base_model import Base
from tests.trainer.conftest import MakeRecipe
from trainer.data import Splits
from trainer.mixture import make_job, mixture
from trainer.robustness import DISTRACTOR, DISTURBANCES, INJECTION, LEARNT, disturbed, typos
from trainer.rows import Row

ROWS = [Row(f"A surprisingly tender comedy number {n} about people", "good", str(n)) for n in range(200)]


def test_disturbances_change_the_text_the_same_way_every_time() -> None:
    text = "A surprisingly tender comedy about people who never learned to listen " * 3
    for disturb in DISTURBANCES.values():
        assert disturb(text) != text
        assert disturb(text) == disturb(text)
    assert sorted(typos(text)) == sorted(text), "letters are swapped, none is lost"
    assert DISTURBANCES["injection"](text).endswith(INJECTION)


def test_the_shares_of_the_training_rows_are_written_otherwise_with_their_answers_kept() -> None:
    found = disturbed(ROWS, {"upper case": 0.25, "distractor": 0.25}, seed=1)
    assert [row.answer for row in found] == [row.answer for row in ROWS]
    upper = sum(row.text.isupper() for row in found)
    distracted = sum(len(new.text) > len(old.text) for new, old in zip(found, ROWS, strict=True))
    as_written = sum(new == old for new, old in zip(found, ROWS, strict=True))
    assert upper + distracted + as_written == 200
    assert 30 < upper < 70
    assert 30 < distracted < 70
    assert found == disturbed(ROWS, {"upper case": 0.25, "distractor": 0.25}, seed=1)
    assert disturbed(ROWS, {}, seed=1) == ROWS


def test_what_is_tested_with_is_not_what_was_learnt() -> None:
    text = ROWS[0].text
    assert DISTRACTOR not in LEARNT["distractor"](text)
    changed = [row.text for row in ROWS if typos(row.text) != row.text]
    alike = sum(LEARNT["typos"](text) == typos(text) for text in changed)
    assert alike < len(changed) / 10


def test_a_recipe_trains_on_them_and_tests_on_rows_as_they_are(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base
) -> None:
    job = make_job(make_recipe(data={"path": "rows.csv", "disturb": {"upper case": 1}}), splits, tiny)
    assert [row.text for row, _ in mixture(job)] == [row.text.upper() for row in splits.train]
    assert not any(row.text.isupper() for row in job.splits.test)


def test_shares_above_one_are_refused(make_recipe: MakeRecipe) -> None:
    with pytest.raises(ValidationError, match="above 1"):
        make_recipe(data={"path": "rows.csv", "disturb": {"typos": 0.6, "upper case": 0.6}})
