"""The shipped recipes, on files as their users would bring them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.trainer.workplace import Workplace

RECIPES = Path(__file__).parents[2] / "trainer" / "recipes"
pytestmark = pytest.mark.usefixtures("one_thread")
QUICK = ("training.epochs=1", "training.evaluations=1", "gate={}", "evaluation.similarity=false")


def run(place: Workplace, recipe: str, *changes: str) -> None:
    settings = [part for change in (*changes, *QUICK, "output=run") for part in ("--set", change)]
    for command in ("train", "evaluate"):
        result = place.run(command, RECIPES / recipe, *settings)
        assert result.status == 0, result.err


def test_legal_documents_longer_than_the_model_reads_are_summarized(tmp_path: Path, tiny_folder: Path) -> None:
    place = Workplace(tmp_path, tiny_folder)
    facts = " ".join(f"The seller sent invoice {n} to the buyer." for n in range(8))
    rows = [
        {"text": f"{facts} Case {n}. The court ruled for the buyer.", "summary": "The buyer won.", "matter": n // 2}
        for n in range(60)
    ]
    (tmp_path / "judgments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(
        place,
        "legal-summary.yaml",
        "data.path=judgments.jsonl",
        "task.max_input_tokens=64",
        "task.max_answer_tokens=8",
        "data.near_duplicates=ignore",
    )
    assert place.store.names() == []
    scores = json.loads((tmp_path / "run/evaluation.json").read_text())["scores"]["test"]["adapter"]
    assert scores["rows"] > 0
    assert json.loads((tmp_path / "run/adapter/task.json").read_text())["long"] == "chunks"


def test_case_outcomes_are_scored_apart_by_court(tmp_path: Path, tiny_folder: Path) -> None:
    place = Workplace(tmp_path, tiny_folder)
    with (tmp_path / "cases.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["facts", "outcome", "court", "year", "matter"])
        for n in range(160):
            said, won = [("paid late", "dismissed"), ("never delivered", "upheld")][n % 2]
            table.writerow([f"Matter {n}: the firm {said}.", won, ["north", "south"][n // 2 % 2], 2000 + n % 3, n])
    run(place, "case-outcome.yaml", "data.path=cases.csv", "data.near_duplicates=ignore")
    evaluation = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert set(evaluation["slices"]) == {"length", "court", "year"}
    assert set(evaluation["slices"]["court"]["values"]) == {"north", "south"}
