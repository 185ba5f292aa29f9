"""What the base is computed on: which GPUs, or the CPU, and how much memory they have."""

from __future__ import annotations

import csv
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import psutil

from service.engine.plugin import is_cpu

QUERY = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
SMI_SECONDS = 20


@dataclass(frozen=True)
class Device:
    """``count`` GPUs of ``memory`` bytes each (of the smallest one), or a CPU; ``host`` bytes of main memory."""

    kind: Literal["cpu", "gpu"]
    name: str
    count: int
    memory: int
    host: int
    driver: str = ""

    @classmethod
    def found(cls) -> Device | None:
        """Return what vLLM will compute on here; None where it cannot be told (a GPU that is not NVIDIA's)."""
        host = main_memory()
        if is_cpu():
            return cls("cpu", "this machine's CPU", 1, host, host)
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is not None and not visible.strip(", "):
            return cls("gpu", "no GPU", 0, 0, host)
        try:
            chosen = ["-i", visible] if visible else []
            told = subprocess.run(
                [*QUERY, *chosen], capture_output=True, text=True, check=True, timeout=SMI_SECONDS
            ).stdout
            return of_rows(list(csv.reader(told.splitlines(), skipinitialspace=True)), host)
        except (OSError, ValueError, subprocess.SubprocessError):
            return None


def of_rows(rows: list[list[str]], host: int) -> Device:
    """Return the GPUs that nvidia-smi lists as (name, MiB, driver). Raises :class:`ValueError` for other rows."""
    cards = [(name, int(mebibytes) * 2**20, driver) for name, mebibytes, driver in rows]
    name, _, driver = cards[0] if cards else ("no GPU", 0, "")
    return Device("gpu", name, len(cards), min((memory for _, memory, _ in cards), default=0), host, driver)


def main_memory() -> int:
    """Return the bytes of main memory that this process may use: the machine's, or its container's."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no cgroup, or "max"
        return total
