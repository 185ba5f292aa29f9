"""Everything that can make the engine refuse or misuse an adapter, checked before it is published or loaded."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from adapters.errors import InvalidAdapter
from adapters.store import CONFIG, WEIGHTS

MAX_BYTES = 2 << 30
MAX_CONFIG_BYTES = 1 << 20
MAX_ALPHA = 1e6
TOLD_PROBLEMS, TOLD_CHARS = 8, 300
MAX_VIRTUAL_TOKENS = 256
PROMPT_TYPES = ("PROMPT_TUNING", "P_TUNING")
PROMPT = "prompt_embeddings"  # PEFT's name for the one tensor of a learnt prompt: (tokens, hidden size)
KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])\.weight")
# What vLLM refuses, or takes and silently leaves out of its answers. Settings → the value that is harmless.
UNSERVED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "bias": ("none", None),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "lora_bias": (False, None),
    "fan_in_fan_out": (False, None),
    "trainable_token_indices": (None,),
    "layer_replication": (None,),
    "use_qalora": (False, None),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    # PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA change the base's own weights, which are frozen and shared here.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),
}


@dataclass(frozen=True)
class Facts:
    """What a sound adapter folder holds. ``scaling`` is what ``B @ A`` is multiplied by.

    A learnt prompt has ``virtual_tokens``, rank 0, and nothing else.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    scaling: float
    virtual_tokens: int = 0


def lint(folder: Path, *, shapes: dict[str, tuple[int, ...]] | None = None, max_rank: int | None = None) -> Facts:
    """Return what the folder holds, or raise :class:`InvalidAdapter` naming everything that is wrong with it.

    ``shapes`` maps the base's modules to their weights' (out, in); ``max_rank`` is the server's limit.
    """
    _refuse_links_out(folder)
    config = _config(folder)
    if config.get("peft_type") in PROMPT_TYPES:
        return _lint_prompt(folder, config, shapes)
    problems = [*_config_problems(config, max_rank), *_file_problems(folder)]
    modules: set[str] = set()
    if (folder / WEIGHTS).is_file() and not problems:
        try:
            with safe_open(folder / WEIGHTS, framework="numpy") as weights:
                modules = {match["module"] for key in weights.keys() if (match := KEY.fullmatch(key))}  # noqa: SIM118
                problems += _tensor_problems(weights, int(config["r"]), shapes)
        except SafetensorError as error:
            problems.append(f"{WEIGHTS} is damaged: {error}")
        problems += _number_problems(folder / WEIGHTS) if not problems else []
    if problems:
        raise InvalidAdapter(f"{folder.name}: {_told(problems)}")
    rank, alpha = int(config["r"]), float(config["lora_alpha"])
    scaling = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
    return Facts(rank, alpha, tuple(sorted({module.rsplit(".", 1)[-1] for module in modules})), scaling)


def is_prompt(folder: Path) -> bool:
    """Return whether a folder holds a learnt prompt; one that holds nothing sound does not."""
    try:
        return _config(folder).get("peft_type") in PROMPT_TYPES
    except InvalidAdapter:
        return False


def _lint_prompt(folder: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None) -> Facts:
    """Check vectors in front of the prompt, as PEFT saves them after prompt tuning and P-tuning."""
    problems = list(_file_problems(folder))
    count = 0
    if not problems:
        try:
            with safe_open(folder / WEIGHTS, framework="numpy") as weights:
                problems += _prompt_problems(weights, config, shapes)
                count = 0 if problems else weights.get_slice(PROMPT).get_shape()[0]
        except SafetensorError as error:
            problems.append(f"{WEIGHTS} is damaged: {error}")
        problems += _number_problems(folder / WEIGHTS, PROMPT) if not problems else []
    if problems:
        raise InvalidAdapter(f"{folder.name}: {_told(problems)}")
    return Facts(0, 0.0, (), 0.0, count)


def _prompt_problems(weights: Any, config: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None) -> Iterator[str]:
    if list(weights.keys()) != [PROMPT]:
        yield f"a learnt prompt is one tensor, {PROMPT}, and nothing else; save it with PEFT's save_pretrained"
        return
    tensor = weights.get_slice(PROMPT)
    shape = tuple(tensor.get_shape())
    if tensor.get_dtype() not in ("F32", "F16", "BF16"):
        yield f"{PROMPT} is {tensor.get_dtype()}; F32, F16 or BF16 can be served"
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_VIRTUAL_TOKENS:
        yield f"{PROMPT} has the shape {shape}; served are 1 to {MAX_VIRTUAL_TOKENS} vectors"
    elif config.get("num_virtual_tokens") != shape[0]:
        yield f"num_virtual_tokens is {config.get('num_virtual_tokens')!r} and there are {shape[0]} vectors"
    hidden = {shape[1] for name, shape in (shapes or {}).items() if name.endswith("embed_tokens")}
    if len(shape) == 2 and hidden and shape[1] not in hidden:
        yield f"the vectors have {shape[1]} numbers, those of the base {hidden.pop()}: it was made for another base"


def base_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return module name → (out, in) for every matrix of the checkpoint in ``folder``."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as weights:
            for key in weights.keys():  # noqa: SIM118
                shape = tuple(weights.get_slice(key).get_shape())
                if len(shape) == 2:
                    shapes[key.removesuffix(".weight")] = shape
    return shapes


