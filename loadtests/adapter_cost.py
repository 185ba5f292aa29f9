"""``python -m loadtests.adapter_cost``: what adapters cost to serve, one beside the other on a running service."""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time

import aiohttp

from adapters import cli
from adapters.errors import HotswapError
from loadtests.traffic import connect

SENTENCES = (
    "The plot is thin, the acting is worse, and the last half hour seems to go on for ever.",
    "A moving, beautifully acted film that stays with you for days.",
    "I wanted to like it more than I did, but there is hardly a scene that rings true.",
    "Funny, quick, and far cleverer than it has to be.",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.adapter_cost",
        description="Send the same texts to every adapter in turns, and print its texts a second over the first one's.",
        epilog="example: python -m loadtests.adapter_cost sentiment support --in-flight 16",
    )
    parser.add_argument("adapters", nargs="+", metavar="NAME")
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--texts", type=int, default=128, help="in each turn (128)")
    parser.add_argument("--in-flight", type=int, default=16, help="texts at once (16)")
    parser.add_argument("--repeats", type=int, default=5, help="turns (5)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=lambda options: asyncio.run(measure(options)))
    return cli.run(parser)


async def measure(options: argparse.Namespace) -> None:
    """Print a row per adapter. Every text is another one, so that no cache answers."""
    rates: dict[str, list[float]] = {name: [] for name in options.adapters}
    async with connect(options.url) as client:
        for repeat in range(options.repeats + 1):
            for name, found in rates.items():
                rate = await _rate(client, name, options.texts, options.in_flight, repeat)
                if repeat:  # the first turn warms up
                    found.append(rate)
    first = rates[options.adapters[0]]
    rows = [
        {
            "adapter": name,
            "texts_per_second": round(statistics.median(found), 2),
            "over_first": round(statistics.median(a / b for a, b in zip(found, first, strict=True)), 3),
            "min": round(min(a / b for a, b in zip(found, first, strict=True)), 3),
            "max": round(max(a / b for a, b in zip(found, first, strict=True)), 3),
        }
        for name, found in rates.items()
    ]
    if options.json:
        print(json.dumps(rows))
    else:
        cli.show(rows, as_json=False, columns=list(rows[0]))


async def _rate(client: aiohttp.ClientSession, name: str, texts: int, in_flight: int, repeat: int) -> float:
    turns = asyncio.Semaphore(in_flight)

    async def ask(number: int) -> None:
        text = f"{number} {repeat}: {SENTENCES[number % len(SENTENCES)]}"
        async with turns, client.post("/v1/predict", json={"adapter": name, "input": text}) as answer:
            said = await answer.text()
        if answer.status != 200:
            raise HotswapError(f"'{name}' answered {answer.status}: {said[:200]}")

    began = time.monotonic()
    try:
        async with asyncio.TaskGroup() as group:
            for number in range(texts):
                group.create_task(ask(number))
    except* HotswapError as failed:
        raise failed.exceptions[0] from None
    except* aiohttp.ClientError as failed:
        raise HotswapError(f"the service could not be asked: {failed.exceptions[0]}") from None
    return texts / (time.monotonic() - began)


if __name__ == "__main__":
    sys.exit(main())
