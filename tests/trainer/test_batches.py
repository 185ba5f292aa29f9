"""Batches in parts: what one part holds, and that the gradient is that of the whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.base_model import Base
from tests.trainer.conftest import MakeRecipe
from trainer.batches import IGNORED, Encoded, collate, parts_of
from trainer.data import Splits
from trainer.mixture import make_job
from trainer.speed import tokens_per_second
from trainer.supervised import answer_loss
from trainer.train import train

LENGTHS = [3, 9, 4, 9, 2, 7]


def batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Return rows whose ids are their own number, and whose answers are the last token."""
    rows = [
        {"input_ids": [n + 1] * length, "labels": [IGNORED] * (length - 1) + [n + 1], "choices": [n + 1, 99]}
        for n, length in enumerate(lengths)
    ]
    return collate(0)(rows)


@pytest.mark.parametrize("tokens", [1, 8, 9, 18, 20, 54, 1000])
def test_parts_hold_each_row_once_and_no_more_tokens_than_said(tokens: int) -> None:
    seen: list[int] = []
    for part in parts_of(batch(LENGTHS), tokens):
        rows, width = part["input_ids"].shape
        assert rows * width <= tokens or rows == 1
        assert width == part["attention_mask"].sum(dim=1).max(), "no more padding than its longest row needs"
        columns = (part[key] for key in ("input_ids", "labels", "choices", "attention_mask"))
        for ids, labels, choices, mask in zip(*columns, strict=True):
            n = int(ids[-1])
            assert ids.tolist() == [0] * (width - LENGTHS[n - 1]) + [n] * LENGTHS[n - 1]
            assert (labels[-1], choices[0], mask.sum()) == (n, n, LENGTHS[n - 1])
            seen.append(n)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]


def test_the_speed_is_measured_in_the_same_parts(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def watched(model: Any, part: dict[str, torch.Tensor]) -> Any:
        seen.append(part["attention_mask"].numel())
        return answer_loss(model, part)

    monkeypatch.setattr("trainer.supervised.TOKENS_AT_A_TIME", 40)
    monkeypatch.setattr("trainer.supervised.answer_loss", watched)
    job = make_job(make_recipe(), splits, tiny)
    rows = Encoded([(row, job.task) for row in splits.train], tiny)
    model = AutoModelForCausalLM.from_pretrained(tiny.folder)
    assert tokens_per_second(model, rows, 8, tiny, bfloat16=False) > 0
    assert len(seen) > 2
    assert max(seen) <= 40, "what is measured must not need more memory than what is trained"


def test_what_is_learnt_in_parts_is_what_is_learnt_at_once(
    make_recipe: MakeRecipe, splits: Splits, tiny: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []
    for tokens in (100_000, 16):
        monkeypatch.setattr("trainer.supervised.TOKENS_AT_A_TIME", tokens)
        training = {"learning_rate": 1e-2, "precision": "float32", "batch_size": 8, "epochs": 2, "patience": 99}
        recipe = make_recipe(training=training, output=make_recipe().run_folder / str(tokens))
        losses.append([entry.loss for entry in train(make_job(recipe, splits, tiny)).history if entry.loss])
    assert len(losses[0]) > 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
