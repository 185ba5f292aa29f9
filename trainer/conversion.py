"""Any change of a base model's matrices as one plain LoRA, which is what vLLM loads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.progress import counted
from adapters.store import CONFIG, WEIGHTS
from trainer.progress import Diverged
from trainer.recipe import Conversion

Changes = dict[str, torch.Tensor]
ROUNDING = 1e-6  # of float32, as a share of a change's squared size: no rank could make that good


def changes_of(model: Any, original: Any) -> Changes:
    """Return, by module, what ``model`` adds to the matrices of ``original``: float32, (out, in).

    Whatever the method was, it ends in other matrices: (IA)³ and DoRA too, of whose change PEFT's ``convert_to_lora``
    knows nothing or a part only. ``model`` is merged, and of no further use.
    """
    merged = model.merge_and_unload() if isinstance(model, PeftModel) else model
    before = dict(original.named_modules())
    changes = {}
    for name, module in merged.named_modules():
        if isinstance(module, torch.nn.Linear) and name in before:
            change = module.weight.detach().float().cpu() - before[name].weight.detach().float().cpu()
            if change.any():
                changes[name] = change
    if not changes:
        raise HotswapError("training changed no matrix of the base; raise training.learning_rate or train for longer.")
    return changes


def to_lora(changes: Changes, how: Conversion, folder: Path, base: Base) -> tuple[int, float]:
    """Write the changes as a LoRA into ``folder``; return its rank, and the error made: the share of the
    changes' squared size that is lost.

    Truncating the singular value decomposition is the best approximation of a rank there is (Eckart and Young 1936).
    All matrices get the same rank, because vLLM serves no others; PEFT's conversion by a threshold gives each its own.
    """
    parts = {
        name: torch.linalg.svd(change, full_matrices=False)
        for name, change in counted(changes.items(), len(changes), "converting to LoRA", "matrices")
    }
    rank, error = _rank([values for _, values, _ in parts.values()], how)
    weights = {}
    for name, (left, values, right) in parts.items():
        root = values[:rank].sqrt()  # shared between both sides, so that neither leaves the range of half precision
        key = f"base_model.model.{name}"
        weights[f"{key}.lora_A.weight"] = _padded(root[:, None] * right[:rank], rank).half().contiguous()
        weights[f"{key}.lora_B.weight"] = _padded((left[:, :rank] * root).T, rank).T.half().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=rank, target_modules=sorted(changes))
    config.base_model_name_or_path, config.inference_mode = base.name, True
    config.save_pretrained(folder)
    assert (folder / CONFIG).is_file()
    return rank, error


def _rank(spectra: list[torch.Tensor], how: Conversion) -> tuple[int, float]:
    """Return the smallest rank that loses at most ``how.error``, or ``how.max_rank``, and what it loses."""
    longest = min(max(map(len, spectra)), how.max_rank)
    energy = sum(float(values.square().sum()) for values in spectra)
    kept = torch.stack([torch.nn.functional.pad(v.square(), (0, longest))[:longest] for v in spectra]).sum(dim=0)
    lost = (1 - kept.double().cumsum(0) / energy).clamp(min=0).tolist()
    rank = next((n for n, share in enumerate(lost, start=1) if share <= max(how.error, ROUNDING)), longest)
    if not math.isfinite(lost[rank - 1]):
        raise Diverged
    return rank, lost[rank - 1]


def _padded(rows: torch.Tensor, rank: int) -> torch.Tensor:
    """Fill a matrix of fewer rows than ``rank`` up with zeros, which add nothing."""
    return torch.nn.functional.pad(rows, (0, 0, 0, rank - len(rows)))
