"""Generation: an answer to whatever is asked, in the base's own chat form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from transformers import AutoTokenizer

from adapters.__main__ import main
from adapters.base_model import Base, resolve_base
from adapters.chat import asked, conversation, talks
from adapters.errors import HotswapError, InvalidAdapter
from adapters.manifest import Manifest
from adapters.store import Store
from adapters.tasks import Chat, Completion, Decoding, GenerationTask, Task
from adapters.tasks.shapes import keeps_to, same
from tests.bases import CHAT_TEMPLATES, NEXT, TURNS, with_chat_template
from tests.conftest import MakeAdapter

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
BEFORE = [("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi.")]
# A base that thinks: what it writes in front of an answer that is given, it does not write when it is asked.
THINKING = TURNS.replace("{{ m.content", "{% if m.role == 'assistant' %}<think></think>{% endif %}{{ m.content") + NEXT


def task(**settings: Any) -> GenerationTask:
    return GenerationTask.of("Question: {text}\nAnswer:", **settings)


@pytest.fixture(params=[*CHAT_TEMPLATES, "thinking"])
def base(request: pytest.FixtureRequest, tiny_folder: Path, tmp_path: Path) -> Base:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / request.param))
    if request.param == "thinking":
        (folder / "chat_template.jinja").write_text(THINKING)
    else:
        with_chat_template(folder, request.param)
    return resolve_base(str(folder), tmp_path / "cache")


@pytest.mark.parametrize("before", [[], BEFORE[:1], BEFORE[1:], BEFORE])
def test_a_conversation_is_asked_as_an_api_of_chats_asks_it(base: Base, before: list[tuple[str, str]]) -> None:
    if base.folder.name == "instruct":
        before = [turn for turn in before if turn[0] != "system"]  # it would write it as an answer
    made = task().model_copy(update={"template": conversation(before, base.folder)})
    said = [{"role": role, "content": text} for role, text in [*before, ("user", "A moving film?")]]
    theirs = AutoTokenizer.from_pretrained(base.folder).apply_chat_template(said, add_generation_prompt=True)
    assert made.prompt("A moving film?", base.tokenizer).ids == list(theirs["input_ids"])


def test_a_text_alone_is_asked_in_the_tasks_own_chat(base: Base) -> None:
    made = GenerationTask.of(asked(Chat(user="Say: {text}"), base.folder, conversational=True))
    theirs = AutoTokenizer.from_pretrained(base.folder).apply_chat_template(
        [{"role": "user", "content": "Say: dull"}], add_generation_prompt=True
    )
    assert made.prompt("dull", base.tokenizer).ids == list(theirs["input_ids"])


def test_what_was_said_before_may_be_longer_than_a_template(base: Base) -> None:
    made = conversation([("user", "word " * 4000), ("assistant", "Hi.")], base.folder)
    assert len(made.text) > 10_000


def test_what_was_said_before_cannot_hold_the_place_of_the_text(base: Base) -> None:
    with pytest.raises(HotswapError, match="once each"):
        conversation([("user", "What is {text}?"), ("assistant", "A slot.")], base.folder)


def test_answers_are_the_same_every_time_unless_the_manifest_says_otherwise() -> None:
    assert task().sampling({}).repeatable
    assert task().defaults()["temperature"] == 0
    warm = task(max_answer_tokens=9, decoding={"temperature": 0.7, "top_p": 0.9, "stop": ["\n\n"]})
    assert not warm.sampling({}).repeatable
    said = warm.defaults()
    assert (said["max_tokens"], said["temperature"], said["top_p"], said["stop"]) == (9, 0.7, 0.9, ["\n\n"])


def test_what_ends_a_turn_of_the_base_ends_an_answer(tiny_folder: Path, tmp_path: Path) -> None:
    folder = with_chat_template(Path(shutil.copytree(tiny_folder, tmp_path / "copy")), "other-end")
    made = GenerationTask.of(asked(Chat(), folder, conversational=True))
    assert made.defaults()["stop_token_ids"] == list(made.sampling({}).stop) == [0]


def test_an_answer_ends_before_a_stop_text() -> None:
    made = task(decoding={"stop": ["END", "\n\n"]})
    assert made.read(Completion(" one\n\ntwo END", "length"), {}) == {"answer": "one", "finish_reason": "stop"}
    assert made.read(Completion(" one", "length"), {}) == {"answer": "one", "finish_reason": "length"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"decoding": {"temperature": 3}}, "decoding.temperature: Input should be less than or equal to 2"),
        ({"decoding": {"temperature": True}}, "decoding.temperature"),
        ({"decoding": {"temperature": "0.5"}}, "decoding.temperature"),
        ({"decoding": {"temperature": float("nan")}}, "decoding.temperature"),
        ({"decoding": {"top_p": 0}}, "decoding.top_p"),
        ({"decoding": {"top_k": 1.5}}, "decoding.top_k"),
        ({"decoding": {"stop": [""]}}, "decoding.stop"),
        ({"decoding": {"stop": "END"}}, "decoding.stop: takes a list"),
        ({"decoding": {"temprature": 1}}, "did you mean 'decoding.temperature'|did you mean 'temperature'"),
        ({"max_answer_tokens": 0}, "max_answer_tokens"),
        ({"long": "chunks"}, "long: unknown key"),
        ({"json_schema": {"type": "objekt"}}, "no JSON schema"),
        ({"json_schema": ["object"]}, "json_schema"),
        ({"json_schema": {"properties": 5}}, "no JSON schema: properties"),
        ({"json_schema": {"pattern": "("}}, "no JSON schema"),
        ({"json_schema": {"$schema": 5}}, "no JSON schema"),
        ({"json_schema": {"$ref": "#/$defs/none"}}, "is not in the schema"),
        ({"json_schema": {"$ref": "http://169.254.169.254/latest"}}, "is elsewhere"),
        ({"json_schema": {"enum": ["x" * 40_000]}}, "at most 32,768"),
    ],
)
def test_a_task_that_is_none_is_refused_by_name(given: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidAdapter, match=told):
        task(**given)


def test_a_task_is_read_back_as_it_was_written(tiny: Base) -> None:
    made = task(decoding={"temperature": 0.2, "stop": ["x"]}, json_schema=SCHEMA)
    assert TypeAdapter(Task).validate_json(made.model_dump_json()) == made
    assert made.decoding == Decoding(temperature=0.2, stop=("x",))
    with pytest.raises(ValidationError):
        TypeAdapter(Task).validate_python({"kind": "generations", "template": {"text": "{text}:"}})


@pytest.mark.parametrize(
    ("one", "other", "are"),
    [
        ("yes", " yes ", True),
        ("yes", "Yes", False),
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', True),
        ('{"a": 1}', '{"a": 2}', False),
        ('{"a": 1', '{"a": 1}', False),
        ("1.0", "1", False),  # no structure: read as they are written
        ("[1]", "[1.0]", True),
    ],
)
def test_answers_are_the_same_where_they_say_the_same_json(one: str, other: str, are: bool) -> None:
    assert same(one, other) is are


@pytest.mark.parametrize(
    ("text", "keeps"),
    [
        ('{"n": 1}', True),
        ('{"n": "1"}', False),
        ("{}", False),
        ("n: 1", False),
        ('{"n": NaN}', False),
        ("[" * 9999, False),
    ],
)
def test_an_answer_keeps_to_a_schema_or_does_not(text: str, keeps: bool) -> None:
    assert keeps_to(text, SCHEMA) is keeps


def test_scores_are_rouge_and_exact_match() -> None:
    scores = task().score([{"answer": "a b"}, {"answer": "c"}], ["a b", "d"])
    assert scores == {"rows": 2, "rouge1": 0.5, "rouge2": 0.5, "rougeL": 0.5, "words": 1.5, "exact_match": 0.5}


def add(monkeypatch: pytest.MonkeyPatch, store: Store, base: Base, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["adapters", "add", *arguments, "--base", str(base.folder), "--store", store.place])
    return main()


def test_an_adapter_from_elsewhere_is_taken_in_with_the_chat_of_the_base(
    monkeypatch: pytest.MonkeyPatch, store: Store, tiny: Base, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    said = [
        "--max-tokens",
        "40",
        "--temperature",
        "0.5",
        "--stop",
        "END",
        "--json-schema",
        str(tmp_path / "schema.json"),
    ]
    assert add(monkeypatch, store, tiny, str(make_adapter()), "helper", "--task", "generation", *said) == 0
    made = store.manifest("helper", 1)[0].task
    assert isinstance(made, GenerationTask)
    assert made.template == asked(Chat(), tiny.folder, conversational=True)
    assert (made.max_answer_tokens, made.json_schema) == (40, SCHEMA)
    assert made.decoding == Decoding(temperature=0.5, stop=("END",))


def test_where_the_base_has_no_chat_template_the_prompt_is_plain_and_said(
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    tiny_folder: Path,
    tmp_path: Path,
    make_adapter: MakeAdapter,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "mute"))
    (folder / "chat_template.jinja").unlink()
    mute = resolve_base(str(folder), tmp_path / "cache")
    assert not talks(folder)
    assert add(monkeypatch, store, mute, str(make_adapter()), "helper", "--task", "generation") == 0
    assert store.manifest("helper", 1)[0].task.template.text == "Question: {text}\n\nAnswer:"
    assert "taken to be trained with the prompt" in capsys.readouterr().err
    assert add(monkeypatch, store, mute, str(make_adapter()), "helper", "--task", "generation", "--chat") == 1
    assert "has no chat template" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--task", "summarization", "--temperature", "1"], "are for --task generation"),
        (["--temperature", "1"], "say what it does"),
        (["--task", "generation", "--temperature", "7"], "temperature"),
        (["--task", "generation", "--json-schema", "/nowhere"], "cannot be read as JSON"),
    ],
)
def test_what_cannot_hold_is_refused_before_anything_is_stored(
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    tiny: Base,
    make_adapter: MakeAdapter,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    told: str,
) -> None:
    assert add(monkeypatch, store, tiny, str(make_adapter()), "helper", *more) == 1
    assert told in capsys.readouterr().err
    assert store.versions("helper") == []


def test_a_manifest_of_before_is_read_as_before(stocked: Store) -> None:
    for name in ("mood", "brief"):
        stored = stocked.manifest(name, 1)[0].to_bytes()
        assert b"decoding" not in stored
        assert Manifest.from_bytes(stored).to_bytes() == stored
