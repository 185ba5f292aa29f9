"""What of a batch fits into a GPU's memory at a time: estimated before the first step, so that none is lost to a crash.

The estimate errs on the safe side; where it does not, :func:`trainer.fit.fit` goes on with fewer rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapters.architecture import Architecture

# Bytes of activations that a layer keeps of a token, in widths of the model, at 16 bits and with attention that keeps
# no scores (Korthikanti et al. 2022, arXiv:2205.05198, section 4.1: 34 sbh); LoRA's own inputs are among them.
OF_A_LAYER, OF_A_CHECKPOINT = 34, 2
# Of the memory: CUDA's context, buffers of libraries, what the allocator cannot use.
USABLE = 0.85
FOUR_BIT = 0.6  # bytes a number, with the scales of NF4 and the matrices that stay as they are


@dataclass(frozen=True)
class Fit:
    """``rows`` of a batch at a time, and whether activations are computed again instead of kept."""

    rows: int
    checkpointing: bool


def fitting(
    architecture: Architecture,
    numbers: int,
    memory: int,
    *,
    rows: int,
    longest: int,
    bfloat16: bool,
    four_bit: bool = False,
    checkpointing: bool | None = None,
) -> Fit:
    """Return how a batch of ``rows``, of at most ``longest`` tokens each, is computed in ``memory`` bytes by a base of
    so many ``numbers``; with ``checkpointing`` as it was set, or (None) only where not even one row fits without."""
    room = USABLE * memory - numbers * (FOUR_BIT if four_bit else 4)
    widths = (2 if bfloat16 else 4) // 2 * (architecture.hidden or 4096) * longest
    layers = architecture.layers or 32
    kept = OF_A_LAYER * layers * widths
    # Of each layer its input, and all of the one that is computed again.
    again = (OF_A_CHECKPOINT * layers + OF_A_LAYER) * widths
    if checkpointing is None:
        checkpointing = kept > room
    one = again if checkpointing else kept
    return Fit(next((part for part in range(rows, 1, -1) if rows % part == 0 and part * one <= room), 1), checkpointing)
