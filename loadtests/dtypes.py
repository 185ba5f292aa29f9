"""``python -m loadtests.dtypes``: how far the numbers that the engine calculates with move its answers.

For each of the shipped adapters: the log-probabilities that a probe asks for, on held-out texts, in float32 and in
another dtype. What :data:`service.engine.base.HALF_TOLERANCE` tolerates is to be above the largest difference.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from adapters import cli, probes
from adapters.base_model import Base, resolve_base
from adapters.errors import HotswapError
from adapters.manifest import Manifest
from adapters.packages import cache_folder
from adapters.seed import STARTER
from adapters.tasks import ClassificationTask, Task
from service.engine.base import FLOAT32_TOLERANCE, HALF_TOLERANCE
from trainer.data import load_splits
from trainer.loading import load_recipe

RECIPES = Path(__file__).parents[1] / "trainer" / "recipes"
NAMES = ("sentiment", "one-line-summary")
IN_FLIGHT = 8


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.dtypes",
        description="Ask the engine the same in float32 and in half precision; print how far the answers are apart.",
        epilog="example: python -m loadtests.dtypes --texts 1000",
    )
    parser.add_argument("--texts", type=int, default=400, help="of each adapter's held-out rows (400)")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=("bfloat16", "float16"), help="beside float32 (bfloat16)"
    )
    parser.set_defaults(command=compare)
    return cli.run(parser)


def compare(options: argparse.Namespace) -> None:
    base = resolve_base(None, cache_folder())
    folders = {name: STARTER / name / "versions" / "1" for name in NAMES}
    tasks = {
        name: Manifest.from_bytes((folder / "manifest.json").read_bytes()).task for name, folder in folders.items()
    }
    asked = {name: questions(name, task, base, options.texts) for name, task in tasks.items()}
    found = {dtype: answers(dtype, folders, asked) for dtype in ("float32", options.dtype)}
    print(
        f"| adapter | texts | nats apart: median | p99 | largest | answers equal | largest score apart |\n{'|---' * 7}|"
    )
    for name, task in tasks.items():
        print(row(name, task, *(np.array(found[dtype][name]) for dtype in found)))
    print(f"\ntolerated by probes: {FLOAT32_TOLERANCE} nats in float32, {HALF_TOLERANCE} in half precision")


def questions(name: str, task: Task, base: Base, texts: int) -> list[tuple[str, list[int], int, list[int]]]:
    """Return what is asked: (adapter, prompt, most tokens, tokens to score), as a probe does."""
    ids = probes.choices(task, len(base.tokenizer.vocabulary()))
    rows = load_splits(load_recipe(RECIPES / f"{name}.yaml"), cache_folder()).test[:texts]
    return [(name, list(task.prompt(row.text, base.tokenizer, room=1000).ids), 1, list(ids)) for row in rows]


def answers(dtype: str, folders: dict[str, Path], asked: dict[str, list[Any]]) -> dict[str, list[list[float]]]:
    command = [sys.executable, "-m", "loadtests.bench.engine", "--settings", json.dumps({"dtype": dtype})]
    load = {"load": {name: str(folder) for name, folder in folders.items()}}
    orders = [load, *({"requests": requests, "in_flight": IN_FLIGHT} for requests in asked.values())]
    lines = "".join(json.dumps(order) + "\n" for order in orders)
    done = subprocess.run(command, input=lines, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise HotswapError(f"the engine failed in {dtype}.")
    _, _, *told = map(json.loads, done.stdout.splitlines())
    return {name: each["answers"] for name, each in zip(asked, told, strict=True)}


def row(name: str, task: Task, one: np.ndarray, other: np.ndarray) -> str:
    """Compare log-probabilities, (texts, tokens), of two dtypes."""
    apart = np.abs(one - other)
    cells = [len(one), *(f"{value:.3g}" for value in (np.median(apart), np.quantile(apart, 0.99), apart.max()))]
    cells.append(f"{np.mean(one.argmax(1) == other.argmax(1)):.4f}")
    if isinstance(task, ClassificationTask):
        scores = [np.exp(each / task.temperature) for each in (one, other)]
        shares = [each / each.sum(1, keepdims=True) for each in scores]
        cells.append(f"{np.abs(shares[0] - shares[1]).max():.3g}")
    else:
        cells.append("")
    return f"| {name} | {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
