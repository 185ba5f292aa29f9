"""Texts that do not fit are trained on, and evaluated, in the parts in which they are served."""

from __future__ import annotations

from adapters.base_model import Base
from adapters.tasks import SummarizationTask
from trainer.codec import Codec
from trainer.long_documents import condensed, in_parts
from trainer.rows import Row

TASK = SummarizationTask.of("Text: {text}\nSummary:", max_input_tokens=48, max_answer_tokens=12, long="chunks")
STORY = "The court met in June. It heard the seller. It heard the buyer too. The judge ruled for the buyer in July."


def test_each_part_is_trained_on_with_the_sentences_that_are_about_it(tiny: Base) -> None:
    rows = in_parts([Row(STORY, "The court met. The judge ruled for the buyer.", "g")], Codec(TASK, tiny))
    assert len(TASK.parts(STORY, tiny.tokenizer)) > 2
    assert [row.answer for row in rows] == ["The court met.", "The judge ruled for the buyer."]
    assert "met in June" in rows[0].text
    assert "ruled for the buyer" in rows[1].text


def test_a_text_that_fits_is_left_as_it_is(tiny: Base) -> None:
    row = Row("Short.", "Short", "g")
    assert in_parts([row], Codec(TASK, tiny)) == [row]


def test_where_texts_are_cut_nothing_is_divided(tiny: Base) -> None:
    row, task = Row(STORY, "The court met.", "g"), TASK.model_copy(update={"long": "cut"})
    assert in_parts([row], Codec(task, tiny)) == [row]
    assert condensed([STORY], Codec(task, tiny), lambda parts: parts) == [STORY]


def test_summaries_of_parts_are_summarized_until_they_fit(tiny: Base) -> None:
    asked: list[int] = []

    def first_words(parts: list[str]) -> list[str]:
        asked.append(len(parts))
        return [" ".join(part.split()[:2]) for part in parts]

    long, short = condensed([STORY * 4, "Short."], Codec(TASK, tiny), first_words)
    assert short == "Short."
    assert len(TASK.parts(long, tiny.tokenizer)) == 1
    assert asked == sorted(asked, reverse=True)
    assert len(asked) > 1


def test_a_model_that_does_not_shorten_is_not_asked_for_ever(tiny: Base) -> None:
    asked: list[int] = []
    condensed([STORY], Codec(TASK, tiny), lambda parts: [asked.append(1) or part for part in parts])  # type: ignore[func-returns-value]
    assert len(asked) < 50


def test_where_no_part_says_anything_the_text_itself_is_read(tiny: Base) -> None:
    asked: list[int] = []
    texts = condensed([STORY, "Short."], Codec(TASK, tiny), lambda parts: [asked.append(1) or "" for _ in parts])  # type: ignore[func-returns-value]
    assert texts == [STORY, "Short."]
    assert len(asked) == len(TASK.parts(STORY, tiny.tokenizer)), "once"
    said = iter(["", "The court met.", *[""] * 99])
    assert condensed([STORY], Codec(TASK, tiny), lambda parts: [next(said) for _ in parts]) == ["The court met."]
