"""Batches by a GPU's memory: arithmetic, so that no GPU is needed to see it."""

from __future__ import annotations

from typing import Any

import pytest

from adapters.architecture import Architecture
from trainer.memory import Fit, fitting

GIB = 2**30
ONE_B = Architecture({"hidden_size": 2048, "num_hidden_layers": 16})
EIGHT_B = Architecture({"hidden_size": 4096, "num_hidden_layers": 32})


def fit(architecture: Architecture, billions: float, gib: float, **given: Any) -> Fit:
    about = {"rows": 16, "longest": 512, "bfloat16": True} | given
    return fitting(architecture, int(billions * 1e9), int(gib * GIB), **about)


def test_a_small_base_takes_its_batch_whole() -> None:
    assert fit(ONE_B, 1.2, 80) == Fit(16, checkpointing=False)


def test_on_a_smaller_gpu_the_batch_comes_in_parts_that_divide_it() -> None:
    parts = [fit(ONE_B, 1.2, gib).rows for gib in (8, 12, 16, 24, 80)]
    assert parts == sorted(parts)
    assert len(set(parts)) > 2
    assert all(16 % part == 0 for part in parts)


def test_activations_are_computed_again_only_where_a_row_would_not_fit() -> None:
    assert not fit(ONE_B, 1.2, 8, longest=512).checkpointing
    assert fit(ONE_B, 1.2, 8, longest=8192).checkpointing
    assert not fit(ONE_B, 1.2, 8, longest=8192, checkpointing=False).checkpointing
    assert fit(ONE_B, 1.2, 80, checkpointing=True).checkpointing


def test_computed_again_more_rows_fit() -> None:
    assert fit(ONE_B, 1.2, 12, checkpointing=True).rows > fit(ONE_B, 1.2, 12, checkpointing=False).rows


def test_half_the_width_takes_half_the_memory() -> None:
    assert fit(ONE_B, 1.2, 24, bfloat16=True).rows > fit(ONE_B, 1.2, 24, bfloat16=False).rows


def test_four_bits_bring_a_large_base_onto_a_small_gpu() -> None:
    assert fit(EIGHT_B, 8, 24, four_bit=True).rows > fit(EIGHT_B, 8, 24).rows


@pytest.mark.parametrize("gib", [1, 4])
def test_where_nothing_fits_one_row_is_tried(gib: float) -> None:
    assert fit(EIGHT_B, 8, gib).rows == 1
