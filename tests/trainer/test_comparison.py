"""Blind judgement of two versions: the page, the key, the votes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import HotswapError
from trainer import comparison
from trainer.comparison import Item
from trainer.data import Row

ROWS = [Row(f"text {n} </script><b>", "", str(n)) for n in range(20)]
ONES, OTHERS = [f"one {n}" for n in range(20)], [f"other {n}" if n else "one 0" for n in range(20)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    comparison.write(tmp_path, "news@1", "news@2", comparison.items(ROWS, ONES, OTHERS), 20)
    return tmp_path


def voted(folder: Path, votes: Any, name: str = "votes.json", page: str = "") -> Path:
    path = folder / name
    path.write_text(json.dumps({"page": page or comparison.read_key(folder)["page"], "votes": votes}))
    return path


def for_a(folder: Path, wins: int) -> dict[str, str]:
    """Return votes in which the first side wins so many items and the other side the rest."""
    items: list[Item] = comparison.read_key(folder)["items"]
    return {item.id: "left" if (item.left == "a") == (number < wins) else "right" for number, item in enumerate(items)}


def test_the_page_does_not_know_which_is_which_and_shows_text_as_text(folder: Path) -> None:
    page = (folder / "compare.html").read_text()
    assert "news@" not in page
    assert "</script><b>" not in page
    sides = [item.left for item in comparison.read_key(folder)["items"]]
    assert {"a", "b"} == set(sides)


def test_equal_answers_are_not_to_be_judged(folder: Path) -> None:
    assert len(comparison.read_key(folder)["items"]) == 19


def test_votes_are_counted_for_the_side_that_was_meant(folder: Path) -> None:
    key = comparison.read_key(folder)
    found = comparison.verdict(key, comparison.read_votes([voted(folder, for_a(folder, 15))], key))
    assert (found.a, found.b, found.ties, found.voters) == (15, 4, 0, 1)
    assert found.rate == pytest.approx(15 / 19)
    assert (found.low, found.high) == pytest.approx((0.567, 0.915), abs=1e-3)  # Wilson, by hand
    assert found.p_value == pytest.approx(0.0192, abs=1e-4)


def test_a_tie_is_half_a_win_and_says_nothing_of_who_is_better(folder: Path) -> None:
    key = comparison.read_key(folder)
    ties = {item.id: "tie" for item in key["items"]}
    found = comparison.verdict(key, [ties])
    assert (found.rate, found.p_value, found.low, found.high) == (0.5, 1.0, 0.0, 1.0)


def test_voters_are_held_against_each_other(folder: Path) -> None:
    key = comparison.read_key(folder)
    one, other = for_a(folder, 19), for_a(folder, 10)
    found = comparison.verdict(key, [one, other])
    assert found.agreement == pytest.approx(10 / 19)


def test_what_won_is_a_pair_to_train_on(folder: Path) -> None:
    key = comparison.read_key(folder)
    rows = list(comparison.pairs(key, [for_a(folder, 15), for_a(folder, 15), for_a(folder, 0)]))
    assert len(rows) == 19
    assert rows[0] == {"text": ROWS[1].text, "chosen": "one 1", "rejected": "other 1"}
    assert rows[-1] == {"text": ROWS[19].text, "chosen": "other 19", "rejected": "one 19"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"page": "0" * 16}, "another page"),
        ({"votes": {"x": "left"}}, "another page"),
        ({"votes": {}}, "nobody voted"),
        ({"votes": None}, "no votes"),
    ],
)
def test_votes_that_are_not_of_this_page_are_refused(folder: Path, changes: dict[str, Any], said: str) -> None:
    key = comparison.read_key(folder)
    with pytest.raises(HotswapError, match=said):
        comparison.read_votes([voted(folder, **{"votes": for_a(folder, 3), **changes})], key)


def test_the_same_votes_do_not_count_twice(folder: Path) -> None:
    key = comparison.read_key(folder)
    paths = [voted(folder, for_a(folder, 3), name) for name in ("one.json", "two.json")]
    with pytest.raises(HotswapError, match=r"two\.json holds the votes of a file before it"):
        comparison.read_votes(paths, key)


def test_without_a_page_there_is_nothing_to_count(tmp_path: Path) -> None:
    with pytest.raises(HotswapError, match="write the page first"):
        comparison.read_key(tmp_path)
