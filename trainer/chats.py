"""Rows of chats and of labelling tools as one text and one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from trainer.records import text_of

Record = Mapping[str, Any]
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
}
REVIEWED = ("accept", "reject", "ignore")  # what Prodigy puts into "answer"


class NotARow(ValueError):
    """Why a record has not one text and one answer; ``convertible`` where ``data convert`` makes a row of it."""

    def __init__(self, reason: str, convertible: bool = False) -> None:
        super().__init__(reason)
        self.convertible = convertible


class LeftOut(Exception):  # no error
    """A record that its annotators set aside: skipped, rejected, not annotated."""


Shape = Callable[[Record, bool], dict[str, str]]


def shape_of(columns: Iterable[str]) -> tuple[str, Shape] | None:
    """Return what records with such columns are called, and what makes text and answer of one; none for a plain table.

    The second argument says whether the whole of a conversation is wanted as text, where there is more than one turn.
    It raises :class:`NotARow` and :class:`LeftOut`.
    """
    there = set(columns)
    for name, needed, shape in (
        ("Prodigy's", {"_task_hash", "text"}, _prodigy),
        ("messages", {"messages"}, _messages("messages")),
        ("conversations", {"conversations"}, _messages("conversations")),
        ("Label Studio's", {"data", "annotations"}, _label_studio),
        ("Label Studio's", {"data", "completions"}, _label_studio),
        ("prompt and completion", {"prompt", "completion"}, _completion),
        ("instruction and output", {"instruction", "output"}, _alpaca),
        ("Prodigy's", {"text", "accept", "answer"}, _prodigy),
        ("Prodigy's", {"text", "label", "answer"}, _prodigy),
        ("doccano's", {"text", "labels"}, _doccano),
        ("doccano's", {"data", "label"}, _doccano),
    ):
        if needed <= there:
            return name, shape
    return None


def _messages(column: str) -> Shape:
    return lambda record, whole: _with_system(record, _of_turns(record[column], whole))


def _with_system(record: Record, made: dict[str, str]) -> dict[str, str]:
    """LLaMA-Factory has a column of its own for what the system says."""
    system = record.get("system")
    return {**made, "system": system} if isinstance(system, str) and system else made


def _of_turns(turns: Any, whole: bool) -> dict[str, str]:
    """Take the last turn for the answer and the user's for the text; what the system said is the template's to say."""
    if not isinstance(turns, list) or not turns:
        raise NotARow("holds no list of turns")
    all_said = list(map(_turn, turns))
    said = [(role, text) for role, text in all_said if role != "system"]
    system = "\n".join(text for role, text in all_said if role == "system")
    if whole:
        while said and said[-1][0] != "assistant":
            said.pop()
    if not said or said[-1][0] != "assistant":
        raise NotARow("does not end with an answer of the assistant's", any(r == "assistant" for r, _ in said))
    *before, (_, answer) = said
    if [role for role, _ in before] == ["user"]:
        return {"text": before[0][1], "answer": answer, "system": system}
    if not any(role == "user" for role, _ in before):
        raise NotARow("has no user turn before the answer")
    if not whole:
        raise NotARow(f"has {len(before)} turns before the answer, and a row has one text", convertible=True)
    text = "\n".join(f"{role.capitalize()}: {text}" for role, text in before)
    return {"text": text, "answer": answer, "system": system}


def _turn(turn: Any) -> tuple[str, str]:
    if not isinstance(turn, dict):
        raise NotARow("holds a turn that has no role")
    name = str(turn.get("role", turn.get("from", "")))
    role = ROLES.get(name.lower())
    if role is None:
        raise NotARow(f"holds a turn of '{name}', which is neither user, assistant nor system")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, list):
        if not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content):
            raise NotARow("holds a turn that is not text alone")
        content = "\n".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise NotARow(f"holds a turn of '{name}' without text")
    return role, content


def _completion(record: Record, whole: bool) -> dict[str, str]:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _of_turns([*prompt, *completion], whole)
    return {"text": _text(record, "prompt"), "answer": _text(record, "completion")}


def _alpaca(record: Record, whole: bool) -> dict[str, str]:
    if record.get("history") and not whole:
        raise NotARow("has a history, and a row has one text", convertible=True)
    parts = [_text(record, "instruction"), _text(record, "input") if record.get("input") else ""]
    past = record.get("history") or []
    if not isinstance(past, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in past):
        raise NotARow("has a history that is no list of pairs")
    before = [f"User: {asked}\nAssistant: {said}\nUser: " for asked, said in past]
    text = "".join([*before, "\n\n".join(filter(None, parts))])
    return _with_system(record, {"text": text, "answer": _text(record, "output")})


def _prodigy(record: Record, whole: bool) -> dict[str, str]:
    if record.get("answer") not in (*REVIEWED, None):
        raise NotARow(f"has the answer '{record['answer']}', which is none of {', '.join(REVIEWED)}")
    if record.get("answer", "accept") != "accept":
        raise LeftOut
    if record.get("accept") is not None:
        return {"text": _text(record, "text"), "answer": _only(record["accept"])}
    if record.get("label") is None and record.get("spans"):
        raise NotARow("has spans and no label; a row has one answer for the whole text")
    return {"text": _text(record, "text"), "answer": _text(record, "label")}


def _doccano(record: Record, whole: bool) -> dict[str, str]:
    labels = record.get("labels", record.get("label"))
    return {"text": _text(record, "text" if "text" in record else "data"), "answer": _only(labels)}


def _label_studio(record: Record, whole: bool) -> dict[str, str]:
    given = record.get("annotations", record.get("completions")) or []
    done = [one for one in given if isinstance(one, dict) and not one.get("was_cancelled")]
    results = [one.get("result") or [] for one in done]
    if not any(results):
        raise LeftOut
    answers = {_only([answer for item in result for answer in _chosen(item)]) for result in results if result}
    if len(answers) > 1:
        raise NotARow(f"has annotators that do not agree ({', '.join(sorted(answers))})")
    data = record.get("data")
    texts = {key: value for key, value in data.items() if isinstance(value, str)} if isinstance(data, dict) else {}
    if not texts or (len(texts) > 1 and "text" not in texts):
        raise NotARow(f"has not one text under data but {', '.join(sorted(texts)) or 'none'}; call it text")
    return {"text": texts.get("text", next(iter(texts.values()))), "answer": answers.pop()}


def _chosen(item: Any) -> list[Any]:
    value = item.get("value") if isinstance(item, dict) else None
    if not isinstance(value, dict):
        return []
    if "start" in value or "x" in value:
        raise NotARow("has labels of parts of it; a row has one answer for the whole text")
    return [*value.get("choices", []), *value.get("text", []), *([str(value["rating"])] if "rating" in value else [])]


def _only(labels: Any) -> str:
    found = labels if isinstance(labels, list) else [labels]
    if any(isinstance(label, list | dict) for label in found):
        raise NotARow("has labels of parts of it; a row has one answer for the whole text")
    texts = [text for text in map(text_of, found) if text]
    if len(texts) != 1:
        raise NotARow(f"has {len(texts)} labels ({', '.join(texts)}), and a row has one" if texts else "has no label")
    return texts[0]


def _text(record: Record, column: str) -> str:
    value = record.get(column)
    if isinstance(value, list | dict):
        raise NotARow(f"holds several values in '{column}'")
    return text_of(value) or ""
