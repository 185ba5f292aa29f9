"""Commands beside train, evaluate and publish: preferences from users, reward models, blind comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.workplace import Workplace, furnish
from trainer import comparison
from trainer.runs import aside_of

pytestmark = pytest.mark.usefixtures("one_thread")
SUMMARIES = {"kind": "summarization", "template": "Text: {text}\nSummary:", "max_answer_tokens": 6}


@pytest.fixture
def place(tmp_path: Path, tiny_folder: Path) -> Workplace:
    return furnish(tmp_path, tiny_folder)


def done(place: Workplace, *arguments: object) -> str:
    result = place.run(*arguments)
    assert result.status == 0, result.err
    return result.out


def refused(place: Workplace, *arguments: object) -> str:
    result = place.run(*arguments)
    assert (result.status, result.out) == (1, "")
    assert "Traceback" not in result.err
    return result.err.splitlines()[-1]


def publish(place: Workplace, *settings: str, release: bool = False) -> None:
    changes = [part for setting in settings for part in ("--set", setting)]
    done(place, "train", "mood.yaml", *changes)
    done(place, "publish", "mood.yaml", *changes, *([] if release else ["--no-release"]))


def write(place: Workplace, name: str, rows: list[dict[str, Any]]) -> None:
    (place.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_what_users_said_becomes_a_better_version_of_what_they_used(place: Workplace) -> None:
    publish(place, release=True)
    said = {"adapter": "mood", "version": 1, "task": "classification"}
    log = [
        {**said, "text": f"film {n} is moving", "answer": ["negative", "positive"][n % 2], "good": n % 2 == 1}
        for n in range(120)
    ]
    write(place, "feedback.jsonl", log)
    asked = ("data", "from-feedback", "feedback.jsonl", "--adapter", "mood", "--objective", "kto", "--out", "kto.jsonl")
    assert done(place, *asked) == "120 rows for objective kto in kto.jsonl\n"
    place.write_recipe(
        objective="kto",
        start_from="mood@1",
        output="runs/kto",
        task={
            **{"kind": "classification", "template": "Review: {text}\nSentiment:"},
            "labels": ["negative", "positive"],
        },
        data={"path": "kto.jsonl", "validation": 0.2, "test": 0.2},
    )
    one = refused(place, "train", "mood.yaml", "--set", "task.labels=[negative, positive, unheard]")
    assert 'set task to {template: "Review: {text}\\nSentiment:", labels: [negative, positive]}' in one
    done(place, "train", "mood.yaml")
    done(place, "evaluate", "mood.yaml")
    assert "mood@2 published" in done(place, "publish", "mood.yaml")
    manifest, _ = place.store.manifest("mood", 2)
    assert manifest.lineage["recipe"]["start_from"] == "mood@1"


def test_thumbs_alone_are_no_pairs_and_that_is_said(place: Workplace) -> None:
    said = {"adapter": "mood", "version": 1, "task": "classification"}
    write(place, "feedback.jsonl", [{**said, "text": "a", "answer": "positive", "good": False}])
    asked = ("data", "from-feedback", "feedback.jsonl", "--adapter", "mood", "--objective", "dpo", "--out", "dpo.jsonl")
    assert "objective kto takes thumbs alone" in refused(place, *asked)
    assert not (place.folder / "dpo.jsonl").exists()


def test_what_has_no_loss_cannot_be_swept(place: Workplace) -> None:
    changes = ("objective=grpo", "task.kind=summarization", "data.answer=label", "gate={}")
    asked = [part for change in changes for part in ("--set", change)]
    assert "grpo has none" in refused(place, "sweep", "mood.yaml", *asked)


def test_to_start_from_what_is_not_there_is_refused(place: Workplace) -> None:
    assert "mood@7" in refused(place, "train", "mood.yaml", "--set", "start_from=mood@7")


def test_a_reward_model_is_judged_on_held_out_pairs_and_not_published(place: Workplace) -> None:
    write(
        place, "rows.jsonl", [{"text": f"film {n}", "chosen": "dull", "rejected": "dull and slow"} for n in range(80)]
    )
    place.write_recipe(objective="reward", task=SUMMARIES, output="runs/judge")
    done(place, "train", "mood.yaml")
    told = done(place, "evaluate", "mood.yaml")
    assert "longer_wins" in told
    assert told.splitlines()[-1].endswith("reinforce.reward_model: runs/judge")
    assert json.loads(done(place, "evaluate", "mood.yaml", "--json"))["accuracy"] == 1.0
    assert "not for the store" in refused(place, "publish", "mood.yaml")


def test_two_versions_are_judged_blindly_and_the_votes_read_back(place: Workplace) -> None:
    publish(place)
    publish(place, "training.learning_rate=1.0e-7", "gate={baseline: any}")
    told = done(place, "compare", "mood@1", "mood@2", "--on", "mood.yaml", "--folder", "judged")
    assert "answers differ; open judged/compare.html" in told
    key = comparison.read_key(place.folder / "judged")
    votes = {item.id: item.left.replace("a", "left").replace("b", "right") for item in key.items}
    (place.folder / "votes.json").write_text(json.dumps({"page": key.page, "votes": votes}))
    asked = ("compare", "mood@1", "mood@2", "--folder", "judged", "--votes", "votes.json", "--pairs", "pairs.jsonl")
    assert f"mood@1 won {len(votes)}, mood@2 won 0, ties 0; 1 voter\n" in done(place, *asked)
    rows = [json.loads(line) for line in (place.folder / "pairs.jsonl").read_text().splitlines()]
    assert {frozenset(row) for row in rows} == {frozenset({"text", "chosen", "rejected"})}
    assert json.loads(done(place, *asked, "--json"))["compared"] == ["mood@1", "mood@2"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("mood@1", "mood@2"), "--on RECIPE.yaml"),
        (("mood", "mood@2", "--on", "mood.yaml"), "'mood' is no version"),
        (("mood@\u00b2", "mood@2", "--on", "mood.yaml"), "'mood@\u00b2' is no version"),
        (("mood@1", "mood@2", "--on", "mood.yaml"), "mood@1"),
        (("mood@1", "mood@2", "--votes", "votes.json"), "write the page first"),
    ],
)
def test_a_comparison_that_cannot_be_made_says_why(place: Workplace, arguments: tuple[str, ...], said: str) -> None:
    assert said in refused(place, "compare", *arguments)


def test_what_was_forgotten_is_measured_and_reported(place: Workplace) -> None:
    (place.folder / "general.txt").write_text("The plot is dull and slow. " * 200)
    place.write_recipe(evaluation={"general_text": "general.txt"})
    done(place, "train", "mood.yaml")
    done(place, "evaluate", "mood.yaml")
    found = json.loads((place.run_folder / "evaluation.json").read_text())["forgetting"]
    assert found["tokens"] > 500
    assert found["adapter"] > found["base"] * 1.001
    assert "what rises was forgotten" in (place.run_folder / "report.html").read_text()


def test_always_answering_the_most_frequent_label_stands_beside_the_scores(place: Workplace) -> None:
    rows = [
        {"text": f"film {n} is {'moving' if n % 4 else 'dull'}", "label": "good" if n % 4 else "bad"}
        for n in range(160)
    ]
    write(place, "rows.jsonl", rows)
    done(place, "train", "mood.yaml")
    result = place.run("evaluate", "mood.yaml")
    assert "always 'good' would reach accuracy 0." in result.err
    found = json.loads((place.run_folder / "evaluation.json").read_text())
    truth = found["scores"]["test"]["base"]["per_class"]["good"]["support"] / found["scores"]["test"]["base"]["rows"]
    assert found["baselines"]["majority"]["accuracy"] == pytest.approx(truth)
    assert found["baselines"]["majority"]["macro_f1"] == pytest.approx(2 * truth / (1 + truth) / 2)
    assert "the most frequent label" in (place.run_folder / "report.html").read_text()


def test_the_card_has_the_head_that_hugging_face_reads(place: Workplace) -> None:
    from huggingface_hub import ModelCard

    card = {"language": "en", "licence": "apache-2.0", "limits": "Films only.", "consent": "All agreed."}
    place.write_recipe(card=card)
    publish(place)
    read = ModelCard.load(place.folder / "store/mood/versions/1/README.md")
    assert (read.data.library_name, read.data.license, read.data.base_model) == ("peft", "apache-2.0", "tiny-llama")
    scores = {(result.dataset_split, result.metric_type): result.metric_value for result in read.data.eval_results}
    assert scores["test", "accuracy"] == 1.0
    assert "Films only." in read.text
    assert "All agreed." in read.text
    assert "does not say under which licence" in read.text


def test_a_task_of_a_mix_is_taken_in_as_it_was_trained(place: Workplace) -> None:
    from adapters import cli
    from adapters.__main__ import _parser as parser

    write(place, "moods.jsonl", [{"text": f"caller {n} is {'ab'[n % 2]}", "label": "ab"[n % 2]} for n in range(80)])
    task = {"kind": "classification", "template": "Call: {text}\nMood:", "max_input_tokens": 99, "normalize": True}
    mix = {"calls": {"task": task, "data": {"path": "moods.jsonl", "validation": 0.2, "test": 0.2}}}
    place.write_recipe(mix=mix, gate={"extra_tests": {"calls": {"accuracy": 1.0}}})
    done(place, "train", "mood.yaml")
    asked = ["add", str(place.run_folder / "mixed/calls"), "calls", "--store", str(place.folder / "store")]
    assert cli.run(parser(), [*asked, "--base", str(place.base)]) == 0
    manifest, _ = place.store.manifest("calls", 1)
    assert (manifest.task.template.text, manifest.task.max_input_tokens) == (task["template"], 99)
    assert manifest.task.normalize
    assert set(manifest.files) == {"adapter_config.json", "adapter_model.safetensors"}, "no other task's card"


def test_the_next_command_names_the_store_too(place: Workplace) -> None:
    told = done(place, "train", "mood.yaml", "--store", "elsewhere")
    assert told.splitlines()[-1] == "next: python -m trainer evaluate mood.yaml --store elsewhere"


def test_a_run_that_is_kept_aside_is_told_of(place: Workplace) -> None:
    done(place, "train", "mood.yaml")
    place.run_folder.rename(aside_of(place.run_folder))
    place.run_folder.mkdir()
    assert f"the run before it is kept in {aside_of(place.run_folder)}" in refused(place, "evaluate", "mood.yaml")
    done(place, "train", "mood.yaml")
    done(place, "evaluate", "mood.yaml")
