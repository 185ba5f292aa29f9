"""In which precision a training multiplies."""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import torch
from accelerate import PartialState
from torch.nn.functional import linear
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from adapters.manifest import Computed

SDPA_FLOAT32 = "sdpa_float32"
# So many times as fast must products be, before the conversions around them are made up for.
PAYS = 1.25
TOKENS, WIDTH, TURNS = 512, 1024, 5


def in_bfloat16(precision: str) -> bool:
    """Whether to multiply in bfloat16 (autocast: weights, gradients and the optimizer stay float32).

    ``auto`` does where it is faster. Whether a CPU has instructions for it does not tell: of two with AVX512-bf16, an
    AMD EPYC trained 1.7 times as fast as in float32, and an Intel Xeon 0.66 times.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    if PartialState().num_processes > 1:  # accelerate's FSDP and autocast on a CPU mix the two up
        return False
    able = torch.cpu.get_capabilities()  # without instructions for it one product may take seconds
    return bool(able.get("avx512_bf16") or able.get("amx_bf16")) and _pays()


@cache
def _pays() -> bool:
    """Multiply once and again as a layer does, for some tens of milliseconds, and see which numbers are faster."""
    return _seconds(torch.float32) >= PAYS * _seconds(torch.bfloat16)


def _seconds(dtype: torch.dtype) -> float:
    """Return what one product takes. The quickest turn: what else the machine does only adds."""
    rows, weight = torch.ones(TOKENS, WIDTH, dtype=dtype), torch.ones(WIDTH, WIDTH, dtype=dtype)
    turns = []
    for _ in range(TURNS):
        began = time.perf_counter()
        linear(rows, weight)
        turns.append(time.perf_counter() - began)
    return min(turns)


def computed_by(model: Any) -> Computed:
    """Return in which numbers, and on what, a model computes."""
    device = torch.device(model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Computed(dtype=str(model.dtype).removeprefix("torch."), device=name)


def settle_attention(model: Any, *, bfloat16: bool) -> None:
    """Let attention stay in float32 where a CPU multiplies in bfloat16: PyTorch's kernel for it is four times slower in
    bfloat16, a sixth of a whole step. On a GPU keep to PyTorch's own kernels."""
    # cuDNN's (9.19, on an H200) gives gradients that are not numbers where rows are padded on the left to a multiple of
    # 64 tokens: one batch in fifty.
    torch.backends.cuda.enable_cudnn_sdp(False)
    if bfloat16 and not torch.cuda.is_available() and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(SDPA_FLOAT32)


def _sdpa_float32(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> Any:
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)


AttentionInterface.register(SDPA_FLOAT32, _sdpa_float32)
ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA_FLOAT32, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
