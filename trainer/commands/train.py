"""``train``: rows to an adapter in the run's folder."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from adapters.manifest import Manifest
from adapters.packages import cache_folder
from adapters.progress import bar, say
from adapters.tasks import AnyTask
from trainer.checks import Finding, as_records
from trainer.commands.common import (
    add_recipe_command,
    add_store_option,
    manifest_of,
    next_command,
    recipe_of,
    store_at,
)
from trainer.commands.data import findings_of
from trainer.job import Job
from trainer.recipe import Recipe
from trainer.resumption import keep
from trainer.run_record import RunRecord
from trainer.runs import CHECKED, RUN, TASK, Run
from trainer.verdict import training_held


def add(commands: Any) -> None:
    parser = add_recipe_command(commands, "train", train, "make the adapter; goes on where a killed run stopped")
    add_store_option(parser)


def train(options: argparse.Namespace) -> None:
    complete(Run(recipe_of(options)), options)


def complete(run: Run, options: argparse.Namespace) -> None:
    """Train what is not trained yet, and say what came of it."""
    with bar(None, "reading the rows"):
        recipe, splits, base = run.recipe, run.splits, run.base  # bad data is refused before a model is fetched
    from trainer.mixture import make_task  # torch and transformers take seconds to import

    task = make_task(recipe, splits, base)
    counts = ", ".join(f"{count} {name}" for name, count in splits.counts().items())
    say(f"{recipe.name}: {counts}; base {base.name}; run folder {run.folder}")
    if recipe.unserved is not None and recipe.objective != "reward":
        say(f"note: {recipe.unserved}")
    if run.is_finished():
        say(f"already trained; delete {run.folder} to train it again")
        keep(recipe)  # its gate or card may be another now
        done: RunRecord | None = run.record()
    else:
        done = _train(run, task, start_of(run, options.store, task))
    if done is None:
        return
    if held := training_held(done):
        say(f"{held.question} {held.answer}")
    if options.json:
        print(json.dumps(done.content()))
        return
    aim = "reward" if recipe.objective == "grpo" else "loss"
    print(
        f"trained {done.trainable_parameters:,} parameters in {done.seconds:.0f} s "
        f"({done.tokens_per_second:.0f} tokens/s), validation {aim} {done.best_validation_loss:.4f}"
    )
    print(next_command("evaluate", options))


def _train(run: Run, task: AnyTask, start: Path | None) -> RunRecord | None:
    """Return what the training was like; nothing in all but the first of several processes."""
    from trainer.fit import processes
    from trainer.mixture import mixed_jobs
    from trainer.train import train as fit

    first = processes().is_main_process
    findings = _checked(run) if first else []
    job = Job(run.recipe, run.splits, task, run.base)
    done = fit(job, start=start)
    if done is None:
        return None
    run.write(CHECKED, as_records(findings))
    if done.temperature != 1.0:
        task = task.model_copy(update={"temperature": done.temperature})
    run.write(TASK, task.model_dump(mode="json"))
    for name, other in mixed_jobs(job).items():
        run.write_mixed(name, other.task)
    run.write(RUN, done.content())  # last: its presence says that the run is finished
    return done


def start_of(run: Run, place: str | None, task: AnyTask | None = None) -> Path | None:
    """Return the folder of the LoRA that the recipe starts from, out of the store at ``place``. Raises where there is
    none that could be, or, where ``task`` is given, none that does it."""
    if (start := run.recipe.start_from) is None:
        return None
    store = store_at(place)
    manifest = manifest_of(store, start)
    if manifest.base.digest != run.base.digest or manifest.virtual_tokens:
        raise HotswapError(f"start_from: {start} is not a LoRA for {run.base.name}.")
    if task is not None:
        _check_task(run.recipe, task, manifest)
    return store.fetch(manifest.name, manifest.version, cache_folder())


def _check_task(recipe: Recipe, task: AnyTask, started: Manifest) -> None:
    """A LoRA that goes on with other labels or another prompt has to learn these first. That may be wanted of
    supervised rows; judgements are about the answers of the task as it was."""
    ours, theirs = (each.model_dump(include={"kind", "template", "labels"}) for each in (task, started.task))
    if ours == theirs:
        return
    labels = ", ".join(label["name"] for label in theirs.get("labels", ()))
    asks = f"template: {json.dumps(theirs['template']['text'])}" + (f", labels: [{labels}]" if labels else "")
    told = (
        f"start_from: {recipe.start_from} does another task than this recipe; to go on with it, set task to {{{asks}}}"
    )
    if recipe.objective != "supervised":
        raise HotswapError(f"{told}.")
    say(f"note: {told}")


def _checked(run: Run) -> list[Finding]:
    """Say what is doubtful about the data before the time for training is spent."""
    with bar(None, "checking the data"):
        findings = findings_of(run.recipe, run.base)
    for finding in findings:
        if finding.level == "warning" or finding.check == "read":
            say(f"data: {finding.message}")
    return findings
