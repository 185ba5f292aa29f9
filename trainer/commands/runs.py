"""``runs``: the runs there are, stopped and taken up again by name."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from adapters import cli
from adapters.errors import HotswapError
from trainer.commands.common import add_json_option, add_store_option
from trainer.commands.train import complete
from trainer.listing import runs_in
from trainer.loading import load_recipe
from trainer.resumption import RECIPE, kept
from trainer.runs import STOP, identity_of, is_taken

COLUMNS = ("run", "state", "when", "steps", "validation", "test", "baseline", "seconds")
EXAMPLES = """\
examples:
  python -m trainer runs                  the runs in runs/; runs FOLDER: those in another folder
  python -m trainer runs stop support     after its next step, with a checkpoint
  python -m trainer runs resume support   from its last checkpoint, with the recipe it was begun with
"""


def add(commands: Any) -> None:
    text = "list the runs, stop one, or let it go on"
    parser: argparse.ArgumentParser = commands.add_parser(
        "runs",
        help=text,
        description=text,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m trainer runs [FOLDER | stop NAME | resume NAME] [--json] [--store URL]",
    )
    parser.set_defaults(command=runs, usage_error=parser.error)
    text = "nothing, or a folder of runs; stop or resume, and a run in runs/ or its folder"
    parser.add_argument("words", nargs="*", metavar="FOLDER | stop NAME | resume NAME", help=text)
    add_json_option(parser)
    add_store_option(parser)


def runs(options: argparse.Namespace) -> None:
    match options.words:
        case ["stop", name]:
            stop(_folder(name), as_json=options.json)
        case ["resume", name]:
            resume(_folder(name), options)
        case ["stop" | "resume" as what]:
            options.usage_error(f"{what} takes the name of a run")
        case []:
            show(Path("runs"), as_json=options.json)
        case [folder]:
            show(Path(folder), as_json=options.json)
        case _:
            options.usage_error(f"takes a folder, stop NAME or resume NAME, not: {' '.join(options.words)}")


def show(folder: Path, *, as_json: bool) -> None:
    found = runs_in(folder)
    rows = found if as_json else [row | {"steps": _steps(row), "seconds": _whole(row.get("seconds"))} for row in found]
    cli.show(rows, as_json=as_json, columns=COLUMNS)
    for row in found:
        if not as_json and "problem" in row:
            print(f"{row['run']}: {row['problem']}")


def _steps(row: dict[str, Any]) -> str | None:
    return f"{row['steps']}/{row['of']}" if "of" in row else row.get("steps")


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _folder(name: str) -> Path:
    """Return the run's folder: in runs/, or where the name is a path."""
    inside = Path("runs") / name
    folder = inside if identity_of(inside) is not None or not Path(name).is_dir() else Path(name)
    if identity_of(folder) is None:
        raise HotswapError(f"{folder} is not a run of this trainer; python -m trainer runs lists them.")
    return folder


def stop(folder: Path, *, as_json: bool) -> None:
    if not is_taken(folder):
        raise HotswapError(f"no training is at work in {folder}.")
    lost = (folder / RECIPE).is_file() and load_recipe(folder / RECIPE).method == "adalora"
    (folder / STOP).touch()
    after = "its work is lost: adalora cannot go on" if lost else f"python -m trainer runs resume {folder} goes on"
    if as_json:
        print(json.dumps({"run": str(folder), "asked": "stop", "resumable": not lost}))
    else:
        print(f"asked: {folder} stops after its next step; {after}")


def resume(folder: Path, options: argparse.Namespace) -> None:
    asked = {"recipe": folder / RECIPE, "set": [], "store": options.store, "json": options.json}
    if os.environ.get("RANK", "0") == "0" and is_taken(folder):
        raise HotswapError(f"another training is at work in {folder}.")
    complete(kept(folder), argparse.Namespace(**asked))
