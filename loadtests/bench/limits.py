"""The limits of every server that can be told any. ``LORAS`` is what a batch can mix; more stay in memory."""

from __future__ import annotations

import os

LORAS, RANK, MODEL_LEN, SEQUENCES, KV_GIB, DTYPE = 16, 16, 2048, 64, 1, "float32"


def binding() -> str | None:
    """Return the CPUs that our service binds its threads to; on more than four it leaves the choice to vLLM."""
    cpus = sorted(os.sched_getaffinity(0))
    return ",".join(map(str, cpus)) if len(cpus) <= 4 else None
