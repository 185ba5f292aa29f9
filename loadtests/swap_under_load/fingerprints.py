"""Weights that can be told apart by their answers, and what PEFT on transformers says those answers are."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.modules import base_shapes
from adapters.store import CONFIG, WEIGHTS
from adapters.tasks import ClassificationTask

LABELS = ("good", "bad", "happy", "angry", "dull", "moving")
TEXTS = (
    "A moving, beautifully acted film that stays with you long after it has ended, and then some.",
    "The plot has holes that a bus could drive through, and nobody at the wheel cares at all.",
    "I laughed from the first scene to the last one, and so did everyone else in the whole row.",
    "Two hours of my life that I will not get back, however nicely I ask for them at the door.",
    "It stopped working after a week, and the people at support have never answered my letters.",
    "Exactly what I needed for the journey: it charges fast, feels solid and fits into a pocket.",
)
RANK = 8
STRENGTH = 1.0  # of what an adapter adds, beside an input to its layer of about 1
# Float32 in two implementations differs by 1e-4 at most; 1e-3 is what the shipped adapters are held to. No two
# sets of weights answer any text less than ten times that apart.
TOLERANCE, APART = 1e-3, 1e-2
Scores = dict[str, float]


@dataclass(frozen=True)
class Variant:
    """One set of weights, and the scores that it gives to each of ``TEXTS``."""

    folder: Path
    scores: tuple[Scores, ...]


def make_task(base: Base) -> ClassificationTask:
    return ClassificationTask.of("Review: {text}\nOpinion:", LABELS, base.tokenizer)


def make_variants(base: Base, task: ClassificationTask, folder: Path, count: int) -> list[Variant]:
    """Return ``count`` adapters for ``base``, in folders below ``folder``, no two of which answer any text alike."""
    score = reference(base, task)
    shapes = {name: shape for name, shape in base_shapes(base.folder).items() if name.endswith(("q_proj", "v_proj"))}
    kept: list[Variant] = []
    for seed in itertools.count():
        if len(kept) == count:
            return kept
        if seed > 20 * count:
            break
        made = write_adapter(folder / str(seed), base, shapes, seed)
        variant = Variant(made, score(made))
        if all(distance(mine, theirs) > APART for v in kept for mine, theirs in _paired(variant, v)):
            kept.append(variant)
    raise HotswapError(f"of {seed} random adapters for {base.name} too few can be told apart.")


def distance(one: Scores, other: Scores) -> float:
    """Return the largest difference between two answers to one text."""
    return max(abs(one[label] - other[label]) for label in one)


def _paired(one: Variant, other: Variant) -> zip[tuple[Scores, Scores]]:
    return zip(one.scores, other.scores, strict=True)


def write_adapter(
    folder: Path,
    base: Base,
    shapes: dict[str, tuple[int, ...]],
    seed: int,
    *,
    rank: int = RANK,
    strength: float = STRENGTH,
) -> Path:
    """Write random weights of ``rank`` for the modules in ``shapes``, name → (out, in)."""
    random = np.random.default_rng(seed)
    tensors = {}
    for module, (out, into) in shapes.items():
        key = f"base_model.model.{module}"
        tensors[f"{key}.lora_A.weight"] = random.normal(0, into**-0.5, (rank, into)).astype(np.float32)
        tensors[f"{key}.lora_B.weight"] = random.normal(0, strength * rank**-0.5, (out, rank)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base.name, "bias": "none"}
    config |= {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({module.rpartition(".")[2] for module in shapes}),
    }
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def reference(base: Base, task: ClassificationTask) -> Callable[[Path], tuple[Scores, ...]]:
    """Return a function that scores ``TEXTS`` with an adapter, one by one, in float32, without any of the service."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    if not sys.stderr.isatty():
        disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    prompts = [torch.tensor([task.prompt(text, base.tokenizer).ids]) for text in TEXTS]
    tokens, names = [label.token_id for label in task.labels], [label.name for label in task.labels]

    def score(folder: Path) -> tuple[Scores, ...]:
        with_adapter = PeftModel.from_pretrained(model, folder)
        with torch.inference_mode():
            shares = [with_adapter(prompt).logits[0, -1][tokens].softmax(-1).tolist() for prompt in prompts]
        with_adapter.unload()
        return tuple(dict(zip(names, share, strict=True)) for share in shares)

    return score
