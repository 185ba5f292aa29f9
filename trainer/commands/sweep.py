"""``sweep``: many short trainings, to find a recipe's settings."""

from __future__ import annotations

import argparse
import json
from typing import Any

from adapters import cli
from adapters.errors import HotswapError
from trainer.commands.common import add_recipe_command, next_command, recipe_of
from trainer.config import Recipe, load_recipe
from trainer.runs import Run


def add(commands: Any) -> None:
    text = "try the recipe's `sweep` of settings; goes on where it stopped"
    parser = add_recipe_command(commands, "sweep", sweep, text)
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

    for key, space in recipe.sweep.items():  # a misspelt key is said before the first training
        first = space[0] if isinstance(space, tuple) else int(space.low) if space.whole else space.low
        load_recipe(options.recipe, (*options.set, f"{key}={json.dumps(first)}"))
    _, base = run.splits, run.base
    from trainer import sweep as sweeping

    study = sweeping.sweep(recipe, changed, lambda tried: Run(tried).splits, base, options.trials)
    rows = sweeping.table(study)
    if options.json:
        print(json.dumps(rows))
        return
    cli.show(rows, as_json=False, columns=("trial", "state", "validation_loss", *recipe.sweep))
    options.set = [*options.set, *sweeping.as_settings(study.best_params)]
    print(next_command("train", options))
