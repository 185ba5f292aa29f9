"""``retrain``: the released version once more, with what people have said of its answers, as a guarded canary."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import yaml

from adapters import cli
from adapters.errors import HotswapError
from adapters.manifest import Manifest
from adapters.progress import say
from trainer.commands.common import add_json_option, add_set_option, add_store_option, percent, store_at
from trainer.commands.publish import publish_run
from trainer.commands.train import complete
from trainer.loading import load_recipe
from trainer.runs import Run

FEEDBACK = "feedback"
EXPORT_SECONDS, ALERTS_SECONDS = 600, 10


def add(commands: Any) -> None:
    text = "train the released version anew with judged answers, and publish what passes the gate as a guarded canary"
    parser = commands.add_parser(
        "retrain",
        help=text,
        description=text + ". Recipe and rows are those that the version was made with.",
        epilog="example: python -m trainer retrain sentiment --least 200",
    )
    parser.set_defaults(command=retrain)
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--feedback", type=Path, metavar="FILE", help="rows to learn from; default: what the service's database has"
    )
    parser.add_argument("--least", type=int, default=100, help="judged answers since the version was made (100)")
    parser.add_argument("--percent", dest="canary", type=percent, default=5, help="of the callers, to begin with (5)")
    parser.add_argument("--watch", type=float, metavar="SECONDS", help="look again and again, so far apart")
    parser.add_argument("--alerts", metavar="URL", help="an Alertmanager: an alert of the adapter is reason enough")
    add_set_option(parser, "change the recipe, e.g. data.path=rows.csv where the rows lie elsewhere now")
    add_store_option(parser)
    cli.add_sign_option(parser)
    add_json_option(parser)


def retrain(options: argparse.Namespace) -> None:
    if options.watch is None:
        _once(options)
        return
    while True:
        try:
            _once(options)
        except HotswapError as error:  # a gate that holds, a store that is away: another time may be better
            say(f"{options.name}: {error}")
        time.sleep(options.watch)


def _once(options: argparse.Namespace) -> None:
    """Retrain if there is reason to; else say that there is none."""
    store = store_at(options.store)
    release = store.released(options.name)
    if release is None:
        raise HotswapError(f"{options.name} is not released; train and publish a first version.")
    if release.canary:
        say(f"{options.name}: version {release.canary.version} is being tried out; nothing is trained meanwhile")
        return
    manifest = store.manifest(options.name, release.stable)[0]
    folder = Path("runs") / f"{options.name}-retrained"
    folder.mkdir(parents=True, exist_ok=True)
    rows = options.feedback or _exported(options.name, folder / "feedback.jsonl")
    since = _count(rows) if options.feedback else _count(_exported(options.name, folder / "new.jsonl", manifest))
    alerted = options.alerts is not None and since > 0 and _alerted(options.alerts, options.name)
    if since < options.least and not alerted:
        say(f"{options.name}: {since} judged answers since version {manifest.version}, {options.least} are waited for")
        return
    say(f"{options.name}: {since} judged answers since version {manifest.version}{', and an alert' if alerted else ''}")
    _train_and_publish(folder, manifest, rows, since, options)


def _train_and_publish(folder: Path, manifest: Manifest, rows: Path, count: int, options: argparse.Namespace) -> None:
    recipe = folder / "retrain.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(manifest, rows, folder / "run"), sort_keys=False), encoding="utf-8")
    run = Run(load_recipe(recipe, tuple(options.set)))
    told = f"retrained from version {manifest.version} with {count} judged answers"
    asked = vars(options) | {"recipe": recipe, "why": told, "no_release": False, "end_canary": False, "no_report": True}
    complete(run, argparse.Namespace(**asked | {"json": False}))
    publish_run(run, argparse.Namespace(**asked))


def _recipe(manifest: Manifest, rows: Path, output: Path) -> dict[str, Any]:
    """Return the recipe that the version was made with, and the judged answers as further rows."""
    recipe = manifest.lineage.get("recipe")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("data"), dict):
        raise HotswapError(
            f"{manifest.name}@{manifest.version} does not say its recipe: it was not published by the trainer. Write "
            f"one, with data.extra_train: {{{FEEDBACK}: {{path: {rows}}}}}."
        )
    more = {**(recipe["data"].get("extra_train") or {}), FEEDBACK: {"path": str(rows.absolute())}}
    return {**recipe, "output": str(output), "data": {**recipe["data"], "extra_train": more}}


def _exported(name: str, out: Path, since: Manifest | None = None) -> Path:
    """Have the service write the judged answers of an adapter, all of them or those after a version was made.

    By its command: trainer and service share no code but the adapters'."""
    later = ["--since", since.created_at.isoformat()] if since else []
    command = ["-m", "service", "feedback", "export", "--adapter", name, "--objective", "supervised", "--out", str(out)]
    try:
        done = subprocess.run(
            [sys.executable, *command, *later], capture_output=True, text=True, check=False, timeout=EXPORT_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise HotswapError(f"the feedback could not be exported within {EXPORT_SECONDS} s.") from None
    if done.returncode != 0:
        told = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
        raise HotswapError(f"the feedback could not be exported: {told.removeprefix('python -m service: ')}")
    return out


def _count(rows: Path) -> int:
    try:
        return sum(1 for line in rows.read_bytes().splitlines() if line.strip())
    except OSError as error:
        raise HotswapError(f"cannot read {rows}: {error.strerror or os.strerror(error.errno or 0)}.") from None


def _alerted(place: str, name: str) -> bool:
    """Whether an Alertmanager has an alert of the adapter (API v2)."""
    if not place.startswith(("http://", "https://")):
        raise HotswapError(f"--alerts {place}: write it as http://HOST:9093")
    query = urllib.parse.urlencode({"filter": f'adapter="{name}"', "active": "true", "silenced": "false"})
    try:
        address = f"{place.rstrip('/')}/api/v2/alerts?{query}"
        with urllib.request.urlopen(address, timeout=ALERTS_SECONDS) as answer:  # noqa: S310  # http, as seen above
            return bool(json.load(answer))
    except (OSError, ValueError) as error:
        say(f"{place} does not say its alerts: {error}")
        return False
