"""What users said of answers becomes rows that the trainer reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from adapters.errors import HotswapError
from adapters.feedback import rows_for
from adapters.jsonl import write_rows
from tests.trainer.workplace import Workplace
from trainer.data import read_rows
from trainer.feedback import read_log
from trainer.origin import Data
from trainer.rows import Columns


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


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '{"text": "a"}',
        '{"adapter": 1, "task": 2, "text": 3, "answer": 4}',
        json.dumps(said("a", "positive", good=False) | {"better": 5}),
        "[" * 9000,
    ],
    ids=["broken", "list", "lacking", "numbers", "better", "deep"],
)
def test_a_line_that_is_no_feedback_is_named(log: Path, line: str) -> None:
    log.write_text(log.read_text() + line + "\n")
    with pytest.raises(HotswapError, match="line 7 is no feedback"):
        read_log([log], "mood")


def test_an_adapter_of_which_nothing_was_said_is_named(log: Path) -> None:
    with pytest.raises(HotswapError, match="nothing was said of 'mod'"):
        read_log([log], "mod")


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\u0085"])
def test_a_text_may_hold_what_python_takes_for_the_end_of_a_line(log: Path, character: str) -> None:
    line = json.dumps(said(f"a{character}b", "positive", good=True), ensure_ascii=False)
    log.write_text(line + "\n", encoding="utf-8")
    assert rows(log, "supervised") == [{"text": f"a{character}b", "label": "positive"}]


def test_a_log_that_an_editor_saved_is_read(log: Path) -> None:
    wanted = rows(log, "kto")
    log.write_bytes(b"\xef\xbb\xbf" + log.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert rows(log, "kto") == wanted


def test_half_a_surrogate_pair_becomes_a_character_that_can_be_written(log: Path) -> None:
    log.write_text(json.dumps(said("a \ud800 b \U0001f600", "x", good=False, better="\udfff")))
    assert rows(log, "dpo") == [{"text": "a \ufffd b \U0001f600", "chosen": "\ufffd", "rejected": "x"}]


def made_of(log: Path, tiny_folder: Path, out: Path) -> tuple[int, str]:
    result = Workplace(log.parent, tiny_folder).run("data", "from-feedback", log, "--adapter", "mood", "--out", out)
    return result.status, result.out + result.err


def test_the_log_is_never_overwritten(log: Path, tiny_folder: Path) -> None:
    before = log.read_bytes()
    os.link(log, log.with_name("same.jsonl"))
    for out in (log, Path("feedback.jsonl"), Path("same.jsonl")):
        status, told = made_of(log, tiny_folder, out)
        assert (status, "is a log that was read; give the rows another file" in told) == (1, True)
    assert log.read_bytes() == before


def test_rows_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{"text": "before"}])

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_rows(path, [{"text": "after"}])
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == '{"text": "before"}\n'


def test_rows_go_where_a_link_points_and_through_a_pipe(tmp_path: Path) -> None:
    link = tmp_path / "link.jsonl"
    link.symlink_to("rows.jsonl")
    write_rows(link, [{"text": "a"}])
    assert (link.is_symlink(), (tmp_path / "rows.jsonl").read_text()) == (True, '{"text": "a"}\n')
    reading, writing = os.pipe()
    write_rows(Path(f"/dev/fd/{writing}"), [{"text": "b"}])
    assert os.read(reading, 100) == b'{"text": "b"}\n'
    os.close(reading)
    os.close(writing)


def test_the_help_says_what_is_made_if_nothing_is_said(tmp_path: Path, tiny_folder: Path) -> None:
    told = " ".join(Workplace(tmp_path, tiny_folder).run("data", "from-feedback", "--help").out.split())
    assert "default: supervised" in told
    assert "example: python -m trainer data from-feedback log.jsonl" in told
