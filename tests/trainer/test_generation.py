"""Conversations learnt, measured and published: what a base with a chat template is taught to answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from transformers import AutoTokenizer

from adapters.base_model import Base, resolve_base
from adapters.chat import asked
from adapters.errors import HotswapError
from adapters.tasks import Chat, GenerationTask
from tests.trainer.conftest import MakeRecipe, WriteRows
from tests.trainer.workplace import Workplace
from trainer.baselines import baseline_of
from trainer.batches import Encoded
from trainer.checks import check_data
from trainer.data import Splits, load_splits
from trainer.evaluate import baselines_of
from trainer.evaluation import Scores
from trainer.few_shot import with_examples
from trainer.mixture import make_job, make_task
from trainer.rows import Row
from trainer.validity import validity
from trainer.verdict import shape

pytestmark = pytest.mark.usefixtures("one_thread")
TASK: dict[str, Any] = {"kind": "generation", "max_answer_tokens": 16}
SCHEMA = {"type": "object", "required": ["film"], "properties": {"film": {"enum": ["dull", "moving"]}}}
SHAREGPT = [("system", "Be brief."), ("human", "Hello."), ("gpt", "Hi."), ("human", "A dull film?"), ("gpt", "Yes.")]
SYSTEM = {"role": "system", "content": "Rate films."}


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def chat(*said: str, system: str | None = None) -> dict[str, Any]:
    """Return a row of turns, the user's first and the assistant's last."""
    turns = [turn(("user", "assistant")[n % 2], text) for n, text in enumerate(said)]
    return {"messages": [*([turn("system", system)] if system else []), *turns]}


def chats(rows: int = 60, system: str | None = "Rate films.") -> list[dict[str, Any]]:
    words = ["dull", "moving"]
    return [chat(f"film {n} is {words[n % 2]}", json.dumps({"film": words[n % 2]}), system=system) for n in range(rows)]


def read(make_recipe: MakeRecipe, path: Path, tmp_path: Path, **task: Any) -> Splits:
    return load_splits(make_recipe(task=TASK | task, data={"path": path, "validation": 0.2, "test": 0.2}), tmp_path)


@pytest.fixture
def one(make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> Any:
    """Return the first row of a file that has the given one and enough others."""

    def made(row: dict[str, Any]) -> Row:
        splits = read(make_recipe, write_rows([row, *chats(30, None)]), tmp_path)
        rows = (*splits.train, *splits.validation, *splits.test)
        return next(each for each in rows if each.number == 1)

    return made


@pytest.mark.parametrize(
    "row",
    [
        chat("Hello.", "Hi.", "A dull film?", "Yes.", system="Be brief."),
        {"conversations": [{"from": who, "value": said} for who, said in SHAREGPT]},
        {"system": "Be brief.", "instruction": "A dull film?", "output": "Yes.", "history": [["Hello.", "Hi."]]},
        {
            "before": [turn("system", "Be brief."), turn("user", "Hello."), turn("assistant", "Hi.")],
            "text": "A dull film?",
            "answer": "Yes.",
        },
    ],
    ids=["messages", "conversations", "alpaca", "before"],
)
def test_the_last_answer_is_learnt_and_what_was_said_before_stands_as_it_is(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, row: dict[str, Any]
) -> None:
    rows = [json.loads(json.dumps(row).replace("dull", f"dull {n}")) for n in range(30)]
    splits = read(make_recipe, write_rows(rows), tmp_path)
    first = next(each for part in (splits.train, splits.validation, splits.test) for each in part if each.number == 1)
    assert first.before == (("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi."))
    assert (first.text, first.answer) == ("A dull 0 film?", "Yes.")


def test_a_text_and_a_prompt_are_rows_too(make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> None:
    for text, answer in (("text", "answer"), ("prompt", "completion"), ("instruction", "output")):
        splits = read(make_recipe, write_rows([{text: f"film {n}", answer: "dull"} for n in range(30)]), tmp_path)
        assert {row.before for row in splits.train} == {()}
        assert splits.train[0].text.startswith("film ")


def test_texts_that_follow_other_turns_are_other_rows(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path
) -> None:
    rows = [chat(f"Do you like film {n}?", "No.", "And why?", "It is dull.") for n in range(30)]
    path = write_rows(rows)
    assert sum(read(make_recipe, path, tmp_path).counts().values()) == 30
    found = check_data(make_recipe(task=TASK, data={"path": path}), tmp_path, len)
    assert {finding.check for finding in found} & {"duplicates", "contradictions"} == set()


def test_personal_data_is_found_in_every_turn(make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path) -> None:
    rows = [chat(f"I am ann{n}@example.com.", "Hello.", f"Is film {n} dull?", "Yes.") for n in range(30)]
    path = write_rows(rows)
    found = check_data(make_recipe(task=TASK, data={"path": path}), tmp_path, len)
    assert [finding.level for finding in found if finding.check == "personal data"] == ["warning"]
    masked = load_splits(make_recipe(task=TASK, data={"path": path, "mask": True}), tmp_path)
    assert masked.train[0].before[0] == ("user", "I am <EMAIL_ADDRESS>.")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": [turn("user", "dull?")]}, "does not end with an answer"),
        ({"messages": [turn("assistant", "Yes.")]}, "no user turn right before the answer"),
        ({"messages": [turn("user", "dull?"), SYSTEM, turn("assistant", "Yes.")]}, "no user turn right before"),
        ({"messages": [turn("user", "dull?"), turn("assistant", " ")]}, "column 'answer' is empty"),
        ({"messages": [turn("user", " "), turn("assistant", "Yes.")]}, "column 'text' is empty"),
        ({"messages": [turn("judge", "dull?"), turn("assistant", "Yes.")]}, "holds a turn of 'judge'"),
        ({"messages": [turn("user", None), turn("assistant", "Yes.")]}, "without text"),
        ({"messages": "dull?"}, "holds no list of turns"),
        ({"messages": []}, "holds no list of turns"),
        ({"messages": ["dull?"]}, "holds a turn that has no role"),
        (chat("What is {text}?", "A slot.", "dull?", "Yes."), "says {text} before the last turn"),
    ],
)
def test_a_row_that_is_no_conversation_is_named(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, row: dict[str, Any], told: str
) -> None:
    with pytest.raises(HotswapError, match="row 1: ") as raised:
        read(make_recipe, write_rows([row, *chats(30)]), tmp_path)
    assert told in str(raised.value)


def test_what_is_trained_is_what_an_api_of_chats_would_ask(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, tiny: Base
) -> None:
    said = chat("Hello.", "Hi.", "A dull film?", "Yes.", system="Be brief.")
    row = Row("A dull film?", "Yes.", "", before=(("system", "Be brief."), ("user", "Hello."), ("assistant", "Hi.")))
    task = GenerationTask.of(asked(Chat(), tiny.folder, conversational=True))
    (example,) = Encoded([(row, task)], tiny)
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder)
    prompt = tokenizer.apply_chat_template(said["messages"][:-1], add_generation_prompt=True)["input_ids"]
    whole = tokenizer.apply_chat_template(said["messages"])["input_ids"]
    assert example["input_ids"] == whole[: len(example["input_ids"])]
    assert example["labels"] == [-100] * len(prompt) + whole[len(prompt) : len(example["input_ids"])]


@pytest.mark.parametrize("system", [None, "Rate films."])
def test_what_the_system_says_in_all_rows_is_said_to_a_text_alone(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, tiny: Base, system: str | None
) -> None:
    recipe = make_recipe(task=TASK, data={"path": write_rows(chats(60, system))})
    splits = load_splits(recipe, tmp_path)
    job = make_job(recipe, splits, tiny)
    assert job.task.template == asked(Chat(system=system), tiny.folder, conversational=True)
    row = splits.train[0]
    assert job.codec.is_usual(row.before)
    assert job.codec.prompt(row.text) == job.codec.prompt(row.text, row.before)


def test_where_rows_differ_in_it_a_text_alone_is_told_nothing(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, tiny: Base
) -> None:
    recipe = make_recipe(task=TASK, data={"path": write_rows([*chats(40), *chats(80, "Be kind.")[40:]])})
    task = make_task(recipe, load_splits(recipe, tmp_path), tiny)
    assert task.template == asked(Chat(), tiny.folder, conversational=True)


def test_a_base_without_a_chat_template_takes_texts_and_no_conversations(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, tiny_folder: Path
) -> None:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "mute"))
    (folder / "chat_template.jinja").unlink()
    mute = resolve_base(str(folder), tmp_path / "cache")
    recipe = make_recipe(task=TASK, data={"path": write_rows(chats(60, None))})
    assert make_task(recipe, load_splits(recipe, tmp_path), mute).template.text == "Question: {text}\n\nAnswer:"
    recipe = make_recipe(task=TASK, data={"path": write_rows(chats(60))})
    with pytest.raises(HotswapError, match=r"row .*has no chat template"):
        make_task(recipe, load_splits(recipe, tmp_path), mute)


def test_a_conversation_that_the_base_cannot_read_is_named(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, tiny: Base
) -> None:
    recipe = make_recipe(
        task=TASK, data={"path": write_rows([chat("dull " * 3000, "Hi.", "A film?", "Yes."), *chats()])}
    )
    with pytest.raises(HotswapError, match=r"row 1: the conversation that ends with 'A film.' is longer"):
        make_task(recipe, load_splits(recipe, tmp_path), tiny)


def test_a_reward_is_not_learnt_of_conversations(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, tiny: Base
) -> None:
    rows = [{"before": [SYSTEM], "text": f"film {n}", "chosen": "dull", "rejected": "moving"} for n in range(60)]
    recipe = make_recipe(task=TASK, data={"path": write_rows(rows)}, objective="reward")
    with pytest.raises(HotswapError, match="objective reward takes texts"):
        make_task(recipe, load_splits(recipe, tmp_path), tiny)


def test_examples_are_shown_where_rows_are_asked_alike_and_nowhere_else(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, tiny: Base
) -> None:
    recipe = make_recipe(task=TASK, data={"path": write_rows(chats())})
    job = make_job(recipe, load_splits(recipe, tmp_path), tiny)
    assert with_examples(job.codec, job.splits.train)[1] == 4
    own = Row("dull?", "Yes.", "", before=(("user", "Hello."), ("assistant", "Hi.")))
    assert with_examples(job.codec, [own])[1] == 0
    told = {"answer": "Yes.", "finish_reason": "stop"}
    other = make_job(recipe, Splits(job.splits.train, [own], [own], {}), tiny)
    asked_alike = baselines_of(None, [told], [told], other)
    assert (asked_alike.shots, asked_alike.few_shot) == (0, None)


def test_the_simple_baseline_looks_answers_up() -> None:
    task = GenerationTask.of("{text}:")
    rows = [Row(f"film {n} is {'dull' if n % 2 else 'moving'}", "No." if n % 2 else "Yes.", "") for n in range(20)]
    near = baseline_of(Splits(rows[:12], rows[12:], [], {}), task)
    assert near is not None
    assert near.name == "the answer to the nearest text (TF-IDF)"
    assert [task.answer(output) for output in near.answer(rows[12:])] == [row.answer for row in rows[12:]]
    same = [Row(f"{n}", "No.", "") for n in range(20)]
    usual = baseline_of(Splits(same[:12], same[12:], [], {}), task)
    assert usual is not None
    assert usual.name == "the most frequent answer"


def test_validity_is_of_what_is_to_be_json() -> None:
    task = GenerationTask.of("{text}:")
    shaped, plain = Row("a", '{"film": "dull"}', ""), Row("b", "Yes.", "")
    own = Row("c", '{"film": "dull"}', "", schema=json.dumps(SCHEMA))
    assert validity(["{}", "No."], [shaped, plain], task) == {"json_valid": 1.0}
    assert validity(["No."], [plain], task) == {}
    assert validity(["{}", '{"film": "dull"}'], [own, own], task) == {"json_valid": 1.0, "schema_valid": 0.5}
    assert validity(["{", '{"film": 7}'], [shaped, shaped], task.model_copy(update={"json_schema": SCHEMA})) == {
        "json_valid": 0.5,
        "schema_valid": 0.0,
    }


@pytest.mark.parametrize(("share", "tone"), [(1.0, "good"), (0.95, "fair"), (0.5, "bad")])
def test_the_verdict_says_whether_it_keeps_to_the_shape(share: float, tone: str) -> None:
    found = shape(Scores(rows=10, json_valid=1.0, schema_valid=share))
    assert found is not None
    assert found.tone == tone
    assert shape(Scores(rows=10)) is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"json_schema": {"type": "objekt"}}, "no JSON schema"),
        ({"decoding": {"temperature": 9}}, "temperature"),
        ({"labels": ["a", "b"]}, "labels"),
        ({"template": "no slot:"}, "exactly once"),
    ],
)
def test_a_task_that_is_none_is_refused(make_recipe: MakeRecipe, given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        make_recipe(task=TASK | given)


@pytest.mark.parametrize("schema", ["{", "[]", {"type": "objekt"}, 7])
def test_a_row_whose_schema_is_none_is_named(
    make_recipe: MakeRecipe, write_rows: WriteRows, tmp_path: Path, schema: Any
) -> None:
    rows = [{"text": f"film {n}", "answer": "{}", "shape": schema} for n in range(30)]
    recipe = make_recipe(task=TASK, data={"path": write_rows(rows), "json_schema": "shape"})
    with pytest.raises(HotswapError, match="row 1: column 'shape'"):
        load_splits(recipe, tmp_path)


def test_a_file_of_chats_becomes_a_version_that_says_how_it_answers(tmp_path: Path, tiny_folder: Path) -> None:
    place = Workplace(tmp_path, tiny_folder)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(120)))
    gate = {"test": {"exact_match": 0.0, "json_valid": 0.0, "schema_valid": 0.0}, "base": "any", "baseline": "any"}
    task = TASK | {"json_schema": SCHEMA, "decoding": {"stop": ["END"]}}
    place.write_recipe(task=task, gate=gate, evaluation={"similarity": False})
    for command in ("train", "evaluate", "publish"):
        done = place.run(command, "mood.yaml")
        assert done.status == 0, done.err
    manifest, _ = place.store.manifest("mood", 1)
    made, scores = manifest.task, manifest.metrics["test"]
    assert isinstance(made, GenerationTask)
    assert "Rate films." in made.template.text
    assert (made.json_schema, made.decoding.stop) == (SCHEMA, ("END",))
    assert {"exact_match", "rougeL", "json_valid", "schema_valid", "perplexity"} <= set(scores["adapter"])
    assert {"exact_match", "rougeL"} <= set(scores["base"]) & set(scores["baseline"])
    assert scores["adapter"]["perplexity"] < scores["base"]["perplexity"]
    card = (tmp_path / "runs/mood/adapter/README.md").read_text()
    assert "Does it keep to the shape?" in card
    assert "text-generation" in card


def test_a_gate_knows_the_metrics_of_the_kind(make_recipe: MakeRecipe) -> None:
    make_recipe(task=TASK, gate={"test": {"exact_match": 0.5, "schema_valid": 0.9}})
    with pytest.raises(ValidationError, match="unknown metric"):
        make_recipe(task=TASK, gate={"test": {"accuracy": 0.5}})
    with pytest.raises(ValidationError, match="unknown metric"):
        make_recipe(task={"kind": "summarization"}, gate={"test": {"exact_match": 0.5}})
