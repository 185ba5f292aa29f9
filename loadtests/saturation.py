"""``python -m loadtests.saturation``: throughput and waiting over the offered rate, and where the knee is."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from adapters import cli
from loadtests.overload import TEXT, about
from loadtests.serving import ready, say, service
from loadtests.traffic import Ask, connect, offer

RESULTS = Path(__file__).parent / "results"
SHARES = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5, 2.0)  # of the capacity
# The knee: the highest rate of which so much is answered as it is offered.
KNEE = 0.95


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.saturation",
        description="Start the service, measure its capacity, and offer shares of it, one after the other. "
        "The machine must be idle otherwise. Writes saturation.json and saturation.svg.",
        epilog="example: python -m loadtests.saturation --seconds 20",
    )
    parser.add_argument("--seconds", type=float, default=20, help="of each rate (20)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="default: loadtests/results")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="hotswap-saturation-") as scratch:
        told = asyncio.run(measure(options.seconds, Path(scratch)))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "saturation.json").write_text(json.dumps(told, indent=1) + "\n")
    draw(told, options.output / "saturation.svg")
    print(markdown(told))


async def measure(seconds: float, scratch: Path) -> dict[str, Any]:
    """Return what came of each rate on a service with the starter adapters, one short text to a request."""
    numbers = count()

    def choose() -> Ask:
        return Ask("sentiment", 0, {"adapter": "sentiment", "input": TEXT.format(n=next(numbers))})

    with service(scratch / "service.log", store=scratch / "store") as (url, process):
        say("starting the service")
        await asyncio.to_thread(process.wait, lambda: ready(url))
        async with connect(url) as client:
            flood = await offer(client, 100, seconds / 2, choose, seed=1)
            capacity = sum(outcome.status == 200 for outcome in flood.outcomes) / flood.seconds
            say(f"capacity: {capacity:.1f} requests a second")
            rows = []
            for share in SHARES:
                phase = await offer(client, share * capacity, seconds, choose, seed=2)
                rows.append({"share": share, **about(phase)})
                say(json.dumps(rows[-1]))
    kept = [row["offered_per_second"] for row in rows if row["answered_per_second"] > KNEE * row["offered_per_second"]]
    knee = max(kept, default=0.0)
    return {"seconds": seconds, "capacity_per_second": capacity, "knee_per_second": knee, "rates": rows}


def draw(told: dict[str, Any], file: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = told["rates"]
    offered = [row["offered_per_second"] for row in rows]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    left.plot(offered, [row["answered_per_second"] for row in rows], "o-", label="answered")
    left.plot(offered, [row["statuses"].get("429", 0) / told["seconds"] for row in rows], "o:", label="429")
    left.set(xlabel="offered, requests a second", ylabel="requests a second")
    for name in ("p50", "p95", "p99"):
        right.plot(offered, [row[f"{name}_seconds"] for row in rows], "o-", label=name)
    right.axvline(told["knee_per_second"], color="grey", linestyle="--", label="knee")
    right.set(xlabel="offered, requests a second", ylabel="seconds", yscale="log")
    for axis in (left, right):
        axis.legend()
        axis.grid(alpha=0.3)
    figure.savefig(file)


def markdown(told: dict[str, Any]) -> str:
    lines = ["| offered/s | answered/s | 429/s | p50 s | p95 s | p99 s |", "|---|---|---|---|---|---|"]
    for row in told["rates"]:
        refused = row["statuses"].get("429", 0) / told["seconds"]
        cells = [row["offered_per_second"], row["answered_per_second"], refused]
        times = [row[f"{name}_seconds"] for name in ("p50", "p95", "p99")]
        lines.append(
            f"| {' | '.join(f'{cell:.1f}' for cell in cells)} | {' | '.join(f'{time:.3f}' for time in times)} |"
        )
    knee = f"capacity {told['capacity_per_second']:.1f}/s, knee at {told['knee_per_second']:.1f}/s"
    return "\n".join([*lines, "", knee])


if __name__ == "__main__":
    sys.exit(main())
