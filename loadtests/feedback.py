"""``python -m loadtests.feedback``: what it costs a prediction that it is kept, and how many can be.

The engine is the fake one, which answers at once: whatever the database costs, it costs beside next to nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from ulid import ULID

from adapters import cli
from adapters.packages import cache_folder
from loadtests.serving import ready, say, service
from loadtests.traffic import connect
from service.metrics import Metrics
from service.monitoring.database import Database
from service.monitoring.writer import MOST, Writer

TEXT = "The second half of the film number {n} drags, but its two leads and the music more than make up for it."


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.feedback",
        description="Write as many predictions as the database takes; then ask services that keep nothing, and that "
        "keep all, in turns.",
        epilog="example: python -m loadtests.feedback --postgres postgresql://user:password@host/database",
    )
    parser.add_argument(
        "--postgres", metavar="URL", help="measure a PostgreSQL database, too; its feedback stays there"
    )
    parser.add_argument("--requests", type=int, default=600, help="in each turn (600)")
    parser.add_argument("--turns", type=int, default=5)
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="hotswap-feedback-") as scratch:
        places = {"sqlite": f"{scratch}/feedback.db"} | ({"postgresql": options.postgres} if options.postgres else {})
        written = {name: round(asyncio.run(write(place))) for name, place in places.items()}
        told = {"written_per_second": written, "predict": asyncio.run(ask(options, places, Path(scratch)))}
    print(json.dumps(told, indent=1))


async def write(place: str, number: int = 50_000) -> float:
    """Return how many predictions, with their texts, a writer brings to the database in a second."""
    writer = Writer(Database(place), Metrics(), "plain", None)
    writer.start()
    began, n = time.monotonic(), 0
    while n < number:
        if len(writer._queue) > MOST - 1000:
            await asyncio.sleep(0.001)
        writer.keep(_row(n))
        n += 1
    while writer._queue or writer._batch:
        await asyncio.sleep(0.001)
    seconds = time.monotonic() - began
    await writer.close()
    return number / seconds


def _row(n: int) -> dict[str, Any]:
    about = {"id": f"pred_{ULID()}", "adapter": "sentiment", "version": 1, "task": "classification", "routed": True}
    return {**about, "asked_by": "team", "caller": None, "answers": ["positive"], "texts": [TEXT.format(n=n)]}


async def ask(options: argparse.Namespace, places: dict[str, str], scratch: Path) -> dict[str, dict[str, float]]:
    """Return requests a second, and the time of one, of a service for each place and of one without."""
    kept = {"off": {"feedback_database": "off"}}
    kept |= {name: {"feedback_database": place, "feedback_texts": "plain"} for name, place in places.items()}
    seconds: dict[str, list[float]] = {name: [] for name in kept}
    rates: dict[str, list[float]] = {name: [] for name in kept}
    with ExitStack() as running:
        urls = {}
        for name, settings in kept.items():
            more = {"engine": "fake", "store": scratch / "store", "cache": cache_folder()}
            urls[name], _ = running.enter_context(service(scratch / f"{name}.log", **more, **settings))
            while not ready(urls[name]):
                await asyncio.sleep(0.2)
        for turn in range(options.turns + 1):
            for name, url in urls.items():
                took, rate = await _turn(url, options.requests)
                if turn:  # the first warms up
                    seconds[name] += took
                    rates[name].append(rate)
            say(f"turn {turn} of {options.turns}")
    return {
        name: {
            "requests_per_second": round(float(np.median(rates[name]))),
            **{f"p{p}_ms": round(1000 * float(np.percentile(seconds[name], p)), 2) for p in (50, 95, 99)},
        }
        for name in kept
    }


async def _turn(url: str, requests: int, in_flight: int = 4) -> tuple[list[float], float]:
    seconds: list[float] = []
    numbers = iter(range(requests))
    async with connect(url) as client:

        async def caller() -> None:
            for n in numbers:
                began = time.monotonic()
                async with client.post(
                    "/v1/predict", json={"adapter": "sentiment", "input": TEXT.format(n=n)}
                ) as answer:
                    assert answer.status == 200
                    await answer.read()
                seconds.append(time.monotonic() - began)

        began = time.monotonic()
        await asyncio.gather(*(caller() for _ in range(in_flight)))
    return seconds, requests / (time.monotonic() - began)


if __name__ == "__main__":
    raise SystemExit(main())
