"""``python -m loadtests.scale``: how many adapters, and replicas, a router that knows adapters carries. A simulation.

Requests are a Poisson process, adapters are asked for by Zipf's law, and texts take exponentially distributed times. A
replica answers so many texts at once, first come first served, keeps as many adapters as it is set to, the least
recently used one going first (:mod:`service.serving.residency`), and loads one after the other. Requests are routed at
random, or as k8s/components/envoy does: by consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam
2018) on a ring of hashes, the next replica taking what is beyond ``BALANCE`` times the mean.
"""

from __future__ import annotations

import argparse
import hashlib
import heapq
import json
import sys
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adapters import cli

RESULTS = Path(__file__).parent / "results"
BALANCE = 1.5  # hash_balance_factor
RING = 1024  # Envoy's least size of a ring, in points
ZIPF = 1.0
# What a request costs depends on how much a replica may be given: until so many wait longer than a text takes anyhow.
COST_REPLICAS, PATIENCE, LOADS = (10, 100), 2.0, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True)
class Replica:
    """What one replica does, as measured on one: texts at once, seconds a text and a load, bytes an adapter."""

    slots: int
    text_seconds: float
    load_seconds: float
    resident: int
    adapter_bytes: float
    price_hour: float

    @property
    def capacity(self) -> float:
        """Texts a second."""
        return self.slots / self.text_seconds


# Two cores of this machine, base of 135M parameters (docs/guarantees.md), and a GPU (one API process of an H200); loads
# with their fetch from a bucket. Prices are round numbers of large clouds: put your own.
REPLICAS = {
    "cpu": Replica(8, 8 / 14, 0.12, 64, 4e6, 0.09),
    "gpu": Replica(64, 64 / 650, 0.12, 256, 80e6, 3.0),
}


