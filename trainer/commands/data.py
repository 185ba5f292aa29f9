"""``data check``, ``data convert`` and ``data from-feedback``: rows, looked at and made."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from adapters.base_model import Base, resolve_base
from adapters.errors import HotswapError
from adapters.feedback import rows_for
from adapters.jsonl import write_rows
from adapters.packages import cache_folder
from adapters.progress import say
from adapters.tasks import KINDS
from adapters.validation import explained
from trainer.checks import SHOWN, Finding, as_records, check_data
from trainer.commands.common import add_json_option, add_set_option
from trainer.data import load_splits
from trainer.feedback import read_log
from trainer.files import READ
from trainer.loading import load_recipe
from trainer.mixture import make_task
from trainer.recipe import PAIRED, Recipe
from trainer.rows import Columns, converted


def add(commands: Any) -> None:
    text = "look at the data before it is trained on"
    example = "example: python -m trainer data check tickets.csv --text message --answer topic"
    data = commands.add_parser("data", help=text, description=text, epilog=example)
    data = data.add_subparsers(required=True, metavar="COMMAND")
    _add_check(data)
    _add_convert(data)
    _add_from_feedback(data)


def _add_check(data: Any) -> None:
    text = "find what is broken, doubtful, repeated, leaking, personal or unbalanced; 1 if it cannot be trained on"
    example = "example: python -m trainer data check tickets.csv --text message --answer topic"
    sub = data.add_parser("check", help=text, description=text, epilog=example)
    sub.set_defaults(command=check)
    sub.add_argument("file", type=Path, metavar="FILE", help=f"a recipe, or a file: {READ}")
    _add_file_options(sub)
    sub.add_argument("--group", metavar="COLUMN", help="rows that share its value stay in one split")
    sub.add_argument("--base", help="whose tokens are counted; default: HOTSWAP_BASE_MODEL")
    add_set_option(sub, "of a recipe")
    add_json_option(sub)


def _add_file_options(sub: Any) -> None:
    sub.add_argument("--task", choices=tuple(KINDS), help="of a file: classification")
    sub.add_argument("--text", metavar="COLUMN", help="default: text")
    sub.add_argument("--answer", metavar="COLUMN", help="default: label, or summary")
    sub.add_argument("--separator", metavar="CHARACTER", help="of a .csv and the like; default: found out")
    sub.add_argument("--quoting", choices=("quoted", "backslash", "escaped", "none"), help="the same")
    sub.add_argument("--encoding", metavar="NAME", help="of a text file: utf-16, cp1252 …; default: UTF-8")


def _add_convert(data: Any) -> None:
    text = "make rows with one text and one answer of chats, of labelling tools' exports and of tables"
    example = "example: python -m trainer data convert chats.jsonl --task summarization --out rows.jsonl"
    sub = data.add_parser("convert", help=text, description=text, epilog=example)
    sub.set_defaults(command=convert)
    sub.add_argument("file", type=Path, metavar="FILE", help=READ)
    _add_file_options(sub)
    sub.add_argument("--keep-system", action="store_true", help="put what the system says in front of the text")
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")


def _add_from_feedback(data: Any) -> None:
    text = "make rows to train on from what users said of an adapter's answers"
    example = "example: python -m trainer data from-feedback log.jsonl --adapter topics --out rows.jsonl"
    sub = data.add_parser("from-feedback", help=text, description=text, epilog=example)
    sub.set_defaults(command=from_feedback)
    sub.add_argument("log", type=Path, nargs="+", metavar="LOG", help="from HOTSWAP_FEEDBACK_LOG or a feedback export")
    sub.add_argument("--adapter", required=True, metavar="NAME")
    objectives = ("supervised", "dpo", "kto", "reward")
    text = "what the rows are for; default: supervised"
    sub.add_argument("--objective", choices=objectives, default="supervised", help=text)
    sub.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl")


def check(options: argparse.Namespace) -> int:
    findings = _findings(options)
    if options.json:
        print(json.dumps(as_records(findings), indent=1))
    else:
        for finding in findings:
            more = " …" if len(finding.rows) == SHOWN else ""
            named = finding.rows and finding.check != "cells"  # whose messages begin with the row
            where = f" (rows {', '.join(map(str, finding.rows))}{more})" if named else ""
            print(f"{finding.level:8} {finding.check}: {finding.message}{where}")
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _findings(options: argparse.Namespace) -> list[Finding]:
    """Return what is to be said about a recipe's data, or a file's as the options describe it."""
    recipe = _recipe(options)
    base = resolve_base(options.base or recipe.base or os.environ.get("HOTSWAP_BASE_MODEL"))
    found = findings_of(recipe, base)
    if all(finding.level != "error" for finding in found):
        try:  # what would keep training from it all the same
            make_task(recipe, load_splits(recipe, cache_folder()), base)
        except HotswapError as error:
            found.insert(0, Finding("error", "splits", str(error)))
    return found


def _recipe(options: argparse.Namespace) -> Recipe:
    told = _told(options, "group")
    if options.file.suffix.lower() in (".yaml", ".yml"):
        if told or options.task:
            raise HotswapError("a recipe names its task and columns itself; change them by --set data.text=COLUMN.")
        return load_recipe(options.file, tuple(options.set))
    if options.set:
        raise HotswapError("--set changes a recipe's keys; a file's columns are named by --text, --answer and --group.")
    return _recipe_of_file(options, told)


def _told(options: argparse.Namespace, *more: str) -> dict[str, Any]:
    keys = ("text", "answer", "separator", "quoting", "encoding", *more)
    return {key: value for key in keys if (value := getattr(options, key))}


def _recipe_of_file(options: argparse.Namespace, told: dict[str, Any]) -> Recipe:
    task = {"kind": options.task or "classification"}
    with explained(Recipe, str(options.file)):
        return Recipe.model_validate({"name": "file", "task": task, "data": {"path": options.file, **told}})


def convert(options: argparse.Namespace) -> None:
    """Write what can be converted, and say of the rest why not."""
    if options.out.exists() and options.file.exists() and options.out.samefile(options.file):
        raise HotswapError(f"--out {options.out} is the file that is read; give the rows another one.")
    recipe = _recipe_of_file(options, _told(options))
    made = converted(recipe.data, Columns(recipe.task.kind), cache_folder(), options.keep_system)
    if not made.rows:
        why = f": {made.problems[0]}" if made.problems else "; annotators set all of it aside"
        raise HotswapError(f"{options.file} has nothing that can be converted{why}")
    write_rows(options.out, made.rows)
    for note in made.notes:
        say(note)
    for problem in made.problems[:SHOWN]:
        say(f"not converted: {problem}")
    if len(made.problems) > SHOWN:
        say(f"not converted: {len(made.problems) - SHOWN} more rows")
    left = f", {made.left_out} left out that annotators set aside" if made.left_out else ""
    print(f"{len(made.rows)} rows in {options.out}, {len(made.problems)} not converted{left}")


def findings_of(recipe: Recipe, base: Base) -> list[Finding]:
    """Return what is to be said about the recipe's data, and that of each task of its ``mix``."""
    found = check_data(recipe, cache_folder(), lambda text: len(base.tokenizer.encode(text)))
    for name in recipe.mix:
        of_part = findings_of(recipe.part(name), base)
        found += [replace(finding, message=f"mix.{name}: {finding.message}") for finding in of_part]
    return found


def from_feedback(options: argparse.Namespace) -> None:
    records = read_log(options.log, options.adapter)
    if options.out.exists() and any(options.out.samefile(log) for log in options.log):
        raise HotswapError(f"--out {options.out} is a log that was read; give the rows another file.")
    rows = list(rows_for(options.objective, records))
    if not rows:
        wanted = "a better summary or the right label" if options.objective in PAIRED else "a right answer"
        raise HotswapError(f"of {len(records)} answers none came with {wanted}; objective kto takes thumbs alone.")
    write_rows(options.out, rows)
    print(f"{len(rows)} rows for objective {options.objective} in {options.out}")
