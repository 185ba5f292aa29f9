"""``python -m loadtests.learning``: what the trainer's defaults make of real data, beside what needs no training."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from adapters import cli
from adapters.errors import HotswapError
from adapters.jsonl import write_rows
from adapters.packages import cache_folder
from trainer.evaluation import Evaluation
from trainer.run_record import RunRecord
from trainer.sources import fetch_rows

RESULTS = Path(__file__).parent / "results" / "learning.json"
TOPICS, OF_A_TOPIC, TESTED_OF_A_TOPIC = ("games", "graphics", "mail", "math"), 50, 50

Content = dict[str, Any]


def sections(folder: Path) -> Content:
    """40 sections of Debian's packages, 3,000 training rows."""
    sizes = {"train_rows": 3000, "validation_rows": 400, "test_rows": 1000}
    return {"task": {"kind": "classification"}, "data": {"source": "debian-sections", **sizes}}


def licences(folder: Path) -> Content:
    """Licence texts and the five largest categories of ScanCode's editors."""
    return {"task": {"kind": "classification"}, "data": {"source": "licence-texts", "test": 0.15}}


def sentiment(folder: Path) -> Content:
    """6,000 movie review snippets, and sentences of product reviews that are only tested on."""
    sizes = {"validation": 0.06, "test": 0.11, "train_rows": 6000, "validation_rows": 400}
    extra = {"amazon": {"source": "vader-amazon"}}
    return {"task": {"kind": "classification"}, "data": {"source": "vader-movies", **sizes, "extra_tests": extra}}


def topics(folder: Path) -> Content:
    """200 rows of four sections, in a file; 200 others to test on."""
    rows: dict[str, list[dict[str, str]]] = {topic: [] for topic in TOPICS}
    for row in fetch_rows("debian-sections", cache_folder()):
        if row["label"] in rows:
            rows[row["label"]].append(row)
    parts = {"rows": slice(0, OF_A_TOPIC), "more": slice(OF_A_TOPIC, OF_A_TOPIC + TESTED_OF_A_TOPIC)}
    for name, part in parts.items():
        write_rows(folder / f"{name}.jsonl", (row for topic in TOPICS for row in rows[topic][part]))
    extra = {"more": {"path": str(folder / "more.jsonl")}}
    return {"task": {"kind": "classification"}, "data": {"path": str(folder / "rows.jsonl"), "extra_tests": extra}}


def one_line_summary(folder: Path) -> Content:
    """2,600 descriptions of Debian's packages and the line that their maintainers wrote."""
    sizes = {"validation": 0.05, "test": 0.05, "train_rows": 2600, "validation_rows": 120, "test_rows": 400}
    return {"task": {"kind": "summarization"}, "data": {"source": "debian-synopses", **sizes}}


SETS: dict[str, Callable[[Path], Content]] = {
    "sections": sections,
    "licences": licences,
    "sentiment": sentiment,
    "topics": topics,
    "one-line-summary": one_line_summary,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.learning",
        description="Train and evaluate recipes without any settings of training on real data, and put what the base, "
        "few-shot prompts and a simple model do on the same rows beside it. Adds to loadtests/results/learning.json.",
        epilog="example: python -m loadtests.learning sections topics --seeds 0 1 2",
    )
    parser.add_argument("sets", nargs="*", metavar="SET", help=f"of {', '.join(SETS)}; default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of split and training (0 1 2)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="to try another default")
    parser.add_argument("--runs", type=Path, metavar="DIR", help="keep the runs there, and go on with what is there")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    parser.set_defaults(command=measure)
    return cli.run(parser)


def measure(options: argparse.Namespace) -> None:
    if unknown := set(options.sets) - set(SETS):
        raise HotswapError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(SETS)}.")
    runs = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    for name in [] if options.table else options.sets or SETS:
        for seed in options.seeds:
            with tempfile.TemporaryDirectory() as made:
                folder = (options.runs or Path(made)) / "-".join([name, str(seed), *options.set])
                runs.append(
                    {"data": name, "seed": seed, "changes": options.set, **_one(name, seed, options.set, folder)}
                )
            print(json.dumps(runs[-1]), file=sys.stderr)
            RESULTS.write_text(json.dumps(runs, indent=1) + "\n")
    print(_table(runs))


def _one(name: str, seed: int, changes: list[str], folder: Path) -> dict[str, Any]:
    """Return the scores, the machine and the seconds of one training and its evaluation, each in a process of its
    own."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": name, "seed": seed, "output": str(folder / "run"), **SETS[name](folder)}
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(content), encoding="utf-8")
    seconds = {}
    for command in ("train", "evaluate"):
        started = time.monotonic()
        given = [part for change in changes for part in ("--set", change)]
        done = subprocess.run(
            [sys.executable, "-m", "trainer", command, str(recipe), *given],
            stdout=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != 0:
            raise HotswapError(f"{command} of {name} failed.")
        seconds[command] = round(time.monotonic() - started)
    found = Evaluation.model_validate_json((folder / "run" / "evaluation.json").read_bytes())
    trained = RunRecord.model_validate_json((folder / "run" / "run.json").read_bytes())
    few_shot = found.baselines and found.baselines.few_shot
    return {"machine": trained.machine, "seconds": seconds, "tests": _scores(found), "few_shot": few_shot}


def _scores(found: Evaluation) -> dict[str, dict[str, dict[str, float]]]:
    """Return test → side → metric → value."""
    wanted = ("accuracy", "macro_f1", "rougeL")
    return {
        test: {
            side: {metric: round(scores.values[metric], 4) for metric in wanted if metric in scores.values}
            for side, scores in (("base", both.base), ("baseline", both.baseline), ("adapter", both.adapter))
            if scores is not None
        }
        for test, both in found.scores.items()
    }


def _table(runs: list[dict[str, Any]]) -> str:
    """Return the means over seeds, and their spread, as Markdown."""
    lines = [
        "| data | metric | zero-shot | simple baseline | adapter | seeds | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(run["data"] for run in runs):
        same = [run for run in runs if run["data"] == name and not run["changes"]]
        for test in dict.fromkeys(test for run in same for test in run["tests"]):
            for metric in same[0]["tests"][test]["adapter"]:
                cells = [_spread(same, test, side, metric) for side in ("base", "baseline", "adapter")]
                took = sorted({run["seconds"]["train"] for run in same})
                seconds = f"{took[0]}–{took[-1]}" if took[1:] else f"{took[0]}"
                lines.append(f"| {name}, {test} | {metric} | {' | '.join(cells)} | {len(same)} | {seconds} |")
    return "\n".join(lines)


def _spread(runs: list[dict[str, Any]], test: str, side: str, metric: str) -> str:
    values = [run["tests"][test][side][metric] for run in runs if side in run["tests"][test]]
    if not values:
        return ""
    return f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


if __name__ == "__main__":
    sys.exit(main())
