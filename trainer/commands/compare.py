"""``compare``: two versions judged by people who do not know which is which."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from adapters.packages import cache_folder
from trainer.commands.common import add_json_option, add_set_option, add_store_option, manifest_of, store_at, write_rows
from trainer.config import load_recipe
from trainer.data import Row
from trainer.runs import Run


def add(commands: Any) -> None:
    text = "write a page on which people judge two versions blindly, and read their votes back"
    example = "example: python -m trainer compare news@1 news@2 --on news.yaml, then with --votes votes.json"
    sub = commands.add_parser("compare", help=text, description=text, epilog=example)
    sub.set_defaults(command=compare)
    sub.add_argument("a", metavar="A", help="NAME@VERSION")
    sub.add_argument("b", metavar="B", help="NAME@VERSION")
    sub.add_argument("--on", type=Path, metavar="RECIPE.yaml", help="whose test rows are answered")
    sub.add_argument("--rows", type=int, default=50, help="at most so many (50)")
    add_set_option(sub, "of the recipe")
    add_store_option(sub)
    sub.add_argument("--folder", type=Path, help="for page and key; default: runs/compare/A-vs-B")
    sub.add_argument("--votes", type=Path, nargs="+", metavar="votes.json", help="what the page saved, of each voter")
    sub.add_argument("--pairs", type=Path, metavar="FILE.jsonl", help="write what won as rows for objective dpo")
    add_json_option(sub)


def compare(options: argparse.Namespace) -> None:
    folder = options.folder or Path("runs/compare") / re.sub(r"[^\w.@-]+", "_", f"{options.a}-vs-{options.b}")
    if options.votes:
        _count(folder, options)
    else:
        _ask(folder, options)


def _ask(folder: Path, options: argparse.Namespace) -> None:
    if options.rows < 1:
        raise HotswapError("--rows needs a number from 1 on.")
    if options.on is None:
        raise HotswapError("--on RECIPE.yaml says whose test rows are answered; --votes reads what was judged.")
    from trainer import comparison  # scipy takes a second to import

    rows, ones, others = _answers_of_both(options)
    found = comparison.items(rows, ones, others)
    page = comparison.write(folder, options.a, options.b, found, len(rows))
    print(f"{len(found)} of {len(rows)} answers differ; open {page}, and keep {comparison.KEY} from the voters")


def _count(folder: Path, options: argparse.Namespace) -> None:
    from trainer import comparison

    key = comparison.read_key(folder)
    ballots = comparison.read_votes(options.votes, key)
    result = comparison.verdict(key, ballots)
    if options.pairs:
        write_rows(options.pairs, comparison.pairs(key, ballots))
    if options.json:
        print(json.dumps({"compared": [key["a"], key["b"]], **asdict(result)}))
        return
    print(
        f"{key['a']} won {result.a}, {key['b']} won {result.b}, ties {result.ties}; {result.voters} voters\n"
        f"{key['a']} wins {result.rate:.1%} (ties are halves); where one won, 95 % interval {result.low:.1%} to "
        f"{result.high:.1%}, sign test p = {result.p_value:.2g}"
    )
    if result.agreement is not None:
        print(f"two voters agreed on {result.agreement:.1%} of what both judged")


def _answers_of_both(options: argparse.Namespace) -> tuple[list[Row], list[str], list[str]]:
    """Return the first test rows and what each side says to them."""
    run, store = Run(load_recipe(options.on, tuple(options.set))), store_at(options.store)
    rows, base = run.splits.tests["test"][: options.rows], run.base
    from trainer.evaluate import answers

    manifests = {side: manifest_of(store, side) for side in (options.a, options.b)}
    for side, manifest in manifests.items():
        if manifest.base.digest != base.digest:
            raise HotswapError(f"{side} is for another base than {base.name}; set HOTSWAP_BASE_MODEL to it.")

    def said(side: str) -> list[str]:
        manifest = manifests[side]
        folder = store.fetch(manifest.name, manifest.version, cache_folder())
        return answers(folder, rows, manifest.task, base, side)

    return rows, said(options.a), said(options.b)
