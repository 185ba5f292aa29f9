"""What users said of answers becomes rows that the trainer reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import HotswapError
from trainer.config import Data
from trainer.data import Columns, read_rows
from trainer.feedback import read_log, rows_for


def said(text: str, answer: str, *, good: bool, better: str | None = None, **changes: Any) -> dict[str, Any]:
    about = {"adapter": "mood", "version": 1, "task": "classification", "text": text, "answer": answer}
    return {**about, "good": good, "better": better, **changes}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    records = [
        said("one", "positive", good=True),
        said("two", "positive", good=False, better="negative"),
        said("three", "negative", good=False),
        said("one", "positive", good=False),
        said("one", "positive", good=True),
        said("four", "x", good=True, adapter="other"),
    ]
    path = tmp_path / "feedback.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rows(log: Path, objective: str) -> list[dict[str, Any]]:
    return list(rows_for(objective, read_log([log], "mood")))


def test_right_answers_are_rows_for_supervised_training(log: Path) -> None:
    assert rows(log, "supervised") == [{"text": "two", "label": "negative"}, {"text": "one", "label": "positive"}]


def test_a_correction_is_a_pair(log: Path) -> None:
    assert rows(log, "dpo") == [{"text": "two", "chosen": "negative", "rejected": "positive"}]


def test_thumbs_are_all_kept_the_last_one_of_each_answer(log: Path) -> None:
    assert [(row["text"], row["label"], row["good"]) for row in rows(log, "kto")] == [
        ("two", "positive", False),
        ("two", "negative", True),
        ("three", "negative", False),
        ("one", "positive", True),
    ]


@pytest.mark.parametrize("objective", ["supervised", "dpo", "kto", "reward"])
def test_a_recipe_reads_the_rows_without_naming_a_column(log: Path, objective: str) -> None:
    made = log.with_name("rows.jsonl")
    made.write_text("".join(json.dumps(row) + "\n" for row in rows(log, objective)))
    assert len(read_rows(Data(path=made), Columns("classification", objective), log.parent / "cache")) > 0


@pytest.mark.parametrize("line", ["{", "[]", '{"text": "a"}', '{"adapter": 1, "task": 2, "text": 3, "answer": 4}'])
def test_a_line_that_is_no_feedback_is_named(log: Path, line: str) -> None:
    log.write_text(log.read_text() + line + "\n")
    with pytest.raises(HotswapError, match="line 7 is no feedback"):
        read_log([log], "mood")


def test_an_adapter_of_which_nothing_was_said_is_named(log: Path) -> None:
    with pytest.raises(HotswapError, match="nothing was said of 'mod'"):
        read_log([log], "mod")
