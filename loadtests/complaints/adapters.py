"""Adapters that are right, with the answers that PEFT gives for them, and adapters with something wrong."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from adapters.base_model import Base, resolve_base
from adapters.modules import base_shapes
from adapters.store import CONFIG, WEIGHTS
from adapters.tasks import ClassificationTask
from loadtests.swap_under_load.fingerprints import LABELS, Scores, make_variants, reference, write_adapter

# Longer than two blocks of 128 tokens, the largest that either server keeps KV in.
BEGINNING = "Someone has bought a thing, or seen a film, and says in a few words what they thought of it. " * 14
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANK = 16


@dataclass(frozen=True)
class Known:
    """An adapter, and PEFT's answers to every text."""

    folder: Path
    scores: tuple[Scores, ...]


@dataclass(frozen=True)
class Material:
    """``a`` and ``b`` are two sets of weights; ``plain`` are the base model's own answers."""

    scratch: Path
    base: Base
    task: ClassificationTask
    a: Known
    b: Known
    plain: tuple[Scores, ...]
    large: list[Path] = field(default_factory=list)

    @property
    def marker(self) -> Path:
        """Is there once the code in a pickle has run."""
        return self.scratch / "code-was-run"


def make_material(scratch: Path, many: int) -> Material:
    base = resolve_base(None)
    task = ClassificationTask.of(BEGINNING + "\nReview: {text}\nOpinion:", LABELS, base.tokenizer)
    a, b = (Known(v.folder, v.scores) for v in make_variants(base, task, scratch / "variants", 2))
    shapes = {k: shape for k, shape in base_shapes(base.folder).items() if k.endswith(MODULES)}
    large = [write_adapter(scratch / "large" / str(n), base, shapes, 100 + n, rank=RANK) for n in range(many)]
    zero = _with(a.folder, scratch / "zero", _zero)
    return Material(scratch, base, task, a, b, reference(base, task)(zero), large)


def ineffective(material: Material) -> dict[str, Path]:
    """Return adapters that say nothing about this base model, by what is wrong with them."""
    return {
        "lora_B is all zeros": _with(material.a.folder, material.scratch / "zero-again", _zero),
        "layers that the base does not have": _renamed(material, "layers.", "layers.1"),
        "another architecture's prefix": _renamed(material, "model.model.layers.", "model.transformer.h."),
        "a module that the base does not have": _renamed(material, "q_proj", "query_key_value"),
    }


def bad(material: Material) -> dict[str, Path]:
    """Return adapters that must not be served, by what is wrong with them."""
    a, scratch = material.a.folder, material.scratch / "bad"
    high = write_adapter(scratch / "rank", material.base, _small(material), 5, rank=64)
    return {
        "rank 64, limit 16": high,
        "truncated safetensors": _edited(a, scratch / "cut", lambda content: content[: len(content) // 2]),
        "header that claims 10 GB of tensors": _edited(a, scratch / "claims", lambda _: _claiming()),
        "header of 10 GB": _edited(a, scratch / "header", lambda content: struct.pack("<Q", 10**10) + content[8:]),
        "weights too wide": _with(a, scratch / "wide", lambda key, t: _resized(key, t, 2)),
        "weights too narrow": _with(a, scratch / "narrow", lambda key, t: _resized(key, t, 0.5)),
        "pickle that runs code": _pickled(a, scratch / "pickle", material.marker),
        "NaN in every weight": _with(a, scratch / "nan", lambda _, tensor: np.full_like(tensor, np.nan)),
    }


def _small(material: Material) -> dict[str, tuple[int, ...]]:
    return {k: shape for k, shape in base_shapes(material.base.folder).items() if k.endswith("q_proj")}


def _with(source: Path, folder: Path, change: Callable[[str, Any], Any]) -> Path:
    """Copy an adapter with every tensor changed."""
    shutil.copytree(source, folder)
    tensors = load_file(source / WEIGHTS)
    save_file({key: np.ascontiguousarray(change(key, t)) for key, t in tensors.items()}, folder / WEIGHTS)
    return folder


def _zero(key: str, tensor: Any) -> Any:
    return np.zeros_like(tensor) if "lora_B" in key else tensor


def _renamed(material: Material, old: str, new: str) -> Path:
    folder = material.scratch / f"renamed-{new.replace('.', '-')}"
    shutil.copytree(material.a.folder, folder)
    tensors = load_file(folder / WEIGHTS)
    save_file({key.replace(old, new): t for key, t in tensors.items() if old in key}, folder / WEIGHTS)
    return folder


def _resized(key: str, tensor: Any, factor: float) -> Any:
    """Change the side that belongs to the base, not the rank."""
    axis = 1 if "lora_A" in key else 0
    return np.take(tensor, np.arange(int(tensor.shape[axis] * factor)) % tensor.shape[axis], axis=axis)


def _edited(source: Path, folder: Path, edit: Callable[[bytes], bytes]) -> Path:
    shutil.copytree(source, folder)
    (folder / WEIGHTS).write_bytes(edit((source / WEIGHTS).read_bytes()))
    return folder


def _claiming() -> bytes:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    entry = {"dtype": "F32", "shape": [8, 312_500_000], "data_offsets": [0, 10**10]}
    header = json.dumps({key: entry}).encode()
    return struct.pack("<Q", len(header)) + header


class _Code:
    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._marker),)


def _pickled(source: Path, folder: Path, marker: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(source / CONFIG, folder)
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(_Code(marker)))
    return folder
