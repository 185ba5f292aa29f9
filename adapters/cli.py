"""What the project's commands share: one way to fail, one way to sign, one way to print a table."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from adapters.signing import Signer
from adapters.text import escaped

Command = Callable[[argparse.Namespace], int | None]


def run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Run the chosen command; return 0 (done), 1 (refused, with a reason) or 2 (wrong usage, from argparse)."""
    options = parser.parse_args(arguments)
    command: Command = options.command
    try:
        return command(options) or 0
    except HotswapError as error:
        print(f"{parser.prog}: {escaped(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        print(escaped(f"{parser.prog}: {error.filename or 'a file'}: {error.strerror or error}"), file=sys.stderr)
        return 1


def add_sign_option(parser: argparse.ArgumentParser) -> None:
    """Give a command that adds versions its ``--sign``."""
    default = os.environ.get("HOTSWAP_SIGNING_KEY") or None
    text = "sign it with this private key, a PEM file (default: HOTSWAP_SIGNING_KEY)"
    parser.add_argument("--sign", type=Path, metavar="KEY.pem", default=default, help=text)


def signer_of(options: argparse.Namespace) -> Signer | None:
    """Return who signs. Raises :class:`HotswapError` for a key that cannot be used."""
    return Signer(options.sign) if options.sign else None


def show(rows: Sequence[dict[str, Any]], *, as_json: bool, columns: Sequence[str]) -> None:
    """Print ``rows`` as a table of ``columns``, or whole as JSON."""
    if as_json:
        print(json.dumps(rows, indent=1, default=str))
        return
    cells = [[_cell(row.get(column)) for column in columns] for row in rows]
    table = [[column.upper() for column in columns], *cells]
    widths = [max(len(line[i]) for line in table) for i in range(len(columns))]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list | tuple):
        return escaped(", ".join(map(str, value))) or "-"
    return f"{value:.3f}" if isinstance(value, float) else escaped(str(value))
