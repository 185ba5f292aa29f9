"""``publish``: a run that passes its gate becomes a version, and is released."""

from __future__ import annotations

import argparse
import json
from typing import Any

from adapters import cli
from adapters.errors import GenerationConflict, HotswapError
from adapters.manifest import Manifest
from adapters.progress import say
from adapters.releases import Guard, NewRelease, Share
from adapters.store import Store
from trainer.commands.common import add_recipe_command, add_store_option, percent, recipe_of, store_at
from trainer.commands.evaluate import comparable, score
from trainer.evaluation import Evaluation
from trainer.runs import EVALUATION, Run


def add(commands: Any) -> None:
    text = "write a version to the store, if the recipe's gate lets it, and release it"
    parser = add_recipe_command(commands, "publish", publish, text)
    add_store_option(parser)
    release = parser.add_mutually_exclusive_group()
    release.add_argument("--no-release", action="store_true", help="store the version without serving it")
    release.add_argument(
        "--end-canary", action="store_true", help="release it to everyone even if a canary, guard or shadow is running"
    )
    release.add_argument(
        "--canary",
        type=percent,
        metavar="PERCENT",
        help="release it to so many of a hundred callers, under guard: raised step by step, or taken back",
    )
    parser.add_argument("--no-report", action="store_true", help="leave out report.html, which quotes test rows")
    parser.add_argument("--why", default="", help="recorded with the release")
    cli.add_sign_option(parser)


def publish(options: argparse.Namespace) -> None:
    publish_run(Run(recipe_of(options)), options)


def publish_run(run: Run, options: argparse.Namespace) -> None:
    """Publish a run as the options of ``publish`` say."""
    recipe, signer = run.recipe, cli.signer_of(options)
    if recipe.unserved is not None:
        raise HotswapError(recipe.unserved)
    trained, store = run.trained(), store_at(options.store)
    generation = None if options.no_release else _newest(store, recipe.name, end_canary=options.end_canary)
    evaluation = evaluation_of(run, store)
    from trainer import publish as publishing

    shown = not options.no_report
    manifest = publishing.publish(recipe, store, run.task, run.base, trained, evaluation, signer, with_report=shown)
    if generation is not None:
        generation = _release(store, manifest, generation, options)
    if options.json:
        print(json.dumps({"name": manifest.name, "version": manifest.version, "generation": generation}))
    else:
        served = "not released" if generation is None else f"released as generation {generation}"
        print(f"{manifest.name}@{manifest.version} published to {store.place}, {served}")


def _newest(store: Store, name: str, *, end_canary: bool) -> int:
    """Return the generation that a release will follow (0: none). Raises :class:`HotswapError` where something is being
    tried out, which a release to everyone would end."""
    release = store.released(name)
    if release is None:
        return 0
    trials = {"canary": release.canary, "shadow": release.shadow}
    running = [f"version {share.version} is its {what}" for what, share in trials.items() if share]
    if running and not end_canary:
        watched = " under guard" if release.guard else ""
        raise HotswapError(
            f"{name} has a trial running{watched} ({', '.join(running)}), nothing is published: wait for its end, or "
            "say --end-canary, or --no-release to store the version alone."
        )
    return release.generation


def _release(store: Store, manifest: Manifest, newest: int, options: argparse.Namespace) -> int:
    """Release what follows generation ``newest``; return the new generation."""
    try:
        new = NewRelease(stable=manifest.version, why=options.why)
        served = store.released(manifest.name)
        if options.canary is not None and served is not None:
            canary = Share(version=manifest.version, percent=options.canary)
            new = NewRelease(stable=served.stable, canary=canary, guard=Guard(), why=options.why)
        return store.release(manifest.name, new, expected_generation=newest).generation
    except GenerationConflict as error:
        raise GenerationConflict(
            f"{manifest.name}@{manifest.version} is stored and not released: {error} Then: "
            f"python -m adapters release {manifest.name} {manifest.version}"
        ) from error


def evaluation_of(run: Run, store: Store) -> Evaluation:
    """Return what evaluation found, asked again where it is to be compared with another version by now."""
    why = "nobody evaluated it yet"
    if (run.folder / EVALUATION).is_file():
        done, served = run.evaluation(), comparable(run, store)
        compared_with = done.released.version if done.released else None
        if compared_with == (served.version if served else None):
            return done
        why = f"version {served.version} is released by now" if served else "nothing is released there to compare with"
    say(f"evaluating: {why}")
    return score(run, store)
