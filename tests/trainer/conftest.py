"""Recipes and data sets small enough to train on in a second or two."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer.data import Splits
from trainer.recipe import Recipe
from trainer.rows import Row

MakeRecipe = Callable[..., Recipe]
WriteRows = Callable[..., Path]


@pytest.fixture(autouse=True)
def _a_cache_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOTSWAP_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Sums in another order are other sums: bit-identity is promised for the same number of threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def reviews(rows: int) -> list[dict[str, Any]]:
    """Return rows that a two-layer model learns at once: one word decides."""
    kinds = [("dull", "negative"), ("moving", "positive")]
    return [{"text": f"film {n} is {kinds[n % 2][0]}", "label": kinds[n % 2][1]} for n in range(rows)]


def settings(**changes: Any) -> dict[str, Any]:
    """Return a recipe's content with some of its keys replaced."""
    return {
        "name": "mood",
        "seed": 7,
        "task": {"kind": "classification", "template": "Review: {text}\nSentiment:"},
        "data": {"path": "rows.jsonl", "validation": 0.2, "test": 0.2},
        "lora": {"rank": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]},
        "training": {"learning_rate": 1e-2, "batch_size": 8, "epochs": 2, "evaluations": 4, "patience": 9},
    } | changes


@pytest.fixture
def make_recipe(tmp_path: Path) -> MakeRecipe:
    def make(**changes: Any) -> Recipe:
        return Recipe.model_validate(settings(**{"output": tmp_path / "run", **changes}))

    return make


@pytest.fixture
def write_rows(tmp_path: Path) -> WriteRows:
    """Write rows as JSONL; return the path."""

    def write(rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return write


@pytest.fixture(scope="session")
def splits() -> Splits:
    rows = [Row(row["text"], row["label"], row["text"]) for row in reviews(96)]
    return Splits(rows[:64], rows[64:80], rows[80:], {})
