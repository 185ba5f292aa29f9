"""How fast this machine trains a model, measured before it is trained."""

from __future__ import annotations

import time
from typing import Any

import torch

from adapters.base_model import Base
from trainer import supervised
from trainer.batches import collate, parts_of
from trainer.frozen_layers import Rows


def tokens_per_second(model: Any, rows: Rows, batch_size: int, base: Base, *, bfloat16: bool) -> float:
    """Return how many tokens a second are learnt from, by a step on rows of middling length, in the parts in which it
    will be done; the weights stay."""
    if torch.cuda.is_available():
        model.cuda()
    model.train()
    middle = sorted(range(len(rows)), key=lambda i: rows.lengths[i])[max(0, (len(rows) - batch_size) // 2) :]
    chosen = middle[:batch_size]
    batch = {key: value.to(model.device) for key, value in collate(base.end_id)([rows[i] for i in chosen]).items()}
    whole = torch.cuda.is_available()
    parts = [batch] if whole else list(parts_of(batch, supervised.TOKENS_AT_A_TIME))
    for _ in range(2):  # the first one also sets things up
        started = time.monotonic()
        for part in parts:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
                total, count, _ = supervised.answer_loss(model, part)
            (total / count).backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.monotonic() - started
        model.zero_grad()
    return sum(rows.lengths[i] for i in chosen) / seconds
