"""LoRA on the CPU: tokens are grouped by adapter once per step, and every adapter pays for its own rank.

Stock vLLM gathers the whole A and B for every token, and takes index -1, "no adapter", for the last slot. Here rows
without an adapter are in no group, so nothing can be added to them. After Punica (arXiv:2310.18547), for which a CPU
needs no kernels of its own: a group's product is large enough for BLAS, or small enough to be masked.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, groupby
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

# A run of one adapter's tokens gets products of its own from this many tokens x adapters in the batch; shorter runs
# share masked products. Calls cost about 25 us, another adapter's columns 0.5 us a token (SmolLM2-135M, rank 8).
LONG = 48
# Adapters in one masked product: what they compute for each other's rows is wasted.
TOGETHER = 8
# Up to this rank over all slices (q, k and v, say), one product with zeros in it beats one for each slice.
FUSED = 64
# Sets of adapters whose packed weights a layer keeps: the batch seldom changes from one step to the next.
KEPT = 4

Ranks = tuple[tuple[int, ...], ...]
Stacked = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Part:
    """Rows that are served together. Where ``slots`` has more than one, ``owner`` is each row's place in it."""

    rows: slice | torch.Tensor
    slots: tuple[int, ...]
    owner: torch.Tensor | None = None
    _masks: dict[Ranks, torch.Tensor] = field(default_factory=dict)

    def mask(self, h: torch.Tensor, ranks: Ranks) -> None:
        """Clear the columns of ``h``, (rows, sum of ranks), that belong to another adapter than the row's own."""
        if self.owner is None:
            return
        if ranks not in self._masks:
            place = [place for adapters in ranks for place, rank in enumerate(adapters) for _ in range(rank)]
            self._masks[ranks] = torch.tensor(place).eq(self.owner[:, None]).to(h.dtype)
        h.mul_(self._masks[ranks])


def plan(slots: Sequence[int]) -> list[Part]:
    """Divide a batch whose row ``i`` is the adapter's in ``slots[i]`` (-1: nobody's) into parts.

    Long runs of one adapter become slices. What is left between them, as when decoding, is taken together.
    """
    adapters = len(set(slots) - {-1})
    parts: list[Part] = []
    left: list[int] = []
    start = 0
    for slot, run in groupby(slots):
        end = start + sum(1 for _ in run)
        if slot >= 0 and (adapters == 1 or (end - start) * adapters >= LONG):
            parts.append(Part(slice(start, end), (slot,)))
        elif slot >= 0:
            left.extend(range(start, end))
        start = end
    return [*parts, *_together(slots, left)]


def _together(slots: Sequence[int], rows: Sequence[int]) -> Iterator[Part]:
    present = sorted({slots[row] for row in rows})
    for first in range(0, len(present), TOGETHER):
        chosen = tuple(present[first : first + TOGETHER])
        place = {slot: index for index, slot in enumerate(chosen)}
        mine = [row for row in rows if slots[row] in place]
        unbroken = mine[-1] - mine[0] + 1 == len(mine)
        yield Part(
            rows=slice(mine[0], mine[-1] + 1) if unbroken else torch.tensor(mine),
            slots=chosen,
            owner=torch.tensor([place[slots[row]] for row in mine]),
        )


@dataclass(frozen=True)
class Pack:
    """Some adapters' weights at one layer, trimmed to their ranks: ``y[:, out] += mask(x @ a)[:, columns] @ b``.

    ``a`` is (in, R); R counts the ranks of all slices, and in each those of all adapters, in the order of ``ranks``.
    """

    a: torch.Tensor
    ranks: Ranks
    products: list[tuple[slice, slice, torch.Tensor]]


