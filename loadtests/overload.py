"""``python -m loadtests.overload``: ten times more requests than the service can answer, at a constant rate.

What is admitted must not wait much longer than without load; the others are refused at once, with a time to come
back; and memory stays where it was.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from adapters import cli
from loadtests.serving import memory, ready, say, service
from loadtests.traffic import Ask, Phase, connect, offer

RESULTS = Path(__file__).parent / "results"
UNLOADED, OVERLOAD = 0.25, 10.0  # of the capacity
TEXT = "The second half of the film number {n} drags, but its two leads and the music more than make up for it."


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.overload",
        description="Start the service, measure its capacity, then offer a quarter of it and ten times of it. "
        "The machine must be idle otherwise. Writes overload.json.",
        epilog="example: python -m loadtests.overload --seconds 20",
    )
    parser.add_argument("--seconds", type=float, default=30, help="of each load (30)")
    parser.add_argument("--max-wait", type=float, default=0.3, help="HOTSWAP_MAX_WAIT_SECONDS (0.3)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="default: loadtests/results")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="hotswap-overload-") as scratch:
        told = asyncio.run(measure(options.seconds, options.max_wait, Path(scratch)))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "overload.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1))
    complaints = list(faults(told))
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


async def measure(seconds: float, max_wait: float, scratch: Path, **settings: object) -> dict[str, Any]:
    """Return what came of both loads on a service with the starter adapters."""
    numbers = count()

    def choose() -> Ask:
        body = {"adapter": "sentiment", "input": TEXT.format(n=next(numbers))}
        return Ask("sentiment", 0, body)

    places = {"store": scratch / "store", "max_wait_seconds": max_wait, **settings}
    with service(scratch / "service.log", **places) as (url, process):
        say("starting the service")
        await asyncio.to_thread(process.wait, lambda: ready(url))
        async with connect(url) as client:
            # More than any machine answers, so that as much as fits is admitted all the time.
            flood = await offer(client, 100, seconds / 3, choose, seed=1)
            capacity = sum(outcome.status == 200 for outcome in flood.outcomes) / flood.seconds
            say(f"capacity: {capacity:.1f} requests a second")
            unloaded = await offer(client, UNLOADED * capacity, seconds, choose, seed=2)
            before = memory(process.id)
            overload = await offer(client, OVERLOAD * capacity, seconds, choose, seed=3)
            after = memory(process.id)
            again = await offer(client, UNLOADED * capacity, seconds / 3, choose, seed=4)
    return {
        "max_wait_seconds": max_wait,
        "capacity_per_second": capacity,
        "unloaded": about(unloaded),
        "overload": about(overload),
        "afterwards": about(again),
        "p95_ratio": about(overload)["p95_seconds"] / about(unloaded)["p95_seconds"],
        "memory_bytes": {"before": before, "after": after},
    }


def faults(told: dict[str, Any]) -> list[str]:
    """Return what is not as promised."""
    found = []
    for phase in ("unloaded", "overload", "afterwards"):
        odd = {status: n for status, n in told[phase]["statuses"].items() if status not in ("200", "429")}
        found += [f"{phase}: statuses {odd}"] if odd else []
    if "429" in told["unloaded"]["statuses"]:
        found.append("requests were refused without load")
    if told["p95_ratio"] > 2:
        found.append(f"p95 under overload is {told['p95_ratio']:.2f} of the unloaded one; at most 2 is promised")
    return found


def about(phase: Phase) -> dict[str, Any]:
    answered = [outcome.seconds for outcome in phase.outcomes if outcome.status == 200]
    refused = [outcome.seconds for outcome in phase.outcomes if outcome.status == 429]
    statuses = Counter(str(outcome.status) for outcome in phase.outcomes)
    return {
        "offered_per_second": len(phase.outcomes) / phase.offered_seconds,
        "answered_per_second": len(answered) / phase.seconds,
        "statuses": dict(sorted(statuses.items())),
        "p50_seconds": float(np.quantile(answered, 0.5)) if answered else None,
        "p95_seconds": float(np.quantile(answered, 0.95)) if answered else None,
        "p99_seconds": float(np.quantile(answered, 0.99)) if answered else None,
        "refused_p95_seconds": float(np.quantile(refused, 0.95)) if refused else None,
    }


if __name__ == "__main__":
    sys.exit(main())
