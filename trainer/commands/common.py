"""What the commands share: how they find recipe and store, and how they speak."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from adapters.cli import Command
from adapters.errors import HotswapError
from adapters.manifest import Manifest
from adapters.progress import json_lines
from adapters.reference import Reference
from adapters.seed import open_store
from adapters.store import Store
from trainer.loading import load_recipe
from trainer.recipe import VERSION_PATTERN, Recipe


def add_recipe_command(commands: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    """Declare a command that takes a recipe, and changes to it."""
    example = f"example: python -m trainer {name} trainer/recipes/sentiment.yaml"
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, epilog=example)
    parser.set_defaults(command=run)
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    add_set_option(parser, "e.g. training.epochs=2")
    add_json_option(parser)
    return parser


def add_set_option(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """Give a command, which is declared with what it runs, its ``--json``."""
    parser.add_argument("--json", action="store_true", help="print JSON; progress too, as lines of JSON on stderr")
    run: Command = parser.get_default("command")

    def command(options: argparse.Namespace) -> int | None:
        with json_lines(options.json):
            return run(options)

    parser.set_defaults(command=command)


def add_store_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--store", metavar="URL", help="default: HOTSWAP_STORE, var/store")


def percent(text: str) -> int:
    """Return a share of the callers that a user wrote."""
    if not text.isdecimal() or not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError(f"'{text}' is no percentage from 1 to 100")
    return int(text)


def recipe_of(options: argparse.Namespace) -> Recipe:
    return load_recipe(options.recipe, tuple(options.set))


def store_at(place: str | None = None) -> Store:
    return open_store(place or os.environ.get("HOTSWAP_STORE"))


def manifest_of(store: Store, reference: str) -> Manifest:
    """Return the manifest of ``NAME@VERSION``. Raises :class:`HotswapError` where it is none, or not in the store."""
    if not re.fullmatch(VERSION_PATTERN, reference):
        raise HotswapError(f"'{reference}' is no version; write NAME@VERSION, for example sentiment@2.")
    wanted = Reference.parse(reference)
    return store.manifest(wanted.name, wanted.version or 0)[0]


def next_command(command: str, options: argparse.Namespace) -> str:
    settings = [part for override in options.set for part in ("--set", override)]
    settings += ["--store", options.store] if getattr(options, "store", None) else []
    python = Path(sys.executable)
    here = python.relative_to(Path.cwd()) if python.is_relative_to(Path.cwd()) else "python"
    return f"next: {here} -m trainer {shlex.join([command, str(options.recipe), *settings])}"
