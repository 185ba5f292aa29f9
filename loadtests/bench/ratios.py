"""The ratios that are reported, and how they come from samples taken in turns."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loadtests.bench.workload import Sample

Samples = Mapping[tuple[str, str], Sequence[Sample]]


@dataclass(frozen=True)
class Side:
    """A measure (an attribute of :class:`Sample`) of a server on a workload."""

    server: str
    workload: str
    measure: str = "texts_per_second"


@dataclass(frozen=True)
class Ratio:
    """``over`` divided by ``under``; more is better unless ``at_most``."""

    name: str
    over: Side
    under: Side
    target: float | None = None
    at_most: bool = False

    def values(self, samples: Samples) -> list[float]:
        """Return one ratio per repeat: neighbours in time are divided by each other."""
        over = samples.get((self.over.server, self.over.workload), ())
        under = samples.get((self.under.server, self.under.workload), ())
        return [
            getattr(a, self.over.measure) / getattr(b, self.under.measure) for a, b in zip(over, under, strict=False)
        ]

    def reached(self, median: float) -> bool | None:
        if self.target is None:
            return None
        return median <= self.target if self.at_most else median >= self.target


def _between(workload: str, measure: str = "texts_per_second", peer: str = "vllm") -> tuple[Side, Side]:
    return Side("ours", workload, measure), Side(peer, workload, measure)


def _lora_share(kind: str, measure: str) -> tuple[Side, Side]:
    return Side("engine-grouped", f"{kind}_lora", measure), Side("engine-grouped", f"{kind}_base", measure)


def _kernels(kind: str, measure: str) -> tuple[Side, Side]:
    return Side("engine-grouped", f"{kind}_lora", measure), Side("engine-stock", f"{kind}_lora", measure)


PROMPT, OUTPUT = "prompt_tokens_per_second", "output_tokens_per_second"
RATIOS = (
    Ratio("classify_mixed_vs_vllm", *_between("classify_mixed"), 5),
    Ratio("classify_mixed_p95_vs_vllm", *_between("classify_mixed", "p95"), 0.25, at_most=True),
    Ratio("summarize_mixed_vs_vllm", *_between("summarize_mixed"), 1.8),
    Ratio("completions_mixed_vs_vllm", *_between("completions_mixed")),
    Ratio("base_vs_vllm", *_between("base"), 0.97),
    Ratio("service_vs_engine", *_between("service_mixed", peer="engine-grouped"), 0.95),
    Ratio("adapters_256_vs_1", Side("ours", "adapters_256_zipf", PROMPT), Side("ours", "adapters_1", PROMPT), 0.85),
    Ratio("lora_vs_base_prefill", *_lora_share("prefill", PROMPT), 0.9),
    Ratio("lora_vs_base_decode", *_lora_share("decode", OUTPUT), 0.9),
    Ratio("cpu_lora_vs_stock_prefill", *_kernels("prefill", PROMPT), 1.8),
    Ratio("cpu_lora_vs_stock_decode", *_kernels("decode", OUTPUT), 1.8),
    # Without a target: what else a reader will ask.
    Ratio("classify_mixed_vs_vllm_logprobs", Side("ours", "classify_mixed"), Side("vllm", "classify_logprobs")),
    Ratio("classify_one_vs_vllm", *_between("classify_one")),
    Ratio("summarize_mixed_p95_vs_vllm", *_between("summarize_mixed", "p95"), at_most=True),
    Ratio("adapters_64_vs_1", Side("ours", "adapters_64_uniform", PROMPT), Side("ours", "adapters_1", PROMPT), 0.85),
    Ratio(
        "adapters_256_uniform_vs_1", Side("ours", "adapters_256_uniform", PROMPT), Side("ours", "adapters_1", PROMPT)
    ),
    Ratio("adapters_256_vs_vllm", *_between("adapters_256_uniform")),
    *(
        Ratio(f"{workload}_vs_{peer}", *_between(workload, peer=peer))
        for peer in ("vllm-installed", "peft")
        for workload in ("classify_mixed", "summarize_mixed", "base", "classify_one")
    ),
)


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def agreement(samples: Samples, workload: str, server: str, other: str) -> float | None:
    """Return the share of texts to which two servers gave the same answer, if both were asked."""
    pairs = [
        (mine, theirs)
        for a, b in zip(samples.get((server, workload), ()), samples.get((other, workload), ()), strict=False)
        for mine, theirs in zip(a.answers, b.answers, strict=True)
    ]
    return sum(mine == theirs for mine, theirs in pairs) / len(pairs) if pairs else None
