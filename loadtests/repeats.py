"""``python -m loadtests.repeats``: what the answer cache is worth where some texts come again and again."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx
import numpy as np

from adapters import cli
from adapters.packages import cache_folder
from loadtests.bench.load import drive
from loadtests.serving import ready, say, service
from trainer.sources import fetch_rows

RESULTS = Path(__file__).parent / "results" / "repeats.json"
IN_FLIGHT = 32


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.repeats",
        description="Two services side by side, one with an answer cache, are asked for the same in turns: reviews, of "
        "which by Zipf's law the k-th is asked for 1/k as often as the first. Writes repeats.json.",
        epilog="example: python -m loadtests.repeats --texts 1000 --turns 6 --requests 300",
    )
    parser.add_argument("--texts", type=int, default=1000, help="different ones (1000)")
    parser.add_argument("--turns", type=int, default=6, help="of each service (6)")
    parser.add_argument("--requests", type=int, default=300, help="in a turn (300)")
    parser.add_argument("--mib", type=float, default=16, help="memory of the cache (16)")
    parser.set_defaults(command=compare)
    return cli.run(parser)


def compare(options: argparse.Namespace) -> int:
    texts = [row["text"] for row in fetch_rows("vader-movies", cache_folder())][: options.texts]
    weights, dice = 1 / np.arange(1, len(texts) + 1), np.random.default_rng(0)
    rates: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory(prefix="hotswap-repeats-") as made, ExitStack() as stack:
        urls = {
            name: stack.enter_context(served(Path(made) / name, mib))
            for name, mib in (("without", 0), ("with", options.mib))
        }
        for url in urls.values():
            drive(url, [call(f"Warm-up number {n}.") for n in range(IN_FLIGHT)], IN_FLIGHT)
        for turn in range(options.turns):
            asked = [call(texts[n]) for n in dice.choice(len(texts), options.requests, p=weights / weights.sum())]
            labels = {}
            for name in list(urls) if turn % 2 == 0 else list(urls)[::-1]:
                seconds, _, answers = drive(urls[name], asked, IN_FLIGHT)
                rates[name].append(options.requests / seconds)
                labels[name] = [answer["outputs"][0]["label"] for answer in answers]
            assert labels["with"] == labels["without"], "a repeat was answered differently"
            say(f"answers/s {rates['without'][-1]:.1f} without, {rates['with'][-1]:.1f} with")
        hits, misses = (lookups(urls["with"], outcome) for outcome in ("hit", "miss"))
    ratios = [ours / theirs for ours, theirs in zip(rates["with"], rates["without"], strict=True)]
    told = {
        "hit rate": round(hits / (hits + misses - IN_FLIGHT), 3),  # without the warm-up
        "answers a second": {name: round(median(all_), 1) for name, all_ in rates.items()},
        "with/without, by turn": [round(ratio, 2) for ratio in ratios],
        "with/without": round(sum(1 / rate for rate in rates["without"]) / sum(1 / rate for rate in rates["with"]), 2),
        **{name: getattr(options, name) for name in ("texts", "turns", "requests", "mib")},
    }
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    return 0


@contextmanager
def served(scratch: Path, mib: float) -> Iterator[str]:
    """Serve, ready; yield the address."""
    scratch.mkdir()
    settings = {"store": scratch / "store", "feedback_database": "off", "answer_cache_mib": mib}
    with service(scratch / "log", **settings) as (url, process):
        process.wait(lambda: ready(url))
        yield url


def call(text: str) -> tuple[str, dict[str, str]]:
    return "/v1/predict", {"adapter": "sentiment", "input": text}


def lookups(url: str, outcome: str) -> float:
    lines = httpx.get(f"{url}/metrics", trust_env=False).text.splitlines()
    named = [line for line in lines if line.startswith("hotswap_answer_cache_lookups_total{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in named if f'outcome="{outcome}"' in line)


if __name__ == "__main__":
    sys.exit(main())
