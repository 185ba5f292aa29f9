"""In which numbers a training multiplies."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from transformers import AutoModelForCausalLM

from adapters.base_model import Base
from trainer import precision


@pytest.fixture(autouse=True)
def untried(monkeypatch) -> Iterator[None]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    precision._pays.cache_clear()
    yield
    precision._pays.cache_clear()


@pytest.mark.parametrize(
    ("able", "times_as_fast", "bfloat16"),
    [
        ({"avx512_bf16": True}, 1.7, True),
        ({"avx512_bf16": True}, 0.54, False),
        ({"avx512_bf16": True}, 1.1, False),
        ({"amx_bf16": True}, 4.0, True),
    ],
)
def test_bfloat16_is_taken_where_it_is_faster(monkeypatch, able: dict, times_as_fast: float, bfloat16: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    monkeypatch.setattr(precision, "_seconds", lambda dtype: times_as_fast if dtype == torch.float32 else 1.0)
    assert precision.in_bfloat16("auto") is bfloat16
    assert precision.in_bfloat16("bfloat16")
    assert not precision.in_bfloat16("float32")


def test_a_processor_without_instructions_for_it_is_not_tried(monkeypatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    monkeypatch.setattr(precision, "_seconds", lambda dtype: pytest.fail("a product in bfloat16 would take seconds"))
    assert not precision.in_bfloat16("auto")


def test_it_is_tried_once_a_process(monkeypatch) -> None:
    tried = []
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    monkeypatch.setattr(precision, "_seconds", lambda dtype: tried.append(dtype) or 1.0)
    for _ in range(3):
        precision.in_bfloat16("auto")
    assert tried == [torch.float32, torch.bfloat16]


def test_attention_is_not_left_to_cudnn(tiny: Base) -> None:
    torch.backends.cuda.enable_cudnn_sdp(True)
    precision.settle_attention(AutoModelForCausalLM.from_pretrained(tiny.folder), bfloat16=True)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_tried_takes_time(dtype: torch.dtype) -> None:
    assert precision._seconds(dtype) > 0
