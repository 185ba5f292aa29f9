"""LoRA on the CPU: tokens are grouped by adapter once per step, and every adapter pays for its own rank.

Stock vLLM gathers the whole A and B for every token, and takes index -1, "no adapter", for the last slot. Here rows
without an adapter are in no group, so nothing can be added to them. After Punica (arXiv:2310.18547), for which a CPU
needs no kernels of its own: a group's product is large enough for BLAS, or small enough to be masked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

# A run of one adapter's tokens gets products of its own from this many tokens x adapters in the batch; shorter runs
# share masked products. Calls cost about 25 us, another adapter's columns 0.5 us a token (SmolLM2-135M, rank 8).
LONG = 48
# Adapters in one masked product: what they compute for each other's rows is wasted.
TOGETHER = 8
# Up to this rank over all slices (q, k and v, say), one product with zeros in it beats one for each slice.
FUSED = 64
# Packed weights that a layer keeps: of single adapters, so that those that take turns in the slots are packed once
# (5 MB each, SmolLM2-135M, rank 8 in attention), and of sets, as the batch seldom changes from one step to the next.
# More than there are slots are kept only while they take no more than so many bytes of a layer.
KEPT_SINGLE, KEPT_SETS, KEPT_BYTES = 64, 4, 10 << 20

Ranks = tuple[tuple[int, ...], ...]
Stacked = tuple[torch.Tensor, ...]
K = TypeVar("K")
V = TypeVar("V")


@dataclass(frozen=True)
class Part:
    """Rows (None: all) that are served together. Of several ``adapters``, ``owner`` is each row's place in them."""

    rows: slice | torch.Tensor | None
    adapters: tuple[int, ...]
    owner: torch.Tensor | None = None
    _masks: dict[Ranks, torch.Tensor] = field(default_factory=dict)

    def foreign(self, ranks: Ranks) -> torch.Tensor | None:
        """Return where a column of (rows, sum of ranks) belongs to another adapter than the row's own."""
        if self.owner is None:
            return None
        if ranks not in self._masks:
            place = [place for adapters in ranks for place, rank in enumerate(adapters) for _ in range(rank)]
            self._masks[ranks] = torch.tensor(place).ne(self.owner[:, None])
        return self._masks[ranks]


def plan(owners: Sequence[int]) -> list[Part]:
    """Divide a batch whose row ``i`` belongs to adapter ``owners[i]`` (0: nobody's) into parts.

    Long runs of one adapter become slices. What is left between them, as when decoding, is taken together.
    """
    adapters = len(set(owners) - {0})
    parts: list[Part] = []
    left: list[int] = []
    start = 0
    for adapter, run in groupby(owners):
        end = start + sum(1 for _ in run)
        if adapter and (adapters == 1 or (end - start) * adapters >= LONG):
            parts.append(Part(_rows(owners, start, end), (adapter,)))
        elif adapter:
            left.extend(range(start, end))
        start = end
    return [*parts, *_together(owners, left)]


def _together(owners: Sequence[int], rows: Sequence[int]) -> Iterator[Part]:
    present = sorted({owners[row] for row in rows})
    for first in range(0, len(present), TOGETHER):
        chosen = tuple(present[first : first + TOGETHER])
        place = {adapter: index for index, adapter in enumerate(chosen)}
        mine = [row for row in rows if owners[row] in place]
        unbroken = mine[-1] - mine[0] + 1 == len(mine)
        yield Part(
            rows=_rows(owners, mine[0], mine[-1] + 1) if unbroken else torch.tensor(mine),
            adapters=chosen,
            owner=torch.tensor([place[owners[row]] for row in mine]),
        )


def _copy(b: torch.Tensor) -> torch.Tensor:
    """Not ``contiguous()``: where a side is 1 it hands out the slot itself, into which the next adapter is written."""
    return b.clone(memory_format=torch.contiguous_format)


def _rows(owners: Sequence[int], start: int, end: int) -> slice | None:
    """Return those rows, as a slice only if it is not of everything: slicing takes as long as a small product."""
    return None if end - start == len(owners) else slice(start, end)


