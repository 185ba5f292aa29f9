"""Summaries against their sources, and texts as the world sends them."""

from __future__ import annotations

import pytest

from trainer.faithfulness import faithfulness, unsupported

SOURCE = "the council decided to build the new bridge in 2024 , said mayor Ann Lee after a long debate"


def test_a_copied_summary_is_covered_dense_and_brings_nothing_new() -> None:
    found = faithfulness([SOURCE], ["build the new bridge"])
    assert found["coverage"] == 1
    assert found["density"] == 4  # one fragment of four words: 4² / 4
    assert found["compression"] == len(SOURCE.split()) / 4
    assert found["novel_bigrams"] == found["unsupported"] == 0


def test_fragments_are_counted_as_by_grusky() -> None:
    found = faithfulness([SOURCE], ["the council will build a new bridge"])
    # "the council", "build", "a", "new bridge"; "will" is its own
    assert found["coverage"] == pytest.approx(6 / 7)
    assert found["density"] == pytest.approx((4 + 1 + 1 + 4) / 7)
    assert found["novel_bigrams"] == pytest.approx(4 / 6)


def test_numbers_and_names_that_the_source_has_not_are_named() -> None:
    assert unsupported(SOURCE, "The bridge of 2024, says Ann Lee") == []
    assert unsupported(SOURCE, "The bridge of 2025, says mayor Bob") == ["2025", "Bob"]
    assert faithfulness([SOURCE, SOURCE], ["in 2024", "in 1999"])["unsupported"] == 0.5


def test_an_empty_summary_is_no_error() -> None:
    assert faithfulness([SOURCE], [""])["coverage"] == 0
