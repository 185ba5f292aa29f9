"""``adapter_config.json`` as PEFT writes it: read as strictly as the engine does, and held to what it serves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters.errors import InvalidAdapter
from adapters.store import CONFIG

MAX_CONFIG_BYTES = 1 << 20
MAX_ALPHA = 1e6
PROMPT_TYPES = ("PROMPT_TUNING", "P_TUNING")
Config = dict[str, Any]
# What vLLM refuses, or takes and silently leaves out of its answers. Settings → the value that is harmless.
UNSERVED: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "modules_to_save": (None, []),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    # PiSSA, OLoRA, CorDA and LoftQ change the base's own weights, which are frozen and shared here.
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal", "mica", "lora_ga"),
}
# Switches of PEFT's that change nothing once it is trained, or are looked at elsewhere.
KNOWN_SWITCHES = {*UNSERVED, "use_rslora"}
WAYS_OUT = {
    "init_lora_weights": "convert it with PEFT's path_initial_model_for_weight_conversion",
    "modules_to_save": "train without it",
    "bias": "train with bias: none",
}


def read_config(folder: Path) -> Config:
    """Return a folder's config. Raises :class:`InvalidAdapter`, whose message does not name the folder."""
    path = folder / CONFIG
    if not path.is_file():
        raise InvalidAdapter(f"it is not a PEFT adapter: {CONFIG} is missing")
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError
        content = path.read_bytes()
        if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            raise InvalidAdapter(
                f"{CONFIG} is not a JSON object in plain UTF-8: it begins with a byte order mark, which the engine "
                "cannot read; save it as UTF-8 without one"
            )
        config = json.loads(content.decode(), object_pairs_hook=_once)
        if not isinstance(config, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise InvalidAdapter(f"{CONFIG} is not a JSON object of sane size; save the adapter again with PEFT") from None
    return config


def _once(pairs: list[tuple[str, Any]]) -> Config:
    config = dict(pairs)
    if len(config) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidAdapter(f"{CONFIG} says {twice} twice, and not every reader takes the same; keep one of them")
    return config


def whole(value: Any) -> int | None:
    """Return a rank, written as 8 or as 8.0; none where it is no rank."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value != value // 1:
        return None
    return int(value)


def alpha_of(value: Any) -> float | None:
    """Return a ``lora_alpha``; none where it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MAX_ALPHA:
        return None
    return float(value)


def config_problems(config: Config) -> Iterator[str]:
    """Yield what in a config cannot be served, whatever the weights are."""
    try:
        json.dumps(config, allow_nan=False)
    except ValueError:
        yield f"{CONFIG} holds NaN or Infinity, which is not JSON; save it again with numbers there"
    if config.get("peft_type") != "LORA":
        served = ", ".join(map(repr, ("LORA", *PROMPT_TYPES)))
        yield f"peft_type is {config.get('peft_type')!r}, served are {served}; {_way_out(config)}"
        return
    if whole(config.get("r")) is None:
        yield f"r is {config.get('r')!r}, not a rank"
    if alpha_of(config.get("lora_alpha")) is None:
        yield f"lora_alpha is {config.get('lora_alpha')!r}, not a positive number"
    if not config.get("target_modules") or not isinstance(config["target_modules"], str | list):
        yield "target_modules is missing; the engine needs it: save the adapter again with PEFT"
    for key, harmless in UNSERVED.items():
        if key in config and config[key] not in harmless:
            way_out = WAYS_OUT.get(key, "merge it or convert it to plain LoRA with PEFT")
            yield f"{key}={config[key]!r} cannot be served; {way_out}"
    for key in sorted(config.keys() - KNOWN_SWITCHES):
        if key.startswith("use_") and config[key] not in (None, False):
            yield f"{key}={config[key]!r} is nothing that this version knows how to serve; train without it"


def _way_out(config: Config) -> str:
    if config.get("peft_type") == "PREFIX_TUNING":
        return "vLLM has no way to put keys and values into every layer: train with prompt_tuning, p_tuning or lora"
    return "convert it with PEFT's convert_to_lora"