@dataclass(frozen=True)
class Pack:
    """Some adapters' weights at one layer, trimmed to their ranks: ``y += mask(x @ a) @ b``, piece by piece.

    ``a`` is (in, R); R counts the ranks of all slices, and in each those of all adapters, in the order of ``ranks``.
    Each of ``bs``, (columns, outputs), takes the next columns of x @ a and adds to the next outputs of y.
    """

    a: torch.Tensor
    ranks: Ranks
    bs: list[torch.Tensor]
    columns: list[int]
    outputs: list[int]

    @property
    def bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (self.a, *self.bs))

    def pieces(self, h: torch.Tensor, y: torch.Tensor) -> Iterable[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Divide ``h``, (rows, R), and ``y``, (rows, out), among the products."""
        if len(self.bs) == 1:
            return ((h, y, self.bs[0]),)
        hs, ys = h.split_with_sizes(self.columns, 1), y.split_with_sizes(self.outputs, 1)
        return zip(hs, ys, self.bs, strict=True)


# Rows, their adapters' weights, and what is not theirs of x @ a.
Work = tuple[slice | torch.Tensor | None, Pack, torch.Tensor | None]


class Layer:
    """The packs of one layer, made when first needed.

    ``a`` and ``b`` are vLLM's own tensors, a pair for each slice, of (slots, 1, max rank, in) and (slots, 1, out, max
    rank). An adapter's id never means other weights: a pack outlives its adapter's turn in a slot.
    """

    def __init__(self, a: Stacked, b: Stacked) -> None:
        self._a, self._b = a, b
        self._bits = [(_bits(a_), _bits(b_)) for a_, b_ in zip(a, b, strict=True)]
        self._packs: dict[int, Pack | None] = {}
        self._kept = max(KEPT_SINGLE, len(a[0]))
        self._sets: dict[tuple[int, ...], Pack | None] = {}
        self._work: tuple[list[Part], list[Work]] = [], []

    def work(self, parts: list[Part], slots: Mapping[int, int]) -> list[Work]:
        """Return what is to be done for a batch: while decoding, the same as at the last step."""
        if self._work[0] is not parts:
            packs = ((part, self.pack(part.adapters, slots)) for part in parts)
            self._work = parts, [(part.rows, pack, part.foreign(pack.ranks)) for part, pack in packs if pack]
        return self._work[1]

    def pack(self, adapters: tuple[int, ...], slots: Mapping[int, int]) -> Pack | None:
        """Return the pack for ``adapters``, or None where none of them changes this layer."""
        if len(adapters) == 1:
            return _recall(self._packs, adapters[0], self._kept, lambda: self._build(adapters, slots))
        return _recall(self._sets, adapters, KEPT_SETS, lambda: self._build(adapters, slots))

    def _build(self, adapters: tuple[int, ...], slots: Mapping[int, int]) -> Pack | None:
        chosen = [slots[adapter] for adapter in adapters]
        ranks = tuple(tuple(_rank(a[slot, 0], b[slot, 0]) for slot in chosen) for a, b in self._bits)
        total = sum(map(sum, ranks))
        if not total:
            return None
        a_used, b_used = [], []
        for a, b, used in zip(self._a, self._b, ranks, strict=True):
            a_used += [a[slot, 0, :rank] for slot, rank in zip(chosen, used, strict=True)]
            parts = [b[slot, 0, :, :rank].T for slot, rank in zip(chosen, used, strict=True)]
            b_used.append(torch.cat(parts) if len(parts) > 1 else parts[0])
        bs = [torch.block_diag(*b_used)] if total <= FUSED else [_copy(b) for b in b_used]
        pack = Pack(torch.cat(a_used).T, ranks, bs, [len(b) for b in bs], [b.shape[1] for b in bs])
        if len(adapters) == 1:
            self._kept = min(self._kept, max(len(self._a[0]), KEPT_BYTES // pack.bytes))
        return pack


def _recall(kept: dict[K, V], key: K, most: int, make: Callable[[], V]) -> V:
    """Return what is kept under ``key``, made if it is not; only the ``most`` recent are kept."""
    kept[key] = kept.pop(key) if key in kept else make()
    while len(kept) > most:
        del kept[next(iter(kept))]
    return kept[key]


def _bits(slots: torch.Tensor) -> np.ndarray:
    """Return a view as integers, in which NumPy looks for zeros in a quarter of PyTorch's time, bfloat16 or not."""
    bits: np.ndarray = slots.view({2: torch.int16, 4: torch.int32}[slots.element_size()]).numpy()
    return bits


