"""Many short trainings to find a recipe's settings: Optuna proposes, stops what is hopeless early, and remembers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from typing import Any

import optuna
from transformers import TrainerCallback

from adapters.base_model import Base
from adapters.errors import HotswapError
from trainer.config import Range, Recipe
from trainer.data import Splits
from trainer.mixture import make_task
from trainer.train import train

# Trials that are let run to their end before any is stopped for being worse than the median of those before it.
STARTUP_TRIALS = 4


def sweep(
    recipe: Recipe,
    changed: Callable[[dict[str, Any]], Recipe],
    load: Callable[[Recipe], Splits],
    base: Base,
    trials: int,
) -> optuna.Study:
    """Return the study after ``trials`` trials in all, those of earlier calls counted; its value is validation loss.

    ``changed`` makes the recipe of a trial from its settings. The study is a SQLite file in the run's folder: a killed
    sweep goes on, and several processes share one. Proposals are by TPE (Bergstra et al. 2011), stopping by the median
    rule. Raises :class:`HotswapError` for settings that make no recipe.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    recipe.run_folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=recipe.name,
        storage=f"sqlite:///{recipe.run_folder / 'sweep.db'}",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
    )

    def run(trial: optuna.Trial) -> float:
        # By the trial's number: what goes on, or runs beside another process, proposes nothing twice.
        study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + trial.number, constant_liar=True)
        tried = changed({key: _proposed(trial, key, space) for key, space in recipe.sweep.items()})
        folder = recipe.run_folder / "sweep" / str(trial.number)
        tried = tried.model_copy(update={"output": folder})
        splits = load(tried)
        try:
            done = train(tried, splits, make_task(tried, splits, base), base, callbacks=[_Pruning(trial)])
        except HotswapError as error:
            if "diverged" not in str(error):
                raise
            raise optuna.TrialPruned(str(error)) from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the winner is trained again, to the same weights
        trial.set_user_attr("seconds", done["seconds"])
        return float(done["best_validation_loss"])

    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    while len(study.get_trials(deepcopy=False, states=finished)) < trials:
        study.optimize(run, n_trials=1)
    return study


def table(study: optuna.Study) -> list[dict[str, Any]]:
    """Return a row per finished trial, the best first."""
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), "validation_loss": t.value, **t.params} for t in study.trials
    ]
    return sorted(rows, key=lambda row: (row["state"] != "complete", row["validation_loss"] or 0.0))


def as_settings(params: dict[str, Any]) -> list[str]:
    """Return a trial's settings as ``--set`` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in params.items()]


def _proposed(trial: optuna.Trial, key: str, space: Range | tuple[Any, ...]) -> Any:
    if isinstance(space, tuple):
        return trial.suggest_categorical(key, space)
    if space.low.is_integer() and space.high.is_integer() and space.whole:
        return trial.suggest_int(key, int(space.low), int(space.high), log=space.log)
    return trial.suggest_float(key, space.low, space.high, log=space.log)


class _Pruning(TrainerCallback):
    """Tells the study of every validation, and ends a training that it gives up."""

    def __init__(self, trial: optuna.Trial) -> None:
        self._trial = trial

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **_: Any) -> None:
        self._trial.report(metrics["eval_loss"], state.global_step)
        if self._trial.should_prune():
            raise optuna.TrialPruned(f"given up at step {state.global_step}")
