"""In which precision a training multiplies."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import PartialState
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from adapters.manifest import Computed

SDPA_FLOAT32 = "sdpa_float32"


def in_bfloat16(precision: str) -> bool:
    """Whether to multiply in bfloat16 (autocast: weights, gradients and the optimizer stay float32).

    ``auto`` does where the processor has instructions for it: 1.7 times as fast on a CPU with AVX512-bf16, and several
    times slower on one without.
    """
    if precision != "auto":
        return precision == "bfloat16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    if PartialState().num_processes > 1:  # accelerate's FSDP and autocast on a CPU mix the two up
        return False
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def computed_by(model: Any) -> Computed:
    """Return in which numbers, and on what, a model computes."""
    device = torch.device(model.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return Computed(dtype=str(model.dtype).removeprefix("torch."), device=name)


def settle_attention(model: Any, *, bfloat16: bool) -> None:
    """Let attention stay in float32 where a CPU multiplies in bfloat16: PyTorch's kernel for it is four times slower in
    bfloat16, a sixth of a whole step."""
    if bfloat16 and not torch.cuda.is_available() and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(SDPA_FLOAT32)


def _sdpa_float32(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, **options: Any
) -> Any:
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), mask, **options)


AttentionInterface.register(SDPA_FLOAT32, _sdpa_float32)
ALL_MASK_ATTENTION_FUNCTIONS.register(SDPA_FLOAT32, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
