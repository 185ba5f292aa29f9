"""Many short trainings to find a recipe's settings: Optuna proposes, stops what is hopeless early, and remembers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError
from transformers import TrainerCallback

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.progress import say
from trainer.data import Splits
from trainer.mixture import make_job
from trainer.progress import Diverged
from trainer.recipe import Recipe
from trainer.space import Range
from trainer.train import train

# Trials that are let run to their end before any is stopped for being worse than the median of those before it.
STARTUP_TRIALS = 4
STUDY = "sweep.db"
BETWEEN = 0.38  # a place between the ends of a range that is neither whole nor round


def sweep(
    recipe: Recipe,
    data: str,
    changed: Callable[[dict[str, Any]], Recipe],
    load: Callable[[Recipe], Splits],
    base: Base,
    trials: int,
    start: Path | None = None,
) -> optuna.Study:
    """Return the study after ``trials`` trials in all, those of earlier calls counted; its value is validation loss.

    ``data`` is the rows' fingerprint; ``changed`` makes the recipe of a trial from its settings; ``start`` is the LoRA
    that each goes on from. The study is a SQLite file beside the run's folder: a killed sweep goes on, and several
    processes share one. Proposals are by TPE (Bergstra et al. 2011), stopping by the median rule. Raises
    :class:`HotswapError` for settings that make no recipe, a study of another recipe, data or base, and where no trial
    came to an end.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # of what is refused, the reason alone is of use
    place = folder_of(recipe)
    place.mkdir(parents=True, exist_ok=True)
    with _usable(place / STUDY):
        study = _study(recipe, data, base, place)
        _run_trials(study, recipe, changed, load, base, trials, start)
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        raise HotswapError("no trial came to an end, they all diverged; sweep a lower training.learning_rate.")
    return study


def folder_of(recipe: Recipe) -> Path:
    """Beside the run's own folder, which a training of another recipe clears."""
    place = recipe.run_folder.absolute()
    return place.with_name(f"{place.name}.sweep")


@contextmanager
def _usable(file: Path) -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise HotswapError(f"{file} cannot be used as a study; is the disk full? Else delete it.") from error


def _study(recipe: Recipe, data: str, base: Base, place: Path) -> optuna.Study:
    """Return the study of exactly this sweep: losses of another recipe, other rows or another base say nothing."""
    study = optuna.create_study(
        study_name=recipe.name,
        storage=f"sqlite:///{place / STUDY}",
        load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
    )
    tried = recipe.model_dump(mode="json")["sweep"]
    identity = recipe.run_identity(data, base.digest) + json.dumps(tried, sort_keys=True)
    if study.user_attrs.setdefault("identity", identity) != identity:
        raise HotswapError(
            f"{place} holds a sweep of another recipe, search space, data or base; delete it, or set output."
        )
    study.set_user_attr("identity", identity)
    return study


def _run_trials(
    study: optuna.Study,
    recipe: Recipe,
    changed: Callable[[dict[str, Any]], Recipe],
    load: Callable[[Recipe], Splits],
    base: Base,
    trials: int,
    start: Path | None,
) -> None:
    def run(trial: optuna.Trial) -> float:
        # By the trial's number: what goes on, or runs beside another process, proposes nothing twice.
        study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + trial.number, constant_liar=True)
        settings = {key: _proposed(trial, key, space) for key, space in recipe.sweep.items()}
        say(f"trial {trial.number}: {shown(settings)}")
        tried = changed(settings)
        folder = folder_of(recipe) / str(trial.number) / "run"
        tried = tried.model_copy(update={"output": folder})
        try:
            done = train(make_job(tried, load(tried), base), [_Pruning(trial)], start, resumable=False)
        except Diverged as error:
            raise optuna.TrialPruned(str(error)) from error
        finally:
            shutil.rmtree(folder.parent, ignore_errors=True)  # the winner is trained again, to the same weights
        assert done is not None
        assert done.best_validation_loss is not None
        trial.set_user_attr("seconds", done.seconds)
        return done.best_validation_loss

    finished = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    while len(study.get_trials(deepcopy=False, states=finished)) < trials:
        study.optimize(run, n_trials=1)


def table(study: optuna.Study) -> list[dict[str, Any]]:
    """Return a row per trial, the best first."""
    rows = [
        {"trial": t.number, "state": t.state.name.lower(), "validation_loss": t.value, **t.params} for t in study.trials
    ]
    return sorted(rows, key=lambda row: (row["state"] != "complete", row["validation_loss"] or 0.0))


def as_settings(params: dict[str, Any]) -> list[str]:
    """Return a trial's settings as ``--set`` takes them."""
    return [f"{key}={json.dumps(value)}" for key, value in params.items()]


def shown(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={_figure(value)}" for key, value in settings.items())


def _figure(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def in_figures(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of the table with its numbers as they are read: rates are small."""
    return {key: _figure(value) if isinstance(value, float) else value for key, value in row.items()}


def samples(space: Range | tuple[Any, ...]) -> list[Any]:
    """Return values that a sweep may propose, to be tried on the recipe before anything is trained: all of a list, the
    ends of a range and what is between them."""
    if isinstance(space, tuple):
        return list(space)
    if space.whole:
        return [int(space.low), int(space.high)]
    return [space.low, space.low + BETWEEN * (space.high - space.low), space.high]


def _proposed(trial: optuna.Trial, key: str, space: Range | tuple[Any, ...]) -> Any:
    if isinstance(space, tuple):
        return trial.suggest_categorical(key, space)
    if space.whole:
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
