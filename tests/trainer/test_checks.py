"""``python -m trainer data check``: what is wrong with the rows is said before anything is trained on them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from adapters.personal import masked, personal
from tests.trainer.conftest import MakeRecipe, WriteRows, reviews, settings
from trainer.checks import Finding, check_data
from trainer.data import load_splits
from trainer.duplicates import near_duplicates
from trainer.label_noise import suspects
from trainer.recipe import Recipe

STORY = "The council met on the third of May and decided after long debate to build the new bridge over the river at "


def check(path: Path, task: Any = "classification", **data: object) -> list[Finding]:
    told = {"kind": task} if isinstance(task, str) else task
    recipe = Recipe.model_validate({"name": "rows", "task": told, "data": {"path": path, **data}})
    return check_data(recipe, path.parent / "cache", lambda text: len(text.split()))


def about(findings: list[Finding], name: str) -> list[Finding]:
    return [finding for finding in findings if finding.check == name]


def test_sound_rows_raise_no_warning(write_rows: WriteRows) -> None:
    rows = [{**row, "text": f"{row['text']}, said critic {n * 7}"} for n, row in enumerate(reviews(60))]
    assert {finding.level for finding in check(write_rows(rows))} == {"note"}


def test_every_unusable_row_is_named_not_only_the_first(write_rows: WriteRows) -> None:
    rows = [*reviews(20), {"text": " ", "label": "x"}, {"text": "film", "label": None}]
    errors = about(check(write_rows(rows)), "cells")
    assert [finding.rows for finding in errors] == [(21,), (22,)]
    assert "row 21: column 'text' is empty" in errors[0].message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"text": "a", "label": "b"}\nrubbish\n[1]\n', "line 2 is not a JSON object"),
        ('{"text": "café", "label": "b"}\n'.encode("latin-1"), "line 1 is not UTF-8"),
    ],
)
def test_lines_that_cannot_be_read_are_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    found = check(path)
    assert found[0].level == "error"
    assert said in found[0].message


def test_texts_with_two_answers_and_texts_that_repeat(write_rows: WriteRows) -> None:
    rows = [
        *reviews(20),
        {"text": "Film 0 is  dull", "label": "negative"},
        {"text": "film 1 is moving", "label": "negative"},
    ]
    found = check(write_rows(rows))
    assert about(found, "duplicates")[0].rows == (21, 22)
    assert about(found, "contradictions")[0].rows == (2, 22)


def test_near_duplicates_that_would_be_trained_and_tested_on_are_a_leak_that_a_group_mends(
    write_rows: WriteRows, make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    path = write_rows([*reviews(40), *({"text": f"{STORY} mile {n}", "label": "positive"} for n in range(20))])
    (leak,) = about(check(path), "leakage")
    assert set(leak.rows) <= set(range(41, 61))
    assert not about(check(path, near_duplicates="group"), "leakage")
    recipe = make_recipe(data={"path": str(path), "validation": 0.2, "test": 0.2, "near_duplicates": "group"})
    splits = load_splits(recipe, tmp_path / "cache")
    holding = [
        name for name in ("train", "validation", "test") if any("council" in r.text for r in getattr(splits, name))
    ]
    assert len(holding) == 1


def test_near_duplicates_are_compared_exactly() -> None:
    other = "An entirely different sentence about the weather in spring"
    assert near_duplicates([STORY + "Oxford", other, STORY + "Cambridge", other.upper()]) == [[0, 2], [1, 3]]
    assert near_duplicates([STORY, other]) == []


PERSONAL = (
    "Ask ann.b@example.com, +44 20 7946 0958 or 10.11.12.13 about DE89370400440532013000 and 4111 1111 1111 1111."
)


def test_personal_data_is_found_and_masked(write_rows: WriteRows, make_recipe: MakeRecipe, tmp_path: Path) -> None:
    assert {kind for kind, _, _ in personal(PERSONAL)} == {
        "CREDIT_CARD",
        "EMAIL_ADDRESS",
        "IBAN_CODE",
        "IP_ADDRESS",
        "PHONE_NUMBER",
    }
    assert (
        masked(PERSONAL) == "Ask <EMAIL_ADDRESS>, <PHONE_NUMBER> or <IP_ADDRESS> about <IBAN_CODE> and <CREDIT_CARD>."
    )
    plain = "Order 12345678 of 2024-11-05, version 1.2.3, 300 pieces."
    assert masked(plain) == plain
    path = write_rows([*reviews(60), {"text": PERSONAL, "label": "negative"}])
    assert {finding.rows for finding in about(check(path), "personal data")} == {(61,)}
    splits = load_splits(make_recipe(data={"path": str(path), "mask": True}), tmp_path / "cache")
    texts = [row.text for row in (*splits.train, *splits.validation, *splits.test)]
    assert not any("@" in text for text in texts)


def test_labels_that_contradict_the_others_are_doubted() -> None:
    words = {"good": "moving tender bright", "bad": "dull slow grey"}
    rows = [(f"{words[label]} film number {n}", label) for n in range(60) for label in words]
    texts, labels = [text for text, _ in rows], [label for _, label in rows]
    labels[10], labels[33] = "bad", "good"
    assert sorted(suspects(texts, labels)) == [(10, "good"), (33, "bad")]
    assert suspects(texts[:50], labels[:50]) == [], "too few to judge by"
    assert sorted(suspects([*texts, "what?"], [*labels, "rare"])) == [(10, "good"), (33, "bad")]


def test_of_very_many_rows_some_are_looked_at_and_named_by_their_own_numbers(
    monkeypatch: pytest.MonkeyPatch, write_rows: WriteRows
) -> None:
    words = {"positive": "moving tender bright", "negative": "dull slow grey"}
    rows = [{"text": f"{words[label]} film number {n}", "label": label} for n in range(200) for label in words]
    for row in rows[::10]:
        row["label"] = next(label for label in words if label != row["label"])
    for module in ("label_noise", "checks"):
        monkeypatch.setattr(f"trainer.{module}.MOST_ROWS", 200)
    (finding,) = about(check(write_rows(rows)), "label noise")
    assert " labels of 200 rows, drawn by chance, are doubted" in finding.message
    assert 10 < int(finding.message.split()[0]) < 30
    assert {number % 10 for number in finding.rows} == {1}, "every tenth is wrong, and rows are counted from 1"


def test_classes_that_are_rare_or_nearly_all_are_named(write_rows: WriteRows) -> None:
    rows = [{"text": f"{n} is fine as number {n * n}", "label": "ok"} for n in range(95)]
    found = about(check(write_rows([*rows, {"text": "odd", "label": "spam"}])), "classes")
    said = " ".join(finding.message for finding in found)
    assert "macro_f1" in said
    assert "'spam' has 1 rows" in said
    (only,) = about(check(write_rows(rows)), "classes")
    assert only.level == "error"


def test_texts_that_are_cut_and_texts_that_are_mangled(write_rows: WriteRows) -> None:
    rows = [
        *reviews(20),
        {"text": "word " * 600, "label": "negative"},
        {"text": "CafÃ© trÃ¨s bon", "label": "positive"},
    ]
    found = check(write_rows(rows))
    assert [finding.rows for finding in about(found, "length") if finding.level == "warning"] == [(21,)]
    assert about(found, "encoding")[0].rows == (22,)


def test_on_the_command_line(write_rows: WriteRows, tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from adapters import cli
    from trainer.__main__ import parser

    path = write_rows([*reviews(20), {"text": "", "label": "x"}])
    arguments = ["data", "check", str(path), "--base", str(tiny_folder)]
    assert cli.run(parser(), arguments) == 1
    assert "column 'text' is empty" in capsys.readouterr().out
    assert cli.run(parser(), [*arguments, "--answer", "topic"]) == 1
    assert "the data has no column 'topic'; it has: label, text" in capsys.readouterr().err
    assert cli.run(parser(), ["data", "check", str(write_rows(reviews(20))), "--base", str(tiny_folder), "--json"]) == 0
    assert {record["level"] for record in json.loads(capsys.readouterr().out)} <= {"note", "warning"}


@pytest.mark.parametrize("stratified", [False, True])
def test_leakage_is_looked_for_in_the_splits_that_training_will_use(
    write_rows: WriteRows, make_recipe: MakeRecipe, stratified: bool
) -> None:
    texts = [" ".join(f"word{n // 2}-{k}" for k in range(20)) + " again" * (n % 2) for n in range(80)]
    rows = [{"text": text, "label": "ab"[n // 2 % 2]} for n, text in enumerate(texts)]
    path, data = write_rows(rows), {"validation": 0.3, "test": 0.3, "stratified": stratified}
    splits = load_splits(make_recipe(seed=0, data={"path": str(path), **data}), path.parent / "cache")
    where = {row.text: name for name in ("train", "validation", "test") for row in getattr(splits, name)}
    crossing = sum(where[one] != where[other] for one, other in zip(texts[::2], texts[1::2], strict=True))
    (leaking,) = about(check(path, **data), "leakage")
    assert 0 < crossing < 40
    assert leaking.message.startswith(f"{crossing} groups of near-duplicates lie in several splits")


def test_rows_that_another_test_has_too_and_its_empty_cells_are_named(write_rows: WriteRows) -> None:
    path = write_rows(reviews(40))
    far = write_rows([*reviews(3), {"text": "a film from afar", "label": "negative"}, {"text": ""}], "far.jsonl")
    found = check(path, extra_tests={"far": {"path": far}})
    (leak,) = about(found, "leakage")
    assert leak.rows == (1, 2, 3)
    assert leak.message.startswith("extra_tests.far: 3 rows are in the recipe's own data too")
    assert [finding.message for finding in about(found, "cells")] == [
        "extra_tests.far: row 5: column 'text' is empty; fill it in or remove the row."
    ]


def test_of_a_recipe_the_mixed_tasks_are_looked_at_too_with_the_base_it_names(
    write_rows: WriteRows, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from adapters import cli
    from trainer.__main__ import parser

    path, other = write_rows(reviews(20)), write_rows([*reviews(20), {"text": "", "label": "x"}], "other.jsonl")
    task = {"kind": "classification"}
    recipe = settings(
        base=str(tiny_folder), data={"path": str(path)}, mix={"other": {"task": task, "data": {"path": str(other)}}}
    )
    (tmp_path / "mood.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.run(parser(), ["data", "check", str(tmp_path / "mood.yaml")]) == 1
    out = capsys.readouterr().out
    assert "mix.other: row 21: column 'text' is empty" in out
    assert "tokens: median" in out
