"""Rows as batches: encoded by the task, padded on the left, of like length."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

from adapters.base_model import Base
from adapters.tasks.base import BaseTask
from trainer.codec import Codec
from trainer.rows import Row

IGNORED = -100


class Encoded(torch.utils.data.Dataset):
    """Rows as token ids: the task's own prompt, then the answer, which alone is learnt. ``choices`` are the ids that it
    is one of; none for free text."""

    def __init__(self, asked: Iterable[tuple[Row, BaseTask]], base: Base) -> None:
        self._examples = []
        for row, task in asked:
            codec = Codec(task, base)
            prompt, answer = codec.prompt(row.text, row.before), codec.target(row.answer)
            labels, choices = [IGNORED] * len(prompt) + answer, list(task.sampling({}).choices)
            self._examples.append({"input_ids": prompt + answer, "labels": labels, "choices": choices})
        self.lengths = [len(example["input_ids"]) for example in self._examples]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        return self._examples[index]


def collate(pad_id: int) -> Any:
    """Return a collator that pads on the left: all answers end in the last column, and only the columns
    that hold answers need logits."""

    def batch(examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(example["labels"]) for example in examples)

        def padded(key: str, filler: int) -> torch.Tensor:
            return torch.tensor([[filler] * (width - len(e[key])) + e[key] for e in examples])

        mask = [[0] * (width - len(e["labels"])) + [1] * len(e["labels"]) for e in examples]
        if "inputs_embeds" in examples[0]:
            rows = [torch.nn.functional.pad(e["inputs_embeds"], (0, 0, width - len(e["labels"]), 0)) for e in examples]
            read = {"inputs_embeds": torch.stack(rows)}
        else:
            read = {"input_ids": padded("input_ids", pad_id)}
        if most := max(len(e.get("choices", ())) for e in examples):
            read["choices"] = torch.tensor([e["choices"] + [IGNORED] * (most - len(e["choices"])) for e in examples])
        return {**read, "labels": padded("labels", IGNORED), "attention_mask": torch.tensor(mask)}

    return batch


def parts_of(batch: dict[str, torch.Tensor], tokens: int) -> Iterator[dict[str, torch.Tensor]]:
    """Give a batch as :func:`collate` pads it in parts of at most so many tokens, padding counted, and one row at
    least."""
    lengths = batch["attention_mask"].sum(dim=1)
    order = lengths.argsort(descending=True)
    while len(order):
        longest = int(lengths[order[0]])
        rows, order = order.split([least := min(len(order), max(1, tokens // longest)), len(order) - least])
        yield {key: value[rows] if key == "choices" else value[rows, -longest:] for key, value in batch.items()}


class LengthGrouped(torch.utils.data.Sampler):
    """Batches of like length in an order that depends on seed and epoch alone, so that a resumed run sees
    the same batches. (transformers' own sampler draws from the global generator.)"""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))
