"""``python -m service feedback …``: what the feedback database holds, as rows, as numbers, or no more."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters import cli
from adapters.errors import HotswapError
from adapters.feedback import Record, latest, rows_for
from adapters.jsonl import write_rows
from adapters.seed import DEFAULT_STORE
from service.monitoring.texts import READABLE
from service.settings import Settings

if TYPE_CHECKING:
    from service.monitoring.database import Database

AGO = re.compile(r"(\d{1,6})([dh])")


def add(commands: Any) -> None:
    text = "what users said of answers: export it to train on, erase a caller's, count it"
    example = "example: python -m service feedback export --adapter support --objective kto --out thumbs.jsonl"
    parser = commands.add_parser("feedback", help=text, description=text, epilog=example)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_export(commands)
    _add_erase(commands)
    _add_stats(commands)


def _add_export(commands: Any) -> None:
    text = "write what was judged: as rows for an objective, or as `python -m trainer data from-feedback` reads it"
    sub = add_command(
        commands,
        "export",
        export,
        text,
        "feedback export --adapter support --objective kto --since 7d --out thumbs.jsonl",
    )
    sub.add_argument("--adapter", required=True, metavar="NAME")
    sub.add_argument("--since", type=when, metavar="WHEN", help="judged since then: 2026-11-01, or 7d, or 12h")
    objectives = ("supervised", "kto", "dpo", "reward")
    sub.add_argument("--objective", choices=objectives, help="what the rows are for; default: for from-feedback")
    sub.add_argument("--out", type=Path, metavar="FILE.jsonl", help="default: standard output")


def _add_erase(commands: Any) -> None:
    text = "delete what a caller asked, what was said of it, and what the caller said of others' answers"
    sub = add_command(commands, "erase", erase, text, "feedback erase --caller user-17")
    sub.add_argument("--caller", required=True, metavar="NAME", help="a key's name, or what requests sent as `caller`")


def _add_stats(commands: Any) -> None:
    text = "count predictions and judgements of each version"
    add_command(commands, "stats", stats, text, "feedback stats")


def add_command(commands: Any, name: str, run: cli.Command, text: str, example: str) -> Any:
    """Declare a command that reads the database."""
    epilog = f"example: python -m service {example}"
    sub = commands.add_parser(name, help=text, description=text, epilog=epilog)
    sub.add_argument("--database", metavar="PLACE", help="a path or URL; default: as the service's settings say")
    sub.add_argument("--json", action="store_true", help="print the result as JSON")
    sub.set_defaults(command=run)
    return sub


def export(options: argparse.Namespace) -> None:
    """Write the rows of one adapter. Raises :class:`HotswapError` where there are none, with why."""
    unread: list[str] = []
    said = latest(_said(database_of(options), options.adapter, options.since, unread))
    rows = list(rows_for(options.objective, said)) if options.objective else said
    if not rows:
        raise HotswapError(_nothing(options, said, unread))
    if options.out:
        write_rows(options.out, rows)
    else:
        sys.stdout.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    result = {"rows": len(rows), "without_text": len(unread), "out": str(options.out) if options.out else None}
    left = f", {len(unread)} answers left out whose text was not kept" if unread else ""
    told = json.dumps(result) if options.json else f"{len(rows)} rows in {options.out or 'all'}{left}"
    print(told, file=sys.stdout if options.out else sys.stderr)


def erase(options: argparse.Namespace) -> None:
    from service.monitoring import records

    database, gone, unsaid = database_of(options), 0, 0
    while True:  # a little at a time: the service goes on writing
        with database.writing() as connection:
            asked, said = records.erase(connection, options.caller)
        gone, unsaid = gone + asked, unsaid + said
        if not asked:
            break
    database.scrub()
    result = {"caller": options.caller, "predictions": gone, "judgements": unsaid}
    print(json.dumps(result) if options.json else f"erased {gone} predictions and {unsaid} judgements")


def stats(options: argparse.Namespace) -> None:
    from service.monitoring import records

    database = database_of(options)
    rows = records.stats(database)
    columns = ("adapter", "version", "predictions", "judged", "right", "first", "last")
    cli.show(rows, as_json=options.json, columns=columns)
    if not options.json:
        print(f"in {database.place}", file=sys.stderr)


def database_of(options: argparse.Namespace) -> Database:
    """Return the database, which is there and of this version. Raises :class:`HotswapError`."""
    from service.monitoring.database import Database, default_place  # half a second, and only who asks pays it

    settings = Settings.read()
    place = options.database or settings.feedback_database
    if place == "off":
        raise HotswapError("HOTSWAP_FEEDBACK_DATABASE is off: nothing is kept; name a database by --database.")
    database = Database(place or default_place(settings.cache, settings.store or str(DEFAULT_STORE)))
    database.check()
    return database


def _said(database: Database, adapter: str, since: datetime | None, unread: list[str]) -> Iterator[Record]:
    """Yield what was said; put the ids of answers whose text cannot be read into ``unread``."""
    from service.monitoring import records

    for row in records.judged(database, adapter, since):
        if row.form not in READABLE or not row.texts:
            unread.append(row.id)
            continue
        yield {
            "at": row.said.replace(tzinfo=UTC).isoformat(timespec="seconds"),
            "id": row.id,
            "adapter": row.adapter,
            "version": row.version,
            "task": row.task,
            "text": row.texts[row.item],
            "answer": row.answers[row.item],
            "good": row.right,
            "better": row.better,
        }


def _nothing(options: argparse.Namespace, said: list[Record], unread: list[str]) -> str:
    if said:
        wanted = "a right answer" if options.objective == "supervised" else "a better one"
        return f"of {len(said)} judged answers none came with {wanted}; objective kto takes thumbs alone."
    if unread:
        return (
            f"{len(unread)} answers of '{options.adapter}' were judged, and their texts not kept; "
            "HOTSWAP_FEEDBACK_TEXTS=plain (or redacted) keeps them from now on."
        )
    return f"nothing was said of '{options.adapter}'; is it the adapter's name? 'feedback stats' lists them."


def when(text: str) -> datetime:
    """Return a time that a user wrote, as a date or as so long ago."""
    now = datetime.now(UTC)
    try:
        if ago := AGO.fullmatch(text):
            return now - timedelta(**{"d": {"days": int(ago[1])}, "h": {"hours": int(ago[1])}}[ago[2]])
        when = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(f"'{text}' is no time such as 2026-11-01, 7d or 12h") from None
    return when if when.tzinfo else when.replace(tzinfo=UTC)