def _rank(a: np.ndarray, b: np.ndarray) -> int:
    """Return the rank of A (max rank, in) and B (out, max rank) without the zeros that vLLM pads them with."""
    rank = _last(np.any(a, axis=1))
    # Full, or the identity that stands for an embedding's A: B tells.
    return rank if rank < len(a) else _last(np.any(b, axis=0))


def _last(used: Any) -> int:
    """Return how many there are up to the last that is used."""
    positions = np.flatnonzero(used)
    return int(positions[-1]) + 1 if len(positions) else 0


def _identity(b: torch.Tensor) -> torch.Tensor:
    """Return what stands for the A of an embedding, whose rows vLLM looks up by itself: x is (tokens, max rank)."""
    slots, rank = b.shape[0], b.shape[-1]
    return torch.eye(rank, dtype=b.dtype).expand(slots, 1, rank, rank)


class GroupedLoRA(PunicaWrapperCPU):
    """vLLM's interface: told once per step whose row is whose, then called by every layer."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._slots: dict[int, int] = {}
        self._tokens: list[Part] = []
        self._samples: list[Part] = []
        self._layers: dict[int, Layer] = {}

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **_: Any
    ) -> None:
        self._slots = {adapter: slot for slot, adapter in enumerate(lora_index_to_id) if adapter is not None}
        tokens, samples = mapping.index_mapping, mapping.prompt_mapping
        self._tokens, self._samples = plan(tokens), plan(samples)
        # What vLLM's own layers read besides: the embedding looks A up by itself.
        indices = torch.tensor([self._slots.get(adapter, -1) for adapter in tokens])
        self._token_lora_indices[: len(tokens)] = indices
        self._embeddings_indices[: len(tokens)] = indices.clamp(min=0) * vocab_size
        self._sampler_indices[: len(samples)] = torch.tensor([self._slots.get(adapter, -1) for adapter in samples])
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
            self._add(self._tokens, self._layer(lora_a_stacked, lora_b_stacked), y, x, scale)

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
            width = min(y.shape[-1], lora_b_stacked.shape[-2])  # vLLM pads a vocabulary differently here and there
            layer = self._layer((lora_a_stacked,), (lora_b_stacked,), width)
            self._add(self._samples, layer, y[:, :width], x, scale)

    def add_lora_embedding(self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, **_: Any) -> None:
        if self._tokens:
            self._add(self._tokens, self._layer(None, (lora_b_stacked,)), y, x, 1.0)

    def add_shrink(self, *_: Any, **__: Any) -> None:
        raise NotImplementedError("fully sharded LoRA is for several GPUs; on a CPU set HOTSWAP_CPU_LORA=stock.")

    add_expand = add_shrink

    def _layer(self, a: Stacked | None, b: Stacked, width: int | None = None) -> Layer:
        # A layer's tensors live as long as the model: their ids are not used again.
        if id(b[0]) not in self._layers:
            self._layers[id(b[0])] = Layer(a or (_identity(b[0]),), tuple(slots[:, :, :width] for slots in b))
        return self._layers[id(b[0])]

    def _add(self, parts: list[Part], layer: Layer, y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
        """Add to ``y``, (rows, out), in place, what each row's adapter makes of its row of ``x``, (rows, in)."""
        for rows, pack, foreign in layer.work(parts, self._slots):
            h = (x if rows is None else x[rows]) @ pack.a
            if foreign is not None:
                # Not multiplied by zero: where an adapter overflows, that would be NaN in its neighbours' rows.
                h.masked_fill_(foreign, 0)
            scattered = isinstance(rows, torch.Tensor)
            for columns, outputs, b in pack.pieces(h, y if rows is None or scattered else y[rows]):
                if scattered:
                    outputs.index_add_(0, rows, columns @ b, alpha=scale)
                else:
                    outputs.addmm_(columns, b, alpha=scale)
