"""Rows of chats and of labelling tools as one text and one answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from adapters.chat import Turn
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


# What is made of several turns: nothing (one text alone is wanted), one text of all, or turns in front of the last.
How = Literal["one", "whole", "turns"]
Made = dict[str, Any]
Shape = Callable[[Record, How], Made]


def shape_of(columns: Iterable[str]) -> tuple[str, Shape] | None:
    """Return what records with such columns are called, and what makes text and answer of one; none for a plain table.

    The second argument says what is wanted of a conversation of more than one turn. It raises :class:`NotARow` and
    :class:`LeftOut`.
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


def turns_of(value: Any) -> tuple[Turn, ...]:
    """Return who said what. Raises :class:`NotARow`."""
    if not isinstance(value, list) or not value:
        raise NotARow("holds no list of turns")
    return tuple(map(_turn, value))


def _messages(column: str) -> Shape:
    return lambda record, how: _with_system(record, _of_turns(record[column], how))


def _with_system(record: Record, made: Made) -> Made:
    """LLaMA-Factory has a column of its own for what the system says."""
    system = record.get("system")
    if not isinstance(system, str) or not system:
        return made
    before = {"before": (("system", system), *made["before"])} if "before" in made else {}
    return {**made, **before, "system": system}


def _as_conversation(all_said: Sequence[Turn]) -> Made:
    """Take the last turn for the answer, the user's for the text, and keep the others, the system's too."""
    if all_said[-1][0] != "assistant":
        raise NotARow("does not end with an answer of the assistant's")
    *before, asked, (_, answer) = ("", ""), *all_said
    if asked[0] != "user":
        raise NotARow("has no user turn right before the answer")
    return {"text": asked[1], "answer": answer, "before": tuple(before[1:])}


def _of_turns(turns: Any, how: How) -> Made:
    """Take the last turn for the answer and the user's for the text; what the system said is the template's to say."""
    all_said = turns_of(turns)
    if how == "turns":
        return _as_conversation(all_said)
    whole = how == "whole"
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


def _turn(turn: Any) -> Turn:
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


def _completion(record: Record, how: How) -> Made:
    prompt, completion = record["prompt"], record["completion"]
    if isinstance(prompt, list) and isinstance(completion, list):
        return _of_turns([*prompt, *completion], how)
    return {"text": _text(record, "prompt"), "answer": _text(record, "completion")}


def _alpaca(record: Record, how: How) -> Made:
    if record.get("history") and how == "one":
        raise NotARow("has a history, and a row has one text", convertible=True)
    parts = [_text(record, "instruction"), _text(record, "input") if record.get("input") else ""]
    past = record.get("history") or []
    if not isinstance(past, list) or not all(isinstance(turn, list) and len(turn) == 2 for turn in past):
        raise NotARow("has a history that is no list of pairs")
    text = "\n\n".join(filter(None, parts))
    if how == "turns":
        turns = [turn for asked, said in past for turn in (("user", str(asked)), ("assistant", str(said)))]
        made = _as_conversation([*turns, ("user", text), ("assistant", _text(record, "output"))])
        return _with_system(record, made)
    text = "".join([*(f"User: {asked}\nAssistant: {said}\nUser: " for asked, said in past), text])
    return _with_system(record, {"text": text, "answer": _text(record, "output")})


def _prodigy(record: Record, how: How) -> Made:
    if record.get("answer") not in (*REVIEWED, None):
        raise NotARow(f"has the answer '{record['answer']}', which is none of {', '.join(REVIEWED)}")
    if record.get("answer", "accept") != "accept":
        raise LeftOut
    if record.get("accept") is not None:
        return {"text": _text(record, "text"), "answer": _only(record["accept"])}
    if record.get("label") is None and record.get("spans"):
        raise NotARow("has spans and no label; a row has one answer for the whole text")
    return {"text": _text(record, "text"), "answer": _text(record, "label")}


def _doccano(record: Record, how: How) -> Made:
    labels = record.get("labels", record.get("label"))
    return {"text": _text(record, "text" if "text" in record else "data"), "answer": _only(labels)}


def _label_studio(record: Record, how: How) -> Made:
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
