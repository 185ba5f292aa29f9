"""``publish``: a run that passes its gate becomes a version, and is released."""

from __future__ import annotations

import argparse
import json
from typing import Any

from adapters import cli
from adapters.errors import HotswapError
from adapters.releases import NewRelease
from adapters.store import Store
from trainer.commands.common import add_recipe_command, add_store_option, recipe_of, say, store_at
from trainer.commands.evaluate import comparable, score
from trainer.runs import EVALUATION, Run


def add(commands: Any) -> None:
    text = "write a version to the store, if the recipe's gate lets it, and release it"
    parser = add_recipe_command(commands, "publish", publish, text)
    add_store_option(parser)
    parser.add_argument("--no-release", action="store_true", help="store the version without serving it")
    parser.add_argument("--no-report", action="store_true", help="leave out report.html, which quotes test rows")
    parser.add_argument("--why", default="", help="recorded with the release")
    cli.add_sign_option(parser)


def publish(options: argparse.Namespace) -> None:
    run, signer = Run(recipe_of(options)), cli.signer_of(options)
    recipe = run.recipe
    if recipe.unserved is not None:
        raise HotswapError(recipe.unserved)
    trained, store = run.trained(), store_at(options.store)
    evaluation = _evaluation(run, store)
    from trainer import publish as publishing

    shown = not options.no_report
    manifest = publishing.publish(recipe, store, run.task, run.base, trained, evaluation, signer, with_report=shown)
    release = (
        None if options.no_release else store.release(recipe.name, NewRelease(stable=manifest.version, why=options.why))
    )
    generation = release.generation if release else None
    if options.json:
        print(json.dumps({"name": manifest.name, "version": manifest.version, "generation": generation}))
    else:
        served = f"released as generation {generation}" if release else "not released"
        print(f"{manifest.name}@{manifest.version} published to {store.place}, {served}")


def _evaluation(run: Run, store: Store) -> dict[str, Any]:
    """Return what evaluation found, asked again where it is to be compared with another version by now."""
    why = "nobody evaluated it yet"
    if (run.folder / EVALUATION).is_file():
        done, served = run.read(EVALUATION), comparable(run, store)
        compared_with = (done.get("released") or {}).get("version")
        if compared_with == (served.version if served else None):
            return done
        why = f"version {served.version} is released by now" if served else "nothing is released there to compare with"
    say(f"evaluating: {why}")
    return score(run, store)
