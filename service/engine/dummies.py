"""Adapters that say nothing, to be loaded and asked once while the engine starts: what they use is compiled then."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from adapters.architecture import Architecture
from adapters.modules import base_shapes
from adapters.store import CONFIG, WEIGHTS
from adapters.tensors import write_tensors

# One layer has every shape that there is. Experts have kernels of their own, by names that differ.
FIRST_LAYER = re.compile(r"\.(?:layers|h|blocks)\.0\.(?!.*\.(?:experts|gate|router)\b)")
RANK, VECTORS = 8, 4


def lora(folder: Path, base: Path) -> Path:
    """Write a LoRA of the first layer's matrices, all zeros."""
    shapes = {name: shape for name, shape in base_shapes(base).items() if FIRST_LAYER.search(f".{name}.")}
    tensors = {}
    for name, (width, inner) in shapes.items():
        key = f"base_model.model.{name}"
        tensors[f"{key}.lora_A.weight"] = "F16", np.zeros((RANK, inner), np.uint16)
        tensors[f"{key}.lora_B.weight"] = "F16", np.zeros((width, RANK), np.uint16)
    targets = sorted({name.rsplit(".", 1)[-1] for name in shapes})
    return _written(folder, tensors, {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": targets})


def prompt(folder: Path, base: Path) -> Path:
    """Write a learnt prompt, all zeros."""
    width = Architecture.of(base).hidden or 0
    vectors = {"prompt_embeddings": ("F16", np.zeros((VECTORS, width), np.uint16))}
    return _written(folder, vectors, {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": VECTORS})


def _written(folder: Path, tensors: dict[str, tuple[str, np.ndarray]], config: dict[str, object]) -> Path:
    folder.mkdir()
    write_tensors(folder / WEIGHTS, tensors)
    (folder / CONFIG).write_text(json.dumps({"task_type": "CAUSAL_LM", "bias": "none", **config}))
    return folder


KINDS: dict[str, Callable[[Path, Path], Path]] = {"warm-up-lora": lora, "warm-up-prompt": prompt}
