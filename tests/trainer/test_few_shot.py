"""The base with examples in its prompt, beside what was trained."""

from __future__ import annotations

from adapters.base_model import Base
from trainer.codec import Codec
from trainer.few_shot import with_examples
from trainer.rows import Row


def row(text: str, answer: str) -> Row:
    return Row(text, answer, text)


def test_examples_come_before_the_text_one_of_each_label_in_turn(sentiment_task, tiny: Base) -> None:
    good, bad = (label.name for label in sentiment_task.labels)
    rows = [
        row("long " * 500, good),
        row("a {text}", bad),
        *(row(f"good {n}", good) for n in range(5)),
        row("poor", bad),
    ]
    asked, shots = with_examples(Codec(sentiment_task, tiny), rows, shots=3)
    assert shots == 3
    said = tiny.tokenizer.decode(asked.prompt("fine"))
    own = tiny.tokenizer.decode(sentiment_task.prompt("fine", tiny.tokenizer).ids)
    assert said.endswith(own)
    assert [text for text in ("good 0", "poor", "good 1") if text in said] == ["good 0", "poor", "good 1"]
    assert "good 2" not in said
    assert said.count("\n\n") >= 3
    assert "long long" not in said


def test_the_answers_shown_are_those_that_are_read(sentiment_task, tiny: Base) -> None:
    label = sentiment_task.labels[0]
    text = with_examples(Codec(sentiment_task, tiny), [row("good", label.name)], shots=1)[0].task.template.text
    assert tiny.tokenizer.decode([label.token_id]) in text


def test_without_rows_that_fit_it_is_the_task_itself(sentiment_task, tiny: Base) -> None:
    own = Codec(sentiment_task, tiny)
    assert with_examples(own, []) == (own, 0)
