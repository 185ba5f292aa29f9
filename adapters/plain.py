"""Plain LoRA: one rank and one scaling for every module, under the names that PEFT and the engine both know.

Trainers leave other forms that mean the same: ranks and alphas by pattern, names without PEFT's prefix or with an
adapter's name in them. What the store holds is plain, so that every engine, and PEFT, reads it alike.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from adapters.peft_config import Config, alpha_of, whole
from adapters.store import CONFIG
from adapters.tensors import Bits, Tensor, as_float32, read_bits, write_tensors

KEY = re.compile(
    r"(?:base_model\.model\.)?(?P<module>.+?)\."
    r"(?:lora_(?P<side>[AB])(?:\.(?P<adapter>[^.]+))?\.weight"
    r"|lora_embedding_(?P<embedding_side>[AB])(?:\.(?P<embedding_adapter>[^.]+))?)"
)
# What torch.compile, FSDP and activation checkpointing put into names.
WRAPPER = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
# The frozen weights of a layer that is adapted: PEFT saves them beside it, and the engine has its own.
FROZEN = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
MAX_PATTERN, MAX_REPEATS = 300, 3


@dataclass(frozen=True)
class Module:
    """One module's LoRA: its tensors' keys in the file ("" for one that is missing), the rank its config gives it, and
    what brings its B to the adapter's one scaling."""

    name: str
    a: str
    b: str
    embedding: bool
    rank: int
    factor: float

    @property
    def keys(self) -> tuple[str, str]:
        """The names of its two tensors in a plain adapter."""
        sides = ("lora_embedding_A", "lora_embedding_B") if self.embedding else ("lora_A.weight", "lora_B.weight")
        return f"base_model.model.{self.name}.{sides[0]}", f"base_model.model.{self.name}.{sides[1]}"


@dataclass(frozen=True)
class Plan:
    """What makes a folder's LoRA plain: its config then, and its modules. ``frozen`` are keys to leave out."""

    original: Config
    config: Config
    modules: tuple[Module, ...]
    frozen: tuple[str, ...]
    problems: tuple[str, ...]

    @cached_property
    def rank(self) -> int:
        return int(self.config["r"])

    @property
    def scaling(self) -> float:
        return _scaling(self.config, self.rank, float(self.config["lora_alpha"]))

    @property
    def is_plain(self) -> bool:
        """Whether the folder is plain as it is."""
        return (
            repr(self.config) == repr(self.original)  # 8.0 == 8, and is another config
            and not self.frozen
            and all((module.a, module.b) == module.keys for module in self.modules)
        )


def plan(config: Config, header: Mapping[str, Tensor]) -> Plan:
    """Return how the LoRA of ``config``, which has a rank and an alpha, and ``header`` is made plain."""
    rank, alpha = whole(config["r"]), alpha_of(config["lora_alpha"])
    assert rank, "the config was looked at before"
    assert alpha, "the config was looked at before"
    problems = [*_pattern_problems(config)]
    ranks = {} if problems else config.get("rank_pattern") or {}
    alphas = {} if problems else config.get("alpha_pattern") or {}
    scaling = _scaling(config, rank, alpha)
    sides: dict[str, dict[str, str]] = {}
    embeddings, frozen, adapters = set(), [], set()
    for key in header:
        match = KEY.fullmatch(key)
        if match is None:
            if key.endswith(FROZEN):
                frozen.append(key)
            else:
                problems.append(f"tensor {key} is no LoRA weight, and the engine refuses it; save the adapter alone")
            continue
        name = WRAPPER.sub("", match["module"])
        side = match["side"] or match["embedding_side"]
        adapters.add(match["adapter"] or match["embedding_adapter"])
        if match["embedding_side"]:
            embeddings.add(name)
        if side in sides.setdefault(name, {}):
            problems.append(f"{name} has more than one lora_{side}: {sides[name][side]} and {key}")
        sides[name][side] = key
    if len(adapters) > 1:
        names = ", ".join(sorted(name or "none" for name in adapters))
        problems.append(f"it holds several adapters in one file ({names}); save them one by one")
    if not sides:
        problems.append("it holds no LoRA weights")
    modules = []
    for name, keys in sorted(sides.items()):
        own = whole(_by_pattern(ranks, name, rank)) or rank
        factor = _scaling(config, own, float(_by_pattern(alphas, name, alpha))) / scaling
        modules.append(Module(name, keys.get("A", ""), keys.get("B", ""), name in embeddings, own, factor))
    settled = {**config, "r": rank}
    if ranks or alphas:
        largest = max((module.rank for module in modules), default=rank)
        one = scaling * largest
        if alpha_of(one) is None:
            problems.append(f"lora_alpha would be {one:g} at one rank for all, which is too much")
        settled |= {"r": largest, "lora_alpha": int(one) if one.is_integer() else one, "use_rslora": False}
        settled |= {"rank_pattern": {}, "alpha_pattern": {}}
    return Plan(config, settled, tuple(modules), tuple(frozen), tuple(problems))


def write_plain(lora_plan: Plan, header: Mapping[str, Tensor], weights: Path, folder: Path) -> None:
    """Write the plain form of ``weights``, whose ``header`` and ``made`` plan are given, into ``folder``."""
    tensors: dict[str, tuple[str, Bits]] = {}
    for module in lora_plan.modules:
        a, b = header[module.a], header[module.b]
        more = lora_plan.rank - module.rank
        tensors[module.keys[0]] = a.dtype, np.pad(read_bits(weights, a), ((0, more), (0, 0)))
        dtype, bits = b.dtype, read_bits(weights, b)
        if module.factor != 1:
            # As float32: sixteen bits would round what was trained.
            dtype, bits = "F32", (as_float32(bits, dtype) * np.float32(module.factor)).view(np.uint32)
        tensors[module.keys[1]] = dtype, np.pad(bits, ((0, 0), (0, more)))
    write_tensors(folder / weights.name, tensors)
    (folder / CONFIG).write_text(json.dumps(lora_plan.config, indent=2) + "\n", encoding="utf-8")


def _scaling(config: Config, rank: int, alpha: float) -> float:
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """Return what PEFT takes for a module: the first pattern that is its name, or the end of it after a dot."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name)), default)


def _pattern_problems(config: Config) -> Iterator[str]:
    for setting, reads in (("rank_pattern", whole), ("alpha_pattern", alpha_of)):
        patterns = config.get(setting) or {}
        if not isinstance(patterns, dict):
            yield f"{setting} is {patterns!r}, not a rank or an alpha by module"
            continue
        for key, value in patterns.items():
            if reads(value) is None:
                yield f"{setting} gives {key} {value!r}, which is none"
            if not _is_tame(key):
                yield f"{setting} has {key!r}, which is no pattern or takes too long to match; write the modules' names"


def _is_tame(pattern: str) -> bool:
    """Whether it is a pattern that no name can keep busy: a stranger wrote both."""
    repeats = len(re.findall(r"(?<!\\)[*+{]", pattern))
    if len(pattern) > MAX_PATTERN or repeats > MAX_REPEATS or re.search(r"(?<!\\)\)[*+{]", pattern):
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True
