"""``jobs``: the worker that does what was asked for at ``/v1/fine_tuning/jobs``; and the queue, as it sees it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters import cli
from adapters.base_model import resolve_base
from adapters.jobs.place import Place
from adapters.packages import cache_folder
from adapters.progress import say
from adapters.seed import DEFAULT_STORE
from trainer.commands.common import add_json_option, add_store_option

if TYPE_CHECKING:
    from adapters.jobs.queue import Queue

COLUMNS = ("job", "status", "adapter", "owner", "created", "model", "why")
SHOWN = 1000
EXAMPLES = """\
examples:
  python -m trainer jobs                  the worker: does one job after the other, niced, until it is stopped
  python -m trainer jobs --once           does what is queued, then ends
  python -m trainer jobs list             the queue, the newest first
  python -m trainer jobs show ftjob-01m…  one job, and what was told of it
"""


def add(commands: Any) -> None:
    text = "do the fine-tuning jobs that clients asked the service for, or list them"
    parser: argparse.ArgumentParser = commands.add_parser(
        "jobs",
        help=text,
        description=f"{text}. Queue and files are where HOTSWAP_JOBS_DATABASE and HOTSWAP_JOBS_FOLDER say, as for the "
        "service.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m trainer jobs [list | show JOB] [--once] [--json] [--store URL]",
    )
    parser.set_defaults(command=jobs, usage_error=parser.error)
    parser.add_argument("words", nargs="*", metavar="list | show JOB", help="default: work")
    parser.add_argument("--once", action="store_true", help="end when nothing is left to do")
    # How the service starts its worker: it ends when the pipe does, whatever became of the service.
    parser.add_argument("--attached", action="store_true", help=argparse.SUPPRESS)
    add_json_option(parser)
    add_store_option(parser)


def jobs(options: argparse.Namespace) -> int | None:
    match options.words:
        case []:
            work(options)
        case ["list"]:
            cli.show(_rows(_queue(options)), as_json=options.json, columns=COLUMNS)
        case ["show", id]:
            show(_queue(options), id, as_json=options.json)
        case ["run", folder]:  # what the worker starts for each job
            from trainer.jobs import chain  # torch and transformers take seconds to import

            return chain.run(Path(folder))
        case _:
            options.usage_error(f"takes list, show JOB or nothing, not: {' '.join(options.words)}")
    return None


def work(options: argparse.Namespace) -> None:
    from trainer.jobs.worker import Worker

    store = _store(options)
    base = resolve_base(os.environ.get("HOTSWAP_BASE_MODEL"))
    worker = Worker(_place(options), store, base)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, lambda *_: worker.stopping.set())
    if options.attached:
        threading.Thread(target=_until_alone, args=(worker.stopping,), daemon=True).start()
    say(f"jobs for {base.name} from {_place(options).database} into {store}")
    worker.run(once=options.once)


def _until_alone(stopping: threading.Event) -> None:
    while sys.stdin.read(1):
        pass
    stopping.set()


def show(queue: Queue, id: str, *, as_json: bool) -> None:
    job = queue.get(id)
    told = queue.events(id, after=None, limit=SHOWN)[0][::-1]
    if as_json:
        print(json.dumps({**job, "events": told}))
        return
    cli.show([_row(job)], as_json=False, columns=COLUMNS)
    for event in told:
        print(f"{_when(event['created_at'])}  {event['level']:5}  {event['message']}")


def _rows(queue: Queue) -> list[dict[str, Any]]:
    return [_row(job) for job in queue.listed(None, after=None, limit=SHOWN)[0]]


def _row(job: dict[str, Any]) -> dict[str, Any]:
    why = (job["error"] or {}).get("message")
    shown = {"job": job["id"], "created": _when(job["created_at"]), "model": job["fine_tuned_model"], "why": why}
    return shown | {key: job[key] for key in ("status", "adapter", "owner")}


def _when(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _store(options: argparse.Namespace) -> str:
    return str(options.store or os.environ.get("HOTSWAP_STORE") or DEFAULT_STORE)


def _place(options: argparse.Namespace) -> Place:
    folder = os.environ.get("HOTSWAP_JOBS_FOLDER")
    database = os.environ.get("HOTSWAP_JOBS_DATABASE") or None
    return Place.of(cache_folder(), _store(options), Path(folder) if folder else None, database)


def _queue(options: argparse.Namespace) -> Queue:
    """Return the queue that there is. Raises :class:`DatabaseAway`."""
    from adapters.jobs.queue import Queue

    database = _place(options).open()
    database.check()
    return Queue(database)
