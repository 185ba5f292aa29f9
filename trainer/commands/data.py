"""``data check`` and ``data from-feedback``: rows, looked at and made."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.base_model import Base, resolve_base
from adapters.errors import HotswapError
from adapters.packages import cache_folder
from trainer.checks import SHOWN, Finding, as_records, check_data
from trainer.commands.common import add_json_option, add_set_option, write_rows
from trainer.config import PAIRED, Data, Recipe, load_recipe
from trainer.data import Columns
from trainer.feedback import read_log, rows_for


def add(commands: Any) -> None:
    text = "look at the data before it is trained on"
    data = commands.add_parser("data", help=text, description=text).add_subparsers(required=True, metavar="COMMAND")
    _add_check(data)
    _add_from_feedback(data)


def _add_check(data: Any) -> None:
    text = "find what is broken, doubtful, repeated, leaking, personal or unbalanced; 1 if it cannot be trained on"
    example = "example: python -m trainer data check tickets.csv --text message --answer topic"
    sub = data.add_parser("check", help=text, description=text, epilog=example)
    sub.set_defaults(command=check)
    sub.add_argument(
        "file", type=Path, metavar="FILE", help="a .jsonl, .json, .csv, .tsv or .parquet file, or a recipe"
    )
    sub.add_argument("--task", choices=("classification", "summarization"), default="classification")
    sub.add_argument("--text", metavar="COLUMN", help="default: text")
    sub.add_argument("--answer", metavar="COLUMN", help="default: label, or summary")
    sub.add_argument("--group", metavar="COLUMN", help="rows that share its value stay in one split")
    sub.add_argument("--base", help="whose tokens are counted; default: HOTSWAP_BASE_MODEL")
    add_set_option(sub, "of a recipe")
    add_json_option(sub)


def _add_from_feedback(data: Any) -> None:
    text = "make rows to train on from what users said of an adapter's answers"
    example = "example: python -m trainer data from-feedback log.jsonl --adapter topics --out rows.jsonl"
    sub = data.add_parser("from-feedback", help=text, description=text, epilog=example)
    sub.set_defaults(command=from_feedback)
    sub.add_argument("log", type=Path, nargs="+", metavar="LOG", help="what HOTSWAP_FEEDBACK_LOG wrote")
    sub.add_argument("--adapter", required=True, metavar="NAME")
    sub.add_argument("--objective", choices=("supervised", "dpo", "kto", "reward"), default="supervised")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")


def check(options: argparse.Namespace) -> int:
    findings = _findings(options)
    if options.json:
        print(json.dumps(as_records(findings), indent=1))
    else:
        for finding in findings:
            more = " …" if len(finding.rows) == SHOWN else ""
            where = f" (rows {', '.join(map(str, finding.rows))}{more})" if finding.rows else ""
            print(f"{finding.level:8} {finding.check}: {finding.message}{where}")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _findings(options: argparse.Namespace) -> list[Finding]:
    """Return what is to be said about a recipe's data, or a file's as the options describe it."""
    named = options.base or os.environ.get("HOTSWAP_BASE_MODEL")
    if options.file.suffix.lower() in (".yaml", ".yml"):
        recipe = load_recipe(options.file, tuple(options.set))
        return findings_of(recipe, resolve_base(options.base or recipe.base or named))
    if options.set:
        raise HotswapError("--set changes a recipe's keys; a file's columns are named by --text, --answer and --group.")
    columns = {"text": options.text, "answer": options.answer, "group": options.group}
    data = Data(path=options.file, **{key: column for key, column in columns.items() if column})
    limit = 512 if options.task == "classification" else 1024
    return _checked(data, Columns(options.task), 0, limit, resolve_base(named))


def findings_of(recipe: Recipe, base: Base) -> list[Finding]:
    """Return what is to be said about the recipe's data, and that of each task of its ``mix``."""
    columns = Columns(recipe.task.kind, recipe.objective)
    found = _checked(recipe.data, columns, recipe.seed, recipe.task.max_input_tokens, base)
    for name in recipe.mix:
        of_part = findings_of(recipe.part(name), base)
        found += [replace(finding, message=f"mix.{name}: {finding.message}") for finding in of_part]
    return found


def _checked(data: Data, columns: Columns, seed: int, limit: int, base: Base) -> list[Finding]:
    def count(text: str) -> int:
        return len(base.tokenizer.encode(text))

    return check_data(data, columns, cache_folder(), seed=seed, max_input_tokens=limit, count_tokens=count)


def from_feedback(options: argparse.Namespace) -> None:
    records = read_log(options.log, options.adapter)
    rows = list(rows_for(options.objective, records))
    if not rows:
        wanted = "a better summary or the right label" if options.objective in PAIRED else "a right answer"
        raise HotswapError(f"of {len(records)} answers none came with {wanted}; objective kto takes thumbs alone.")
    write_rows(options.out, rows)
    print(f"{len(rows)} rows for objective {options.objective} in {options.out}")