class Layer:
    """The packs of one layer: made when first needed, dropped when vLLM has written into any of its slots.

    ``a`` and ``b`` are vLLM's own tensors, a pair for each slice, of (slots, 1, max rank, in) and (slots, 1, out, max
    rank).
    """

    def __init__(self, a: Stacked, b: Stacked) -> None:
        self._a, self._b = a, b
        self._version = -1
        self._packs: dict[tuple[int, ...], Pack | None] = {}
        self._trimmed: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def pack(self, slots: tuple[int, ...]) -> Pack | None:
        """Return the pack for ``slots``, or None where none of them changes this layer."""
        version = sum(b._version for b in self._b)  # vLLM never writes A alone
        if version != self._version:
            self._version = version
            self._packs.clear()
            self._trimmed.clear()
        if slots not in self._packs:
            sets = [kept for kept in self._packs if len(kept) > 1]
            if len(slots) > 1 and len(sets) >= KEPT:
                del self._packs[sets[0]]
            self._packs[slots] = self._build(slots)
        return self._packs[slots]

    def _build(self, slots: tuple[int, ...]) -> Pack | None:
        for slot in slots:
            if slot not in self._trimmed:
                self._trimmed[slot] = [_trim(a[slot], b[slot]) for a, b in zip(self._a, self._b, strict=True)]
        slices = [[self._trimmed[slot][index] for slot in slots] for index in range(len(self._a))]
        ranks = tuple(tuple(len(a) for a, _ in adapters) for adapters in slices)
        total = sum(map(sum, ranks))
        if not total:
            return None
        a_all = torch.cat([a for adapters in slices for a, _ in adapters]).T
        b_all = [torch.cat([b for _, b in adapters]) for adapters in slices]
        if total <= FUSED:
            block = torch.block_diag(*b_all)
            return Pack(a_all, ranks, [(slice(None), slice(block.shape[1]), block)])
        columns = list(accumulate((len(b) for b in b_all), initial=0))
        outputs = list(accumulate((b.shape[1] for b in b_all), initial=0))
        products = [
            (slice(columns[i], columns[i + 1]), slice(outputs[i], outputs[i + 1]), b)
            for i, b in enumerate(b_all)
            if len(b)
        ]
        return Pack(a_all, ranks, products)


def _trim(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A (rank, in) and B (rank, out) without the zeros that vLLM pads them with; views, not copies."""
    a, b = a.flatten(0, -2), b.flatten(0, -2).T
    used = (a.any(dim=1) & b.any(dim=1)).nonzero()
    rank = int(used[-1]) + 1 if len(used) else 0
    return a[:rank], b[:rank]


class GroupedLoRA(PunicaWrapperCPU):
    """vLLM's interface: told once per step whose row is whose, then called by every layer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tokens: list[Part] = []
        self._samples: list[Part] = []
        self._layers: dict[int, Layer] = {}

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **_: Any
    ) -> None:
        slot_of = {adapter: slot for slot, adapter in enumerate(lora_index_to_id) if adapter is not None}
        tokens = [slot_of[adapter] if adapter > 0 else -1 for adapter in mapping.index_mapping]
        samples = [slot_of[adapter] if adapter > 0 else -1 for adapter in mapping.prompt_mapping]
        self._tokens, self._samples = plan(tokens), plan(samples)
        # What vLLM's own layers read besides: the embedding looks A up by itself.
        indices = torch.tensor(tokens)
        self._token_lora_indices[: len(tokens)] = indices
        self._embeddings_indices[: len(tokens)] = indices.clamp(min=0) * vocab_size
        self._sampler_indices[: len(samples)] = torch.tensor(samples)
        self.indices_len[:] = [len(tokens), len(samples), None, len(tokens)]
        self.no_lora = not self._tokens

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: Stacked,
        lora_b_stacked: Stacked,
        scale: float,
        output_slices: tuple[int, ...],
        **_: Any,
    ) -> None:
        if self._tokens:
            _add(self._tokens, self._layer(lora_a_stacked, lora_b_stacked), y, x, scale)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        **_: Any,
    ) -> None:
        if self._samples:
            _add(self._samples, self._layer((lora_a_stacked,), (lora_b_stacked,)), y, x, scale)

    def add_lora_embedding(self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **_: Any) -> None:
        # x is (tokens, max rank): rows of A, already looked up. An identity stands where A would.
        if self._tokens:
            slots, rank = lora_b_stacked.shape[0], lora_b_stacked.shape[-1]
            identity = torch.eye(rank, dtype=x.dtype).expand(slots, 1, rank, rank)
            _add(self._tokens, self._layer((identity,), (lora_b_stacked,)), y, x, 1.0)

    def add_shrink(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("fully sharded LoRA is for several GPUs; on a CPU set HOTSWAP_CPU_LORA=stock.")

    add_expand = add_shrink

    def _layer(self, a: Stacked, b: Stacked) -> Layer:
        # A layer's tensors live as long as the model, and Layer holds them: their ids are not used again.
        return self._layers.get(id(b[0])) or self._layers.setdefault(id(b[0]), Layer(a, b))


def _add(parts: list[Part], layer: Layer, y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
    """Add to ``y``, (rows, out), in place, what each row's adapter makes of its row of ``x``, (rows, in)."""
    y, x = y.view(-1, y.shape[-1]), x.view(-1, x.shape[-1])
    for part in parts:
        pack = layer.pack(part.slots)
        if pack is None:
            continue
        h = x[part.rows] @ pack.a
        part.mask(h, pack.ranks)
        for columns, outputs, b in pack.products:
            target = y[:, outputs]
            b = b[:, : target.shape[1]]  # vLLM pads a vocabulary differently here and there
            if isinstance(part.rows, slice):
                target[part.rows].addmm_(h[:, columns], b, alpha=scale)
            else:
                target.index_add_(0, part.rows, h[:, columns] @ b, alpha=scale)
