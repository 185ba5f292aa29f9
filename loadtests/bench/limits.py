"""The limits of every server that can be told any. ``LORAS`` is what a batch can mix; more stay in memory."""

from __future__ import annotations

LORAS, RANK, MODEL_LEN, SEQUENCES, KV_GIB, DTYPE = 64, 16, 2048, 64, 1, "float32"
