"""``python -m loadtests.training``: our trainer beside the loop that people write first, on the same rows in turns."""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from adapters import cli
from adapters.base_model import Base, resolve_base
from adapters.errors import HotswapError
from adapters.packages import cache_folder
from trainer.data import Splits, load_splits
from trainer.loading import load_recipe
from trainer.recipe import Recipe

RESULTS = Path(__file__).parent / "results" / "training.json"
RECIPE = Path(__file__).parent.parent / "trainer" / "recipes" / "sentiment.yaml"
DEFAULTS = ("lora.target_modules=null",)
BEFORE = ("lora.target_modules=[q_proj,k_proj,v_proj,o_proj]", "training.precision=float32")
HALF = "ours, last 15 layers"
AGAIN = f"{HALF}, the lower ones computed at every pass"
SIDES = {
    "ours": DEFAULTS,
    HALF: (*DEFAULTS, "last_layers=15"),
    AGAIN: (*DEFAULTS, "last_layers=15"),
    "ours, in float32": (*DEFAULTS, "training.precision=float32"),
    "attention of every layer in float32": BEFORE,
    "peft": DEFAULTS,
}
PAIRS = {
    "tokens a second over a plain PEFT loop": ("ours", "peft"),
    "over what the defaults were before": ("ours", "attention of every layer in float32"),
    "the last 15 layers over all 30": (HALF, "ours"),
    "as the precision is by default, over float32": ("ours", "ours, in float32"),
    "with the lower layers computed once, over each time": (HALF, AGAIN),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.training",
        description="Train the sentiment recipe's LoRA with our trainer and with a plain loop over PEFT, each in a "
        "process of its own, in turns: tokens a second and peak memory. Writes loadtests/results/training.json.",
        epilog="example: python -m loadtests.training --rows 800 --repeats 3",
    )
    parser.add_argument("--rows", type=int, default=400, help="training rows (400)")
    parser.add_argument("--epochs", type=int, default=2, help="passes over them (2)")
    parser.add_argument("--repeats", type=int, default=3, help="of every side (3)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.set_defaults(command=compare)
    return cli.run(parser)


def compare(options: argparse.Namespace) -> None:
    if options.side:
        print(json.dumps(_measured(options.side, options.rows, options.epochs)))
        return
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(options.repeats):
        for side, found in runs.items():
            found.append(_apart(side, options.rows, options.epochs))
            print(f"{side}: {found[-1]}", file=sys.stderr)
    ratios = {
        name: [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(runs[one], runs[other], strict=True)]
        for name, (one, other) in PAIRS.items()
    }
    shown = {
        name: {"median": statistics.median(found), "min": min(found), "max": max(found)}
        for name, found in ratios.items()
    }
    RESULTS.write_text(json.dumps({"rows": options.rows, "runs": runs, "ratios": shown}, indent=1) + "\n")
    print(json.dumps(shown, indent=1))


def _apart(side: str, rows: int, epochs: int) -> dict[str, float]:
    command = [sys.executable, "-m", "loadtests.training", "--side", side, "--rows", str(rows), "--epochs", str(epochs)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HotswapError(f"{side} failed: {done.stderr.strip().splitlines()[-1:]}")
    measured: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return measured


def _measured(side: str, rows: int, epochs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        given = (f"data.train_rows={rows}", "data.validation_rows=16", "data.extra_tests={}", "gate={}")
        plain = ("training.shrink=[]", "training.evaluations=1", f"training.epochs={epochs}", "training.report_to=[]")
        recipe = load_recipe(RECIPE, (*given, *plain, f"output={folder}/run", *SIDES[side]))
        splits, base = load_splits(recipe, cache_folder()), resolve_base()
        tokens, seconds = (_plain_loop if side == "peft" else _ours)(side, recipe, splits, base)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    return {"tokens_per_second": round(tokens / seconds, 1), "seconds": round(seconds, 1), "peak_memory_mib": memory}


def _ours(side: str, recipe: Recipe, splits: Splits, base: Base) -> tuple[float, float]:
    from trainer import frozen_layers
    from trainer.mixture import make_job
    from trainer.train import train

    if side == AGAIN:
        frozen_layers.frozen_below = lambda model: 0
    run = train(make_job(recipe, splits, base))
    assert run is not None
    return run.tokens_per_second * run.seconds, run.seconds


def _plain_loop(side: str, recipe: Recipe, splits: Splits, base: Base) -> tuple[float, float]:
    """Train as PEFT's own examples do: shuffled batches, padded on the right, the model's own loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, get_linear_schedule_with_warmup, set_seed

    from trainer.batches import Encoded
    from trainer.mixture import make_task

    task = make_task(recipe, splits, base)
    rows = Encoded([(row, task) for row in splits.train], base)
    set_seed(recipe.seed)
    started = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    lora = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(model, lora).train()
    batches = DataLoader(
        rows, recipe.training.batch_size, shuffle=True, collate_fn=lambda part: _right(part, base.end_id)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.training.learning_rate)
    steps = len(batches) * int(recipe.training.epochs)
    schedule = get_linear_schedule_with_warmup(optimizer, round(steps * recipe.training.warmup), steps)
    for batch in _passes(batches, int(recipe.training.epochs)):
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.training.max_grad_norm)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return sum(rows.lengths) * recipe.training.epochs, time.monotonic() - started


def _passes(batches: Any, epochs: int) -> Iterator[dict[str, Any]]:
    for _ in range(epochs):
        yield from batches


def _right(part: list[dict[str, list[int]]], pad: int) -> dict[str, Any]:
    import torch

    width = max(len(row["labels"]) for row in part)

    def padded(key: str, filler: int) -> torch.Tensor:
        return torch.tensor([row[key] + [filler] * (width - len(row[key])) for row in part])

    mask = torch.tensor([[1] * len(r["labels"]) + [0] * (width - len(r["labels"])) for r in part])
    return {"input_ids": padded("input_ids", pad), "labels": padded("labels", -100), "attention_mask": mask}


if __name__ == "__main__":
    sys.exit(main())
