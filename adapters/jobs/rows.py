"""The rows of an uploaded file: in the shapes of OpenAI's fine-tuning, and in our own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Turn = tuple[str, str]  # who speaks, and what is said
MAX_LINE_BYTES = 4 << 20
SHOWN = 5
SHAPES = (
    "a row has messages; or prompt and completion; or text and label, summary or answer; or input, preferred_output "
    "and non_preferred_output"
)


class NotARow(ValueError):
    """Why nothing can be learnt of a record."""


@dataclass(frozen=True)
class Example:
    """A text and its answer. ``rejected`` is a worse answer, ``system`` what was said in front of a chat, ``before``
    the turns between that and the text, ``kind`` the column that a row of our own has its answer in: it says what kind
    of task this is."""

    text: str
    answer: str
    rejected: str = ""
    system: str = ""
    kind: str = ""
    before: tuple[Turn, ...] = ()

    @property
    def whole(self) -> str:
        """All that was said before the answer, as one text."""
        if not self.before:
            return self.text
        return "\n".join(f"{role.capitalize()}: {text}" for role, text in (*self.before, ("user", self.text)))

    @property
    def turns(self) -> tuple[Turn, ...]:
        """All that was said before the text, the system's turn too."""
        return (*([("system", self.system)] if self.system else []), *self.before)


@dataclass(frozen=True)
class Checked:
    """What a file holds: how many rows, whether they are pairs, and of the first lines that are wrong what is."""

    rows: int
    paired: bool
    problems: tuple[str, ...] = ()


def check(path: Path) -> Checked:
    """Return what is to be said of a file before anything is learnt of it, line by line."""
    rows, paired, problems = 0, False, []
    for number, example, problem in read(path):
        if example is not None:
            paired = bool(example.rejected) if not rows else paired
            if paired != bool(example.rejected):
                problem = "is no pair of answers, as the rows before are" if paired else "is a pair of answers"
            rows += 1
        if problem:
            problems.append(f"line {number} {problem}")
            if len(problems) == SHOWN:
                break
    if not rows and not problems:
        problems.append("the file has no rows")
    return Checked(rows, paired, tuple(problems))


def read(path: Path) -> Iterator[tuple[int, Example | None, str]]:
    """Yield for each line that is not blank its number and its example, or none and what is wrong with it."""
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                yield number, None, f"is longer than {MAX_LINE_BYTES >> 20} MiB; is each row a line?"
                return
            if line.strip():
                try:
                    yield number, example(_record(line.removeprefix(b"\xef\xbb\xbf"))), ""
                except NotARow as error:
                    yield number, None, str(error)


def _record(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise NotARow("is not UTF-8") from None
    except UnicodeEncodeError:
        raise NotARow(r"has half a character (such as \ud83d alone); write it whole") from None
    except (ValueError, RecursionError):
        raise NotARow("is not a JSON object") from None
    if not isinstance(found, dict):
        raise NotARow("is not a JSON object")
    return found


def example(record: dict[str, Any]) -> Example:
    """Return what is learnt of a record. Raises :class:`NotARow`."""
    if record.get("tools") or record.get("functions"):
        raise NotARow("has tools, whose use is not taught here")
    if "preferred_output" in record or "non_preferred_output" in record:
        return _pair(record)
    if "messages" in record:
        *said, last = _turns(record["messages"])
        if last[0] != "assistant":
            raise NotARow("does not end with an answer of the assistant's")
        system, before, text = _asked(said)
        return Example(text, _said(last[1], "the assistant's answer"), system=system, before=before)
    if "prompt" in record and "completion" in record:
        return Example(_said(record["prompt"], "prompt"), _said(record["completion"], "completion"))
    for kind in ("label", "summary", "answer"):
        if "text" in record and kind in record:
            return Example(_said(record["text"], "text"), _said(record[kind], kind), kind=kind)
    raise NotARow(f"has no columns that are known: {SHAPES}")


def _pair(record: dict[str, Any]) -> Example:
    asked = record.get("input")
    if not isinstance(asked, dict) or "messages" not in asked:
        raise NotARow("has no input with messages")
    if asked.get("tools"):
        raise NotARow("has tools, whose use is not taught here")
    system, before, text = _asked(_turns(asked["messages"]))
    answers = []
    for name in ("preferred_output", "non_preferred_output"):
        turns = _turns(record.get(name))
        if [role for role, _ in turns] != ["assistant"]:
            raise NotARow(f"has not one answer of the assistant's as {name}")
        answers.append(_said(turns[0][1], name))
    if answers[0] == answers[1]:
        raise NotARow("has the same answer as preferred and as non-preferred")
    return Example(text, answers[0], answers[1], system, before=before)


def _turns(given: Any) -> list[Turn]:
    """Return who said what."""
    if not isinstance(given, list) or not given:
        raise NotARow("has no list of messages")
    turns = []
    for turn in given:
        role = turn.get("role") if isinstance(turn, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise NotARow("has a message that is neither system's, user's nor assistant's")
        if turn.get("tool_calls") or turn.get("function_call"):
            raise NotARow("has a call of a tool, whose use is not taught here")
        turns.append(("system" if role == "developer" else role, _text(turn.get("content"))))
    if given[-1].get("weight") == 0:
        raise NotARow("has weight 0 on its last answer, the one that is learnt")
    return turns


def _text(content: Any) -> str:
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise NotARow("has a message that is not text alone")
    return content


def _asked(turns: list[Turn]) -> tuple[str, tuple[Turn, ...], str]:
    """Return what the system says, the turns before the last one of the user's, and that one."""
    system = "\n".join(text for role, text in turns if role == "system").strip()
    *before, last = [("", ""), *((role, text) for role, text in turns if role != "system")]
    if last[0] != "user":
        raise NotARow("has no message of the user's right before the answer")
    return system, tuple(before[1:]), _said(last[1], "the user's message")


def _said(text: Any, what: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise NotARow(f"has no text as {what}")
    return text.strip()
