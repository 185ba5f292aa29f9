"""The modules of a base that an adapter can be for: their names as PEFT has them, and the shapes of their weights."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from typing import Any

from adapters.architecture import Architecture
from adapters.base_model import weight_files
from adapters.errors import HotswapError
from adapters.packages import cache_folder
from adapters.tensors import read_header

Shapes = dict[str, tuple[int, ...]]


def base_shapes(folder: Path) -> Shapes:
    """Return module name → (out, in) for every matrix of the base in ``folder``. Raises :class:`HotswapError`.

    Where the files' tensors are the modules' weights, they say it all. Packed weights, experts, and models beside a
    vision tower have other names and shapes in files: those are taken from the model itself, built without weights,
    which needs transformers and, once for each base, some seconds.
    """
    architecture, stored = Architecture.of(folder), _stored(folder)
    if architecture.quantized or architecture.is_nested or architecture.has_experts or not _as_modules(stored):
        built = _remembered(folder, architecture)
        # Of experts, adapters have the matrices one by one, as files do; transformers has joined them.
        return built | {name: shape for name, shape in stored.items() if ".experts." in name and name.endswith("_proj")}
    return stored


def numbers_of(folder: Path) -> int:
    """Return of how many numbers the weights of the base in ``folder`` are, as its files hold them."""
    return sum(prod(tensor.shape) for path in weight_files(folder) for tensor in read_header(path).values())


def _stored(folder: Path) -> Shapes:
    return {
        key.removesuffix(".weight"): tensor.shape
        for path in weight_files(folder)
        for key, tensor in read_header(path).items()
        if len(tensor.shape) == 2 and key.endswith(".weight")
    }


def _as_modules(stored: Shapes) -> bool:
    return all(name.startswith(("model.", "lm_head")) for name in stored)


def _remembered(folder: Path, architecture: Architecture) -> Shapes:
    """Return the built model's shapes, computed once for each ``config.json``."""
    try:
        library = version("transformers")
    except PackageNotFoundError:
        raise HotswapError(f"the modules of a {architecture.family} base need transformers; run make setup.") from None
    key = hashlib.sha256(library.encode() + (folder / "config.json").read_bytes()).hexdigest()
    note = cache_folder() / "shapes" / f"{key}.json"
    if note.is_file():
        return {name: tuple(shape) for name, shape in json.loads(note.read_bytes()).items()}
    shapes = _built(folder, architecture)
    note.parent.mkdir(parents=True, exist_ok=True)
    scratch = note.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(shapes))
    scratch.replace(note)
    return shapes


def _built(folder: Path, architecture: Architecture) -> Shapes:
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        named: Any = getattr(transformers, next(iter(architecture.classes), ""), None)
        with torch.device("meta"):
            model: Any = named(config) if named else transformers.AutoModelForCausalLM.from_config(config)
    except Exception as error:  # whatever a stranger's config makes of a model's constructor
        raise HotswapError(
            f"transformers {transformers.__version__} cannot build the base in {folder} "
            f"({' '.join(str(error).split())[:200]}); take a newer version of it, or another base."
        ) from error
    return {name: shape for name, module in model.named_modules() if (shape := _shape(module)) if _reads(name, model)}


def _shape(module: Any) -> tuple[int, ...] | None:
    """Return a matrix's (out, in), an embedding's (tokens, width)."""
    weight = getattr(module, "weight", None)
    if weight is None or weight.dim() != 2:
        return None
    shape = tuple(weight.shape)
    return shape[::-1] if type(module).__name__ == "Conv1D" else shape


def _reads(name: str, model: Any) -> bool:
    """Whether a module is of the language model: adapters of a vision tower are not applied by the engine."""
    return model.config.get_text_config() is model.config or "language_model" in name or name.startswith("lm_head")
