"""Rows of uploaded files: what is learnt of each shape, and which line is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adapters.jobs.rows import Example, check, example

SYSTEM = {"role": "system", "content": "Rate films."}
ASKED = {"role": "user", "content": "dull"}
ANSWER = {"role": "assistant", "content": "negative"}
BETTER = {"role": "assistant", "content": "positive"}
PAIR = {"input": {"messages": [SYSTEM, ASKED]}, "preferred_output": [ANSWER], "non_preferred_output": [BETTER]}


@pytest.mark.parametrize(
    ("row", "learnt"),
    [
        ({"messages": [ASKED, ANSWER]}, Example("dull", "negative")),
        ({"messages": [SYSTEM, ASKED, ANSWER]}, Example("dull", "negative", system="Rate films.")),
        (
            {"messages": [ASKED, {**BETTER, "weight": 0}, {"role": "user", "content": "sure?"}, ANSWER]},
            Example("sure?", "negative", before=(("user", "dull"), ("assistant", "positive"))),
        ),
        (
            {"messages": [{**ASKED, "content": [{"type": "text", "text": "dull"}]}, ANSWER], "tools": []},
            Example("dull", "negative"),
        ),
        ({"prompt": " dull", "completion": "negative\n"}, Example("dull", "negative")),
        ({"text": "dull", "label": "negative"}, Example("dull", "negative", kind="label")),
        ({"text": "dull", "summary": "negative"}, Example("dull", "negative", kind="summary")),
        (PAIR, Example("dull", "negative", "positive", "Rate films.")),
    ],
)
def test_each_shape_is_a_text_and_an_answer(row: dict[str, Any], learnt: Example) -> None:
    assert example(row) == learnt


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "is not a JSON object"),
        ("[]", "is not a JSON object"),
        ("[" * 100_000, "is not a JSON object"),
        (b"\xff", "is not UTF-8"),
        (r'{"text": "\ud83d", "label": "a"}', "has half a character"),
        ({"question": "dull"}, "has no columns that are known"),
        ({"messages": [ASKED]}, "does not end with an answer of the assistant's"),
        ({"messages": [ANSWER]}, "has no message of the user's right before the answer"),
        ({"messages": []}, "has no list of messages"),
        ({"messages": [{**ASKED, "role": "tool"}, ANSWER]}, "has a message that is neither"),
        ({"messages": [{**ASKED, "content": [{"type": "image_url"}]}, ANSWER]}, "has a message that is not text"),
        ({"messages": [ASKED, {**ANSWER, "weight": 0}]}, "has weight 0 on its last answer"),
        ({"messages": [ASKED, {**ANSWER, "tool_calls": [{}]}]}, "has a call of a tool"),
        ({"messages": [ASKED, ANSWER], "tools": [{}]}, "has tools"),
        ({"prompt": "dull", "completion": " "}, "has no text as completion"),
        ({"text": 7, "label": "negative"}, "has no text as text"),
        ({**PAIR, "non_preferred_output": [ANSWER]}, "has the same answer as preferred and as non-preferred"),
        ({**PAIR, "input": "dull"}, "has no input with messages"),
        (PAIR, "is a pair of answers"),
    ],
)
def test_a_line_that_cannot_be_learnt_is_named(tmp_path: Path, row: Any, said: str) -> None:
    bad = row if isinstance(row, bytes) else (row if isinstance(row, str) else json.dumps(row)).encode()
    good = json.dumps({"text": "dull", "label": "negative"}).encode()
    (tmp_path / "rows").write_bytes(b"\n".join([good, b"", bad, good]))
    (problem,) = check(tmp_path / "rows").problems
    assert problem.startswith(f"line 3 {said}")


def test_a_line_without_end_is_not_read_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapters.jobs.rows.MAX_LINE_BYTES", 1 << 20)
    (tmp_path / "rows").write_bytes(b"x" * (3 << 20))
    assert check(tmp_path / "rows").problems == ("line 1 is longer than 1 MiB; is each row a line?",)


def test_a_file_without_rows_is_none(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(b"\n\n")
    assert check(tmp_path / "rows").problems == ("the file has no rows",)
