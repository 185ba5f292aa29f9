"""Which workloads there are, and who is put to them: the whole of it, or what fits into four minutes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtests.bench.workload import Popularity, Workload

COUNTS = (1, 4, 16, 64, 256)
EVERYONE = ("ours", "vllm", "vllm-installed", "peft")
SERVERS = (*EVERYONE, "engine-grouped", "engine-stock")
STREAMS = 16


@dataclass(frozen=True)
class Group:
    """Pairs that are measured in turns, so that each can be compared with every other."""

    name: str
    pairs: tuple[tuple[str, Workload], ...]


@dataclass(frozen=True)
class Plan:
    mode: str
    groups: tuple[Group, ...]
    # Started at the same time: faster, but then nobody's start can be timed.
    together: bool
    left_out: tuple[str, ...]
    # No repeat is begun that would not end by then.
    seconds: float | None = None

    @property
    def servers(self) -> list[str]:
        asked = {server for group in self.groups for server, _ in group.pairs}
        return [server for server in SERVERS if server in asked]

    @property
    def adapters(self) -> int:
        """How many classification adapters are needed, with one that is never asked before it is timed."""
        return 1 + max(workload.adapters for group in self.groups for _, workload in group.pairs)


def full(only: Sequence[str] = ()) -> Plan:
    mixed, one, base = _classify(64)
    logprobs = Workload("classify_logprobs", "classify", 4, 32, 64, labels="logprobs")
    one_adapter, most = _many(1, "uniform", 64), _many(COUNTS[-1], "uniform", 64)
    groups = (
        Group("classify", (*_each(mixed), ("vllm", logprobs), ("engine-grouped", mixed))),
        Group("summarize", _each(Workload("summarize_mixed", "summarize", 4, 8, 16))),
        Group("base", _each(base)),
        Group("one", _each(one)),
        # Groups of their own, so that each has its own texts: the same text for the same adapter would be cached.
        *(Group("adapters", _each(w, ("ours", "vllm"))) for w in (one_adapter, most)),
        *(Group("adapters", (("ours", _many(count, "uniform", 64)),)) for count in COUNTS[1:-1]),
        *(Group("adapters", (("ours", _many(count, "zipf", 64)),)) for count in COUNTS[1:]),
        _kernels(64, 48),
    )
    left_out = (
        "many adapters: stock vLLM with 4, 16, 64 and Zipf; vLLM as installed, and PEFT",
        "start-up and cold first request: once, without a spread",
    )
    return _plan(only, Plan("full", groups, together=False, left_out=left_out))


def quick(only: Sequence[str] = ()) -> Plan:
    mixed, _, base = _classify(32)
    both = ("ours", "vllm")
    groups = (
        Group("classify", (*_each(mixed, both), ("engine-grouped", mixed))),
        Group("summarize", _each(Workload("summarize_mixed", "summarize", 4, 8, 8), both)),
        Group("base", _each(replace(base, texts=16), both)),
        _kernels(16, 12),
    )
    left_out = (
        "vLLM as installed, and FastAPI with PEFT",
        "one adapter only, and 1 to 256 adapters",
        "start-up and cold first request, because the servers were started together",
    )
    return _plan(only, Plan("quick", groups, together=True, left_out=left_out, seconds=228))


def _plan(only: Sequence[str], whole: Plan) -> Plan:
    chosen = tuple(group for group in whole.groups if not only or group.name in only)
    skipped = dict.fromkeys(f"{group.name} (--only)" for group in whole.groups if group not in chosen)
    return replace(whole, groups=chosen, left_out=(*whole.left_out, *skipped))


def _classify(texts: int) -> tuple[Workload, Workload, Workload]:
    return (
        Workload("classify_mixed", "classify", 4, 32, texts),
        Workload("classify_one", "classify", 1, 32, texts),
        Workload("base", "classify", 0, 32, texts, labels="logprobs"),
    )


def _many(count: int, popularity: Popularity, texts: int) -> Workload:
    name = "adapters_1" if count == 1 else f"adapters_{count}_{popularity}"
    return Workload(name, "classify", count, 32, texts, popularity=popularity)


def _kernels(texts: int, tokens: int) -> Group:
    """Prefill and decode with and without adapters on our kernel, and with adapters on stock vLLM's."""
    both = ("engine-grouped", "engine-stock")
    lora = (
        Workload("prefill_lora", "prefill", 4, texts, texts),
        Workload("decode_lora", "decode", 4, STREAMS, 2 * STREAMS, tokens=tokens),
    )
    base = [replace(workload, name=workload.name.replace("lora", "base"), adapters=0) for workload in lora]
    return Group("kernels", (*(p for w in lora for p in _each(w, both)), *(("engine-grouped", w) for w in base)))


def _each(workload: Workload, servers: Sequence[str] = EVERYONE) -> tuple[tuple[str, Workload], ...]:
    return tuple((server, workload) for server in servers)