def _told(problems: list[str]) -> str:
    """Return one line, of sane length, whatever names and values the adapter's author has thought of."""
    more = len(problems) - TOLD_PROBLEMS
    shown = [_shortened(problem) for problem in problems[:TOLD_PROBLEMS]] + ([f"and {more} more"] if more > 0 else [])
    return "".join(character if character.isprintable() else "?" for character in "; ".join(shown))


def _shortened(text: str) -> str:
    """Keep the beginning, which says what, and the end, which says what is wrong with it."""
    return text if len(text) <= TOLD_CHARS else f"{text[: TOLD_CHARS // 2]} … {text[-TOLD_CHARS // 2 :]}"


def _refuse_links_out(folder: Path) -> None:
    """What somebody else packed must not name a file of ours, to be read and published."""
    within = folder.resolve()
    links = [path.name for path in folder.iterdir() if not path.resolve().is_relative_to(within)]
    if links:
        raise InvalidAdapter(f"{folder.name}: {', '.join(sorted(links))} leads out of the folder; copy it with cp -rL.")


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise InvalidAdapter(f"{folder} is not a PEFT adapter: {CONFIG} is missing.")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError
        config = json.loads(path.read_bytes())
        if not isinstance(config, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise InvalidAdapter(f"{path} is not a JSON object of sane size; save the adapter again with PEFT.") from None
    return config


def _config_problems(config: dict[str, Any], max_rank: int | None) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        served = ", ".join(map(repr, ("LORA", *PROMPT_TYPES)))
        yield f"peft_type is {config.get('peft_type')!r}, served are {served}; {_way_out(config)}"
        return
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        yield f"r is {rank!r}, not a rank"
    elif max_rank is not None and rank > max_rank:
        yield f"rank {rank} is above the server's limit of {max_rank}; raise HOTSWAP_MAX_LORA_RANK or train smaller"
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not 0 < alpha <= MAX_ALPHA:
        yield f"lora_alpha is {alpha!r}, not a positive number"
    if not config.get("target_modules") or not isinstance(config["target_modules"], str | list):
        yield "target_modules is missing; the engine needs it: save the adapter again with PEFT"
    for key, harmless in UNSERVED.items():
        if key in config and config[key] not in harmless:
            yield f"{key}={config[key]!r} cannot be served; merge it or convert it to plain LoRA with PEFT"


def _way_out(config: dict[str, Any]) -> str:
    if config.get("peft_type") == "PREFIX_TUNING":
        return "vLLM has no way to put keys and values into every layer: train with prompt_tuning, p_tuning or lora"
    return "convert it with PEFT's convert_to_lora"


def _file_problems(folder: Path) -> Iterator[str]:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"})
    if pickles:
        yield f"{', '.join(pickles)}: pickles can run code and are refused; keep {WEIGHTS} only"
    weights = folder / WEIGHTS
    if not weights.is_file():
        yield f"{WEIGHTS} is missing; save with PEFT's save_pretrained(safe_serialization=True)"
    elif weights.stat().st_size > MAX_BYTES:
        yield f"{WEIGHTS} has {weights.stat().st_size} bytes; the limit is {MAX_BYTES}"


def _tensor_problems(weights: Any, rank: int, shapes: dict[str, tuple[int, ...]] | None) -> Iterator[str]:
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for key in weights.keys():  # noqa: SIM118
        match = KEY.fullmatch(key)
        if match is None:
            yield f"tensor {key} is no LoRA weight and would be ignored"
            continue
        tensor = weights.get_slice(key)
        if tensor.get_dtype() not in ("F32", "F16", "BF16"):
            yield f"tensor {key} is {tensor.get_dtype()}; F32, F16 or BF16 can be served"
        sides.setdefault(match["module"], {})[match["side"]] = tuple(tensor.get_shape())
    if not sides:
        yield f"{WEIGHTS} holds no LoRA weights"
    for module, pair in sorted(sides.items()):
        a, b = pair.get("A"), pair.get("B")
        if a is None or b is None:
            yield f"{module} has only one of lora_A and lora_B"
        elif len(a) != 2 or len(b) != 2 or a[0] != rank or b[1] != rank:
            yield f"{module}: lora_A {a} and lora_B {b} do not have rank {rank}"
        elif shapes is not None and module not in shapes:
            yield f"{module} is not a module of the base model"
        elif shapes is not None and (b[0], a[1]) != shapes[module]:
            yield f"{module}: the adapter is for {(b[0], a[1])}, the base has {shapes[module]}"


def _number_problems(path: Path, trained_part: str = ".lora_B.") -> Iterator[str]:
    """Look at the bits: numpy has no bfloat16, and a NaN is an exponent of ones in every format."""
    exponent = {"F32": (np.uint32, 0x7F800000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        trained = False
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            kind, mask = exponent[entry["dtype"]]
            file.seek(8 + length + begin)
            bits = np.frombuffer(file.read(end - begin), dtype=kind)
            trained |= trained_part in key and bool(bits.any())
            if np.any((bits & kind(mask)) == kind(mask)):
                yield f"tensor {key} holds NaN or infinity; train again with a lower learning rate"
    if not trained:
        yield f"every {trained_part.strip('.')} is zero, so that it changes nothing: it was never trained"
