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
class Stage:
    """Groups that are measured before any server but theirs is started: not all fit into memory at once."""

    groups: tuple[Group, ...]
    # So many times as often as other stages: what is short is noisy.
    often: int = 1

    @property
    def servers(self) -> list[str]:
        asked = {server for group in self.groups for server, _ in group.pairs}
        return [server for server in SERVERS if server in asked]


@dataclass(frozen=True)
class Plan:
    mode: str
    stages: tuple[Stage, ...]
    # Started at the same time: faster, but then nobody's start can be timed.
    together: bool
    left_out: tuple[str, ...]
    # No repeat is begun that would not end by then.
    seconds: float | None = None

    @property
    def groups(self) -> list[Group]:
        return [group for stage in self.stages for group in stage.groups]

    @property
    def adapters(self) -> int:
        """How many classification adapters are needed, with one that is never asked before it is timed."""
        return 1 + max(workload.adapters for group in self.groups for _, workload in group.pairs)


def full(only: Sequence[str] = ()) -> Plan:
    mixed, one, base = _classify(64)
    logprobs = Workload("classify_logprobs", "classify", 4, 32, 64, labels="logprobs")
    one_adapter, most = _many(1, "uniform", 64), _many(COUNTS[-1], "uniform", 64)
    peers = (
        Group("classify", (*_each(mixed), ("vllm", logprobs))),
        Group("summarize", _each(Workload("summarize_mixed", "summarize", 4, 8, 16))),
        _completions(16),
        Group("base", _each(base)),
        Group("one", _each(one)),
    )
    many = (
        # Groups of their own, so that each has its own texts: the same text for the same adapter would be cached.
        *(Group("adapters", _each(w, ("ours", "vllm"))) for w in (one_adapter, most)),
        *(Group("adapters", (("ours", _many(count, "uniform", 64)),)) for count in COUNTS[1:-1]),
        *(Group("adapters", (("ours", _many(count, "zipf", 64)),)) for count in COUNTS[1:]),
    )
    stages = (Stage(peers), Stage(many), Stage((_service(128),), often=3), Stage((_kernels(64, 96),), often=2))
    left_out = (
        "many adapters: stock vLLM with 4, 16, 64 and Zipf; vLLM as installed, and PEFT",
        "start-up and cold first request: once, without a spread",
    )
    return _plan(only, Plan("full", stages, together=False, left_out=left_out))


def quick(only: Sequence[str] = ()) -> Plan:
    mixed, _, base = _classify(32)
    both = ("ours", "vllm")
    groups = (
        Group("classify", _each(mixed, both)),
        Group("summarize", _each(Workload("summarize_mixed", "summarize", 4, 8, 8), both)),
        _completions(8),
        Group("base", _each(replace(base, texts=16), both)),
        _service(32),
        _kernels(16, 12),
    )
    left_out = (
        "vLLM as installed, and FastAPI with PEFT",
        "one adapter only, and 1 to 256 adapters",
        "start-up and cold first request, because the servers were started together",
    )
    return _plan(only, Plan("quick", (Stage(groups),), together=True, left_out=left_out, seconds=228))


def _plan(only: Sequence[str], whole: Plan) -> Plan:
    if not only:
        return whole
    chosen = [replace(s, groups=tuple(group for group in s.groups if group.name in only)) for s in whole.stages]
    skipped = dict.fromkeys(f"{group.name} (--only)" for group in whole.groups if group.name not in only)
    return replace(whole, stages=tuple(stage for stage in chosen if stage.groups), left_out=(*whole.left_out, *skipped))


def _classify(texts: int) -> tuple[Workload, Workload, Workload]:
    return (
        Workload("classify_mixed", "classify", 4, 32, texts),
        Workload("classify_one", "classify", 1, 32, texts),
        Workload("base", "classify", 0, 32, texts, labels="logprobs"),
    )


def _many(count: int, popularity: Popularity, texts: int) -> Workload:
    name = "adapters_1" if count == 1 else f"adapters_{count}_{popularity}"
    return Workload(name, "classify", count, 32, texts, popularity=popularity)


def _completions(texts: int) -> Group:
    """The same requests, by the API that ours and vLLM's have both."""
    workload = Workload("completions_mixed", "summarize", 4, 8, texts, route="completions")
    return Group("completions", _each(workload, ("ours", "vllm")))


def _service(texts: int) -> Group:
    """The same texts over HTTP and to the engine itself."""
    mixed = Workload("service_mixed", "classify", 4, 32, texts)
    return Group("service", (("ours", mixed), ("engine-grouped", mixed)))


def _kernels(texts: int, tokens: int) -> Group:
    """Prefill and decode with and without adapters on our kernel, and with adapters on stock vLLM's."""
    lora = (
        Workload("prefill_lora", "prefill", 4, texts, texts),
        Workload("decode_lora", "decode", 4, STREAMS, 2 * STREAMS, tokens=tokens),
    )
    pairs: list[tuple[str, Workload]] = []
    for workload in lora:
        base = replace(workload, name=workload.name.replace("lora", "base"), adapters=0)
        pairs += [("engine-grouped", workload), ("engine-grouped", base), ("engine-stock", workload)]
    return Group("kernels", tuple(pairs))


def _each(workload: Workload, servers: Sequence[str] = EVERYONE) -> tuple[tuple[str, Workload], ...]:
    return tuple((server, workload) for server in servers)