@dataclass
class _State:
    """A replica at work: when its slots are free, what is in it, when it has loaded, and what is under way."""

    slots: list[float]
    resident: OrderedDict[int, float] = field(default_factory=OrderedDict)  # adapter → when it is there
    loads_until: float = 0.0
    under_way: int = 0


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.scale",
        description="Simulate many replicas and adapters behind a router. Writes scale-KIND.json and .svg.",
        epilog="example: python -m loadtests.scale --kind gpu --load 0.6",
    )
    parser.add_argument("--kind", choices=sorted(REPLICAS), default="cpu", help="what a replica is (cpu)")
    parser.add_argument("--load", type=float, default=0.6, help="of the replicas' capacity (0.6)")
    parser.add_argument("--requests", type=int, default=60_000, help="to simulate, the first third unmeasured (60000)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> None:
    kind, table = REPLICAS[options.kind], []
    for replicas in (1, 10, 100, 1000):
        for adapters in (10, 100, 1000, 10_000, 100_000):
            for routing in ("random", "ring"):
                requests = max(options.requests, 400 * replicas)
                told = simulate(kind, replicas, adapters, options.load, routing, requests)
                table.append({"kind": options.kind, "load": options.load, **told})
                print(json.dumps(table[-1]), file=sys.stderr)
    costs = [
        {"replicas": replicas, "adapters": adapters, "routing": routing}
        | cheapest(kind, replicas, adapters, routing, options.requests)
        for replicas in COST_REPLICAS
        for adapters in (100, 1000, 10_000, 100_000)
        for routing in ("random", "ring")
    ]
    options.output.mkdir(parents=True, exist_ok=True)
    told = {"at_load": table, "cost": costs}
    (options.output / f"scale-{options.kind}.json").write_text(json.dumps(told, indent=1) + "\n")
    draw(table, costs, options.output / f"scale-{options.kind}.svg")
    print(markdown(table))
    print(markdown_costs(costs))


def cheapest(kind: Replica, replicas: int, adapters: int, routing: str, requests: int) -> dict[str, Any]:
    """Return the highest of LOADS at which p95 stays within PATIENCE times that of a text alone, and what a million
    requests cost there; nothing where the lowest is too much."""
    limit = PATIENCE * kind.text_seconds * -np.log(0.05)  # a text's own p95: its time is exponential
    found: dict[str, Any] = {"load": None, "dollars_a_million": None}
    for load in LOADS:
        if simulate(kind, replicas, adapters, load, routing, max(requests, 400 * replicas))["p95_seconds"] > limit:
            break
        dollars = 1e6 / (load * kind.capacity * 3600) * kind.price_hour
        found = {"load": load, "dollars_a_million": round(dollars, 2)}
    return found


def simulate(
    kind: Replica, replicas: int, adapters: int, load: float, routing: str, requests: int, seed: int = 0
) -> dict[str, Any]:
    """Return what ``requests`` meet at ``load`` times the capacity: hit rate, seconds, memory."""
    dice = np.random.default_rng(seed)
    rate = load * replicas * kind.capacity
    arrivals = np.cumsum(dice.exponential(1 / rate, requests))
    weights = 1 / np.arange(1, adapters + 1) ** ZIPF
    asked = dice.choice(adapters, requests, p=weights / weights.sum())
    takes = dice.exponential(kind.text_seconds, requests)
    states = [_State([0.0] * kind.slots) for _ in range(replicas)]
    pick = _ring(states) if routing == "ring" else _random(dice, replicas)
    _fill(states, kind, adapters, pick if routing == "ring" else None)
    ends: list[tuple[float, int]] = []
    seconds, hits = np.empty(requests), np.empty(requests, bool)
    for place, (arrival, adapter, takes_it) in enumerate(zip(arrivals, asked, takes, strict=True)):
        while ends and ends[0][0] <= arrival:
            states[heapq.heappop(ends)[1]].under_way -= 1
        chosen = pick(int(adapter), len(ends))
        states[chosen].under_way += 1
        hits[place], end = _answer(states[chosen], kind, int(adapter), arrival, takes_it)
        heapq.heappush(ends, (end, chosen))
        seconds[place] = end - arrival
    measured = slice(requests // 3, None)
    resident = [len(state.resident) for state in states]
    return {
        "replicas": replicas,
        "adapters": adapters,
        "routing": routing,
        "hit_rate": round(float(hits[measured].mean()), 4),
        "p50_seconds": round(float(np.quantile(seconds[measured], 0.5)), 3),
        "p95_seconds": round(float(np.quantile(seconds[measured], 0.95)), 3),
        "adapters_gib_a_replica": round(float(np.mean(resident)) * kind.adapter_bytes / 2**30, 3),
    }


def _fill(states: list[_State], kind: Replica, adapters: int, owner: Callable[[int, int], int] | None) -> None:
    """Put in what is there after a long time: nobody waits for a thousand replicas to be filled."""
    for adapter in reversed(range(min(adapters, kind.resident * (len(states) if owner else 1)))):
        for state in [states[owner(adapter, 0)]] if owner else states:
            state.resident[adapter] = 0.0
            if len(state.resident) > kind.resident:
                state.resident.popitem(last=False)


def _answer(state: _State, kind: Replica, adapter: int, arrival: float, takes: float) -> tuple[bool, float]:
    """Have a replica answer; return whether it had the adapter, and when it is done."""
    hit = adapter in state.resident
    if not hit:
        state.loads_until = max(state.loads_until, arrival) + kind.load_seconds
        state.resident[adapter] = state.loads_until
        if len(state.resident) > kind.resident:
            state.resident.popitem(last=False)
    state.resident.move_to_end(adapter)
    begins = max(arrival, state.resident[adapter], state.slots[0])
    heapq.heapreplace(state.slots, begins + takes)
    return hit, begins + takes


def _random(dice: np.random.Generator, replicas: int) -> Callable[[int, int], int]:
    return lambda adapter, under_way: int(dice.integers(replicas))


def _ring(states: list[_State]) -> Callable[[int, int], int]:
    """Return consistent hashing with bounded loads: which replica, for an adapter, with so many requests under way."""
    points = max(1, -(-RING // len(states)))
    ring = sorted((_hash(f"{replica}/{point}"), replica) for replica in range(len(states)) for point in range(points))
    keys, owners = np.array([key for key, _ in ring], np.uint64), [replica for _, replica in ring]

    def pick(adapter: int, under_way: int) -> int:
        bound = max(1.0, BALANCE * (under_way + 1) / len(states))
        start = int(np.searchsorted(keys, np.uint64(_hash(str(adapter)))))
        around = (owners[(start + step) % len(owners)] for step in range(len(owners)))
        return next((replica for replica in around if states[replica].under_way < bound), owners[start % len(owners)])

    return pick


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def draw(table: list[dict[str, Any]], costs: list[dict[str, Any]], file: Path) -> None:
    """Draw hit rate, p95 and cost over the number of adapters: a line for each number of replicas and routing."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(14, 4), layout="constrained")
    drawn = (
        (table, "hit_rate", "hit rate"),
        (table, "p95_seconds", "p95, seconds, at the same load"),
        (costs, "dollars_a_million", "$ a million, at the same p95"),
    )
    colours = {replicas: f"C{place}" for place, replicas in enumerate(sorted({row["replicas"] for row in table}))}
    for axis, (source, value, label) in zip(axes, drawn, strict=True):
        for replicas, colour in colours.items():
            for routing, style in (("random", ":"), ("ring", "-")):
                rows = [row for row in source if (row["replicas"], row["routing"]) == (replicas, routing)]
                places, values = [row["adapters"] for row in rows], [row[value] for row in rows]
                axis.plot(places, values, style, color=colour, label=f"{replicas} replicas, {routing}")
        axis.set(xscale="log", xlabel="adapters", ylabel=label)
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[2].set_ylim(bottom=0)
    axes[0].legend(fontsize="x-small")
    figure.savefig(file)


def markdown_costs(costs: list[dict[str, Any]]) -> str:
    lines = ["| replicas | adapters | load, random | ring | $ a million, random | ring |", "|---|---|---|---|---|---|"]
    for random, ring in zip(costs[::2], costs[1::2], strict=True):
        values = [each[name] for name in ("load", "dollars_a_million") for each in (random, ring)]
        told = ["–" if value is None else f"{value:g}" for value in values]
        lines.append(f"| {random['replicas']} | {random['adapters']:,} | {' | '.join(told)} |")
    return "\n".join(lines)


def markdown(table: list[dict[str, Any]]) -> str:
    head = (
        "replicas",
        "adapters",
        "hit rate, random",
        "ring",
        "p95 s, random",
        "ring",
        "GiB a replica, random",
        "ring",
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for random, ring in zip(table[::2], table[1::2], strict=True):
        values = [random["replicas"], f"{random['adapters']:,}"]
        for name in ("hit_rate", "p95_seconds", "adapters_gib_a_replica"):
            values += [random[name], ring[name]]
        lines.append(f"| {' | '.join(map(str, values))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
