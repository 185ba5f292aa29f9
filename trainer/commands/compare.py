"""``compare``: two versions judged by people who do not know which is which."""

from __future__ import annotations

import argparse
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from adapters.jsonl import write_rows
from adapters.manifest import Manifest
from adapters.packages import cache_folder
from trainer.codec import Codec
from trainer.commands.common import add_json_option, add_set_option, add_store_option, manifest_of, store_at
from trainer.loading import load_recipe
from trainer.rows import Row
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
    page = comparison.write(folder, options.a, options.b, found, len(rows)) if found else None
    if options.json:
        files = {"page": str(page), "key": str(folder / comparison.KEY)} if page else {"page": None, "key": None}
        print(json.dumps({**files, "differ": len(found), "asked": len(rows)}))
    elif page:
        print(f"{len(found)} of {len(rows)} answers differ; open {page}, and keep {comparison.KEY} from the voters")
    else:
        print(f"none of {len(rows)} answers differ: there is nothing to judge, and no page was written")


def _count(folder: Path, options: argparse.Namespace) -> None:
    from trainer import comparison

    key = comparison.read_key(folder)
    if (options.a, options.b) != (key.a, key.b):
        judged = f"{folder / comparison.KEY} is of {key.a} and {key.b}"
        raise HotswapError(f"{judged}, not of {options.a} and {options.b}; give the --folder of their page.")
    ballots = comparison.read_votes(options.votes, key)
    result = comparison.verdict(key, ballots)
    if options.pairs:
        write_rows(options.pairs, comparison.pairs(key, ballots))
    if options.json:
        print(json.dumps({"compared": [key.a, key.b], **asdict(result)}))
        return
    decided = result.a + result.b
    print(
        f"{key.a} won {result.a}, {key.b} won {result.b}, ties {result.ties}; "
        f"{result.voters} voter{'s' * (result.voters > 1)}\n"
        f"{key.a} wins {result.rate:.1%}, a tie being half a win"
    )
    if decided:
        print(
            f"of the {decided} that one side won, its share is {result.a / decided:.1%} "
            f"(95 % interval {result.low:.1%} to {result.high:.1%}; sign test p = {result.p_value:.2g})"
        )
    if result.agreement is not None:
        print(f"two voters agreed on {result.agreement:.1%} of what both judged")


def _answers_of_both(options: argparse.Namespace) -> tuple[list[Row], list[str], list[str]]:
    """Return the first test rows and what each side says to them."""
    run, store = Run(load_recipe(options.on, tuple(options.set))), store_at(options.store)
    a, b = manifest_of(store, options.a), manifest_of(store, options.b)
    _check_comparable(a, b)
    for side, manifest in ((options.a, a), (options.b, b)):
        if manifest.base.digest != run.base.digest:
            raise HotswapError(f"{side} is for another base than {run.base.name}; set HOTSWAP_BASE_MODEL to it.")
    rows = run.splits.tests["test"][: options.rows]
    from trainer.prediction import answers

    def said(manifest: Manifest, side: str) -> list[str]:
        folder = store.fetch(manifest.name, manifest.version, cache_folder())
        return answers(folder, rows, Codec(manifest.task, run.base), side)

    return rows, said(a, options.a), said(b, options.b)


def _check_comparable(a: Manifest, b: Manifest) -> None:
    """Raise :class:`HotswapError` where the answers of two versions cannot be held against each other."""
    sides = f"{a.name}@{a.version} and {b.name}@{b.version}"
    if a.task.kind != b.task.kind:
        raise HotswapError(f"{sides} do {a.task.kind} and {b.task.kind}; compare versions of one task.")
    if only := {*a.task.answers} ^ {*b.task.answers}:
        raise HotswapError(f"{sides} do not share '{min(only)}' as a label; compare versions with the same labels.")
