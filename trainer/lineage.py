"""What an adapter was made with: this code, its libraries, this machine."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from trainer.run_record import Code, MadeWith

LIBRARIES = ("torch", "transformers", "peft", "trl", "accelerate", "bitsandbytes", "tokenizers", "numpy")
ROOT = Path(__file__).parents[1]


def made_with() -> MadeWith:
    """Return what a run, and the version made of it, is to say of this."""
    return MadeWith(
        code=Code(version=version("hotswap"), **_commit()),
        libraries={name: number for name in LIBRARIES if (number := _version(name))},
        machine=f"{platform.machine()}, Python {platform.python_version()}",
    )


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


def _commit() -> dict[str, str]:
    """Return the commit of a checkout, with ``-dirty`` where files were changed; nothing of an installed package."""
    if not (ROOT / ".git").exists():  # or it would be the commit of whatever project this one is installed in
        return {}
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return {}
    return {"commit": done.stdout.strip()}
