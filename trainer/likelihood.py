"""How likely a model finds given text: the answers of rows, and running text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from adapters.base_model import Base
from adapters.progress import bar
from trainer.batches import IGNORED, collate
from trainer.codec import Codec
from trainer.rows import Row
from trainer.soft_prompts import spelled

# Positions whose logits are in memory at once: 1,024 of a vocabulary of 49,152 are 200 MB.
POSITIONS = 1024
WINDOW = 256
Continued = tuple[list[int], list[int]]  # token ids, and those that follow


@torch.inference_mode()
def logprobs(model: Any, pairs: Sequence[Continued], base: Base, what: str = "likelihood") -> list[float]:
    """Return the natural-log probability of what follows, for each pair, in order."""
    found = [0.0] * len(pairs)
    order = sorted(range(len(pairs)), key=lambda i: -len(pairs[i][1]))
    batch, model = collate(base.end_id), model.eval()
    with bar(len(pairs), what, "rows") as shown:
        while order:
            count = max(1, POSITIONS // (len(pairs[order[0]][1]) + 1))
            part, order = order[:count], order[count:]
            rows = [_example(*pairs[i]) for i in part]
            inputs = {key: tensor.to(model.device) for key, tensor in batch(rows).items()}
            for index, value in zip(part, _summed(model, inputs), strict=True):
                found[index] = value
            shown.update(len(part))
    return found


def _example(before: list[int], after: list[int]) -> dict[str, list[int]]:
    return {"input_ids": before + after, "labels": [IGNORED] * len(before) + after}


def _summed(model: Any, inputs: dict[str, torch.Tensor]) -> list[float]:
    labels = inputs.pop("labels")
    width = int((labels != IGNORED).any(dim=0).sum())
    called, inputs = spelled(model, inputs)
    logits = called(**inputs, logits_to_keep=width + 1).logits[:, :-1].float()
    losses = cross_entropy(logits.transpose(1, 2), labels[:, -width:], ignore_index=IGNORED, reduction="none")
    return [float(loss) for loss in -losses.sum(dim=1)]


def answers(rows: Sequence[Row], codec: Codec, *, rejected: bool = False) -> list[Continued]:
    """Return each row's prompt and answer, or its rejected answer, as the task spells them."""
    said = [(row, row.rejected if rejected else row.answer) for row in rows]
    return [(codec.prompt(row.text, row.before), codec.target(answer)) for row, answer in said]


def perplexity(model: Any, pairs: Sequence[Continued], base: Base, what: str = "perplexity") -> float:
    """Return the exponential of the mean loss per token of what follows: 1 is certainty."""
    return math.exp(-sum(logprobs(model, pairs, base, what)) / sum(len(after) for _, after in pairs))


def prefers_chosen(model: Any, rows: Sequence[Row], codec: Codec, what: str) -> float:
    """Return the share of rows whose answer the model finds likelier, per token, than the rejected one."""
    sides = [answers(rows, codec, rejected=rejected) for rejected in (False, True)]
    chosen: list[float]
    rejected: list[float]
    chosen, rejected = (
        [value / len(after) for value, (_, after) in zip(logprobs(model, side, codec.base, what), side, strict=True)]
        for side in sides
    )
    return sum(better > worse for better, worse in zip(chosen, rejected, strict=True)) / len(rows)


def windows(text: str, base: Base, most: int) -> list[Continued]:
    """Return up to ``most`` pieces of running text, each of a first token and the 255 that follow."""
    ids = base.tokenizer.encode(text)
    starts = range(0, len(ids) - 1, WINDOW)
    return [(ids[at : at + 1], ids[at + 1 : at + WINDOW]) for at in starts][:most]
