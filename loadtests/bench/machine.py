"""What this machine can do at most, and how near to that the model runs: ``python -m loadtests.bench.machine``."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from adapters.modules import base_shapes
from loadtests.bench.process import Failed

FLOAT = 4


@dataclass(frozen=True)
class Limits:
    sgemm_gflops: float
    read_gb_per_second: float


def measure() -> Limits:
    """Multiply matrices, then read what fits into no cache; the best of a few tries counts. In this process."""
    import torch
    from torch.utils.mkldnn import to_mkldnn

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    size = 2048
    a, b, large = torch.randn(size, size), torch.randn(size, size), torch.ones(8192, 16384)
    # Whichever is better at it: MKL is not on every processor, and oneDNN is what vLLM uses.
    packed, prepared = to_mkldnn(torch.nn.Linear(size, size)), a.to_mkldnn()
    with torch.inference_mode():
        gemm = min(_best(lambda: torch.mm(a, b)), _best(lambda: packed(prepared)))
        read = _best(large.sum)
    return Limits(2 * size**3 / gemm / 1e9, large.numel() * FLOAT / read / 1e9)


def _best(work: Callable[[], Any], tries: int = 8) -> float:
    seconds = []
    for _ in range(tries):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def measured_apart() -> Limits:
    """Measure in a process of its own: torch's threads would stay with this one."""
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.bench.machine"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(done.stderr.strip().splitlines()[-1])
    return Limits(**json.loads(done.stdout))


def describe() -> dict[str, Any]:
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


@dataclass(frozen=True)
class Model:
    """Parameters that a prompt's token meets, and those that are read for one step of an answer."""

    prefill: int
    step: int


def model(folder: Path) -> Model:
    """Count the checkpoint's parameters. The embedding is looked up; where it is tied it is also the last layer."""
    sizes = {name: math.prod(shape) for name, shape in base_shapes(folder).items()}
    embedding = sum(size for name, size in sizes.items() if "embed_tokens" in name)
    head = sum(size for name, size in sizes.items() if name.startswith("lm_head"))
    layers = sum(sizes.values()) - embedding - head
    return Model(layers, layers + (head or embedding))


def limits_line(limits: Limits, model: Model, prefill: float, decode: float, streams: int) -> str:
    """Say what share of the machine base prefill (tokens/s) and decode (tokens/s of all streams) take."""
    flops = prefill * 2 * model.prefill / 1e9 / limits.sgemm_gflops
    read = decode / streams * model.step * FLOAT / 1e9 / limits.read_gb_per_second
    return (
        f"machine: sgemm {limits.sgemm_gflops:.0f} GFLOP/s, memory {limits.read_gb_per_second:.1f} GB/s; base prefill "
        f"at {prefill:.0f} tokens/s is {flops:.0%} of the first, base decode at {decode:.0f} tokens/s over {streams} "
        f"streams is {read:.0%} of the second"
    )


if __name__ == "__main__":
    print(json.dumps(asdict(measure())))
