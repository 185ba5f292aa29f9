"""``sweep``: many short trainings, to find a recipe's settings."""

from __future__ import annotations

import argparse
import json
from typing import Any

from adapters import cli
from adapters.errors import HotswapError
from trainer.commands.common import add_recipe_command, add_store_option, next_command, recipe_of
from trainer.commands.train import start_of
from trainer.loading import load_recipe
from trainer.recipe import Recipe
from trainer.runs import Run


def add(commands: Any) -> None:
    text = "try the recipe's `sweep` of settings; goes on where it stopped"
    parser = add_recipe_command(commands, "sweep", sweep, text)
    add_store_option(parser)
    parser.add_argument("--trials", type=int, default=20, help="in all, those of earlier sweeps counted (20)")


def sweep(options: argparse.Namespace) -> None:
    run = Run(recipe_of(options))
    recipe = run.recipe
    if options.trials < 1:
        raise HotswapError("--trials needs a number from 1 on.")
    if recipe.objective == "grpo":
        raise HotswapError(
            "a sweep compares validation losses, and objective grpo has none; sweep it supervised first."
        )

    def changed(params: dict[str, Any]) -> Recipe:
        return load_recipe(options.recipe, (*options.set, *sweeping.as_settings(params)))

    from trainer import sweep as sweeping

    for key, space in recipe.sweep.items():  # what makes no recipe is said before the first training
        for value in sweeping.samples(space):
            changed({key: value})
    data = run.splits.fingerprint  # bad data is refused before a model is fetched
    start = start_of(run, options.store)
    study = sweeping.sweep(recipe, data, changed, lambda tried: Run(tried).splits, run.base, options.trials, start)
    rows = sweeping.table(study)
    if options.json:
        print(json.dumps(rows))
        return
    cli.show(
        [sweeping.in_figures(row) for row in rows],
        as_json=False,
        columns=("trial", "state", "validation_loss", *recipe.sweep),
    )
    options.set = [*options.set, *sweeping.as_settings(study.best_params)]
    print(next_command("train", options))
