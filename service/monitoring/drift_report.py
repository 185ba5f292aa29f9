"""``python -m service drift report``: live texts beside reference texts, on one page that needs nothing else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from service.monitoring.commands import add_command, database_of, when
from service.monitoring.text_drift import Difference, difference
from service.monitoring.texts import READABLE

ALARM = 0.001
STYLE = """:root { color-scheme: light dark } body { font: 16px/1.5 system-ui, sans-serif; max-width: 50rem;
margin: 2rem auto; padding: 0 1rem; overflow-wrap: anywhere } table { border-collapse: collapse; width: 100% }
td, th { text-align: left; padding: .25rem .5rem; border-bottom: 1px solid #8884 } td:last-child { text-align: right }
.verdict { font-size: 1.2rem; border-left: 4px solid; padding-left: 1rem } .new { border-color: #b3261e }
.same { border-color: #1b7f43 }"""


def add(commands: Any) -> None:
    text = "whether live texts are still like those that an adapter was tested on"
    parser = commands.add_parser("drift", help=text, description=text)
    sub = parser.add_subparsers(required=True, metavar="COMMAND")
    text = "compare the texts of a time with reference texts; exits with 3 where they differ beyond chance"
    example = "drift report --adapter sentiment --since 7d --reference rows.jsonl --out drift.html"
    report_parser = add_command(sub, "report", report, text, example)
    report_parser.add_argument("--adapter", required=True, metavar="NAME")
    report_parser.add_argument(
        "--reference", required=True, type=Path, metavar="ROWS.jsonl", help='JSON lines with a "text"'
    )
    report_parser.add_argument("--live", type=Path, metavar="ROWS.jsonl", help="default: what the database keeps")
    report_parser.add_argument("--since", type=when, metavar="WHEN", help="of the database: 2026-11-01, 7d or 12h")
    report_parser.add_argument("--out", type=Path, default=Path("drift.html"), metavar="PAGE.html")


def report(options: argparse.Namespace) -> int:
    """Write the page. Raises :class:`HotswapError` where there is too little to compare."""
    reference = _texts(options.reference)
    live = _texts(options.live) if options.live else _kept(options)
    try:
        found = difference(reference, live)
    except ImportError:
        raise HotswapError("drift report needs scikit-learn: pip install 'hotswap[train]'.") from None
    except ValueError as error:
        raise HotswapError(f"too little to compare: {error}.") from None
    try:
        options.out.write_text(page(options.adapter, found), encoding="utf-8")
    except OSError as error:
        raise HotswapError(f"cannot write {options.out}: {error.strerror}.") from None
    told = {"p_value": found.p_value, "auc": round(found.auc, 4), "live": found.live, "reference": found.reference}
    print(json.dumps({**told, "out": str(options.out)}) if options.json else f"{verdict(found)} {options.out}")
    return 3 if found.p_value <= ALARM else 0


def _texts(path: Path) -> list[str]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [str(row["text"]) for row in rows]
    except OSError as error:
        raise HotswapError(f"cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise HotswapError(f'{path} is not rows: a line each, like {{"text": "…"}}.') from None


def _kept(options: argparse.Namespace) -> list[str]:
    from service.monitoring import records

    rows = records.asked(database_of(options), options.adapter, options.since)
    texts = [text for row in rows if row.form in READABLE for text in row.texts or ()]
    if not texts:
        raise HotswapError(
            f"no texts of '{options.adapter}' are kept; HOTSWAP_FEEDBACK_TEXTS=plain (or redacted) keeps them from now "
            "on, and --live takes a file."
        )
    return texts


def verdict(found: Difference) -> str:
    """Say in a sentence whether the texts differ, and how plainly."""
    if found.p_value > ALARM:
        return f"No difference beyond chance (p = {found.p_value:.3f})."
    return (
        f"The live texts are of another kind (p ≤ {found.p_value:.3f}): of a reference text and a live one, a "
        f"classifier knows which is which {found.auc:.0%} of the time."
    )


def page(name: str, found: Difference) -> str:
    """Return the report as HTML. Texts are quoted: it is for those who may read them."""
    differ = found.p_value <= ALARM
    words = [[word, f"{weight:.1f}"] for word, weight in found.words]
    missing = [[word, f"{weight:.1f}"] for word, weight in found.missing]
    newest = [[text[:400], f"{score:.0%}"] for text, score in found.newest]
    return f"""<!doctype html><html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(name)}: text drift</title>
<style>{STYLE}</style></head><body><h1>{escape(name)}: text drift</h1>
<p class="verdict {"new" if differ else "same"}">{escape(verdict(found))}</p>
<p>{found.live} live texts beside {found.reference} reference texts, each counted once. The test is the maximum mean
discrepancy of TF-IDF vectors with a permutation p-value; 50% is what a classifier reaches where nothing differs.</p>
<h2>Words of live texts</h2>{_table(("word", "weight"), words)}
<h2>Words that are missing in them</h2>{_table(("word", "weight"), missing)}
<h2>Live texts least like the reference</h2>{_table(("text", "surely live"), newest)}</body></html>
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    top = "".join(f"<th>{cell}</th>" for cell in head)
    return f"<table><tr>{top}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
