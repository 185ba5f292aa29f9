"""A profile: the same bins for held-out rows and for live ones."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.base_model import Base
from adapters.profile import BOUNDS, Profile, bin_of, bins_of, packed, unpacked, values_of
from adapters.tasks import ClassificationTask, SummarizationTask


@given(st.sets(st.integers(0, 200_000), max_size=50))
def test_a_set_of_tokens_comes_out_as_it_went_in(ids: set[int]) -> None:
    assert unpacked(packed(ids)) == ids


@pytest.mark.parametrize("text", ["", "no base64!", "AAAA", packed({9_000_000})])
def test_a_damaged_set_of_tokens_is_empty(text: str) -> None:
    assert unpacked(text) == frozenset()


@given(st.sampled_from(sorted(BOUNDS)), st.lists(st.floats(0, 1e6), min_size=1))
def test_shares_are_those_of_the_bins_that_live_values_are_counted_in(feature: str, values: list[float]) -> None:
    shares = Profile.of([{feature: value} for value in values], ()).shares(feature)
    assert tuple(shares) == bins_of(feature)
    counted = [bin_of(feature, value) for value in values]
    for name, share in shares.items():
        assert math.isclose(share, counted.count(name) / len(values), abs_tol=1e-9)


def test_a_profile_that_was_counted_in_other_bins_has_no_shares() -> None:
    assert Profile(rows=9, confidence={0.5: 0.1, 1.0: 1.0}).shares("confidence") == {}
    assert Profile(rows=9).shares("coverage") == {}


def test_a_classification_is_known_by_its_label_score_length_and_words(
    sentiment_task: ClassificationTask, tiny: Base
) -> None:
    prompt = sentiment_task.prompt("a dull film", tiny.tokenizer)
    known = set(prompt.ids[1:])
    output = {"label": "negative", "score": 0.9, "scores": {}}
    assert values_of(sentiment_task, "a dull film", prompt, output, tiny.tokenizer, known) == {
        "label": "negative",
        "confidence": 0.9,
        "input_tokens": prompt.input_tokens,
        "unknown_tokens": pytest.approx(sum(token not in known for token in prompt.ids) / len(prompt.ids)),
    }


def test_a_summary_is_known_by_how_long_it_is_and_how_much_it_copies(
    summary_task: SummarizationTask, tiny: Base
) -> None:
    text = "The tool copies changed files. It is fast, and small."
    values = values_of(
        summary_task,
        text,
        summary_task.prompt(text, tiny.tokenizer),
        {"summary": "copies changed Directories quickly"},
        tiny.tokenizer,
        (),
    )
    assert values["coverage"] == 2 / 4
    assert values["compression"] == 10 / 4
    assert values["answer_tokens"] == len(tiny.tokenizer.encode("copies changed Directories quickly"))
    assert "unknown_tokens" not in values, "nothing is known of a version that does not say its tokens"


@pytest.mark.parametrize("summary", ["", "…"])
def test_a_summary_without_a_word_is_counted_too(summary_task: SummarizationTask, tiny: Base, summary: str) -> None:
    prompt = summary_task.prompt("Something.", tiny.tokenizer)
    values = values_of(summary_task, "Something.", prompt, {"summary": summary}, tiny.tokenizer, ())
    assert (values["coverage"], values["compression"]) == (0, 1)
