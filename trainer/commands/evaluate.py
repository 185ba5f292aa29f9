"""``evaluate``: base, adapter and released version on the same held-out rows."""

from __future__ import annotations

import argparse
import json
from typing import Any

from adapters import cli
from adapters.errors import HotswapError
from adapters.lint import REPORT
from adapters.manifest import Manifest
from adapters.packages import cache_folder
from adapters.progress import bar, say
from adapters.store import Store
from trainer.commands.common import add_recipe_command, add_store_option, next_command, recipe_of, store_at
from trainer.evaluation import Baselines, Evaluation
from trainer.loading import general_text
from trainer.recipe import Recipe
from trainer.report import FEW_SHOT, score_rows
from trainer.runs import EVALUATION, Run
from trainer.verdict import breaks, enough_rows, forgotten, labels, worth_it


def add(commands: Any) -> None:
    parser = add_recipe_command(commands, "evaluate", evaluate, "score base and adapter on the held-out rows")
    add_store_option(parser)


def evaluate(options: argparse.Namespace) -> None:
    run = Run(recipe_of(options))
    if run.recipe.objective == "reward":
        _judge(run, options)
        return
    evaluation = score(run, store_at(options.store))
    if options.json:
        print(json.dumps({test: both.content() for test, both in evaluation.scores.items()}))
        return
    rows = score_rows(evaluation.scores)
    cli.show(rows, as_json=False, columns=("test", "metric", "base", "baseline", "adapter", "interval"))
    if verdict := worth_it(evaluation):
        print(verdict)
    if by := evaluation.base:
        print(
            f"the base untrained: {by.base:.4f} on the same test rows, "
            f"this adapter {by.candidate:.4f} (p = {by.p_value:.2g})"
        )
    if served := evaluation.released:
        print(
            f"released is version {served.version}: {served.released:.4f} on the same test rows, "
            f"this one {served.candidate:.4f} (p = {served.p_value:.2g})"
        )
    if untrained := evaluation.baselines:
        _say_baselines(untrained)
    kind = run.recipe.task.makes
    per_class = evaluation.scores["test"].adapter.per_class or {}
    judged = (forgotten(evaluation, kind), breaks(evaluation, kind), labels(per_class), enough_rows(evaluation))
    for finding in filter(None, judged):
        say(f"{finding.question} {finding.answer}")
    say(f"report: {run.folder / REPORT}")
    print(next_command("publish", options))


def _say_baselines(untrained: Baselines) -> None:
    if most := untrained.majority:
        say(f"always '{most.label}' would reach accuracy {most.accuracy:.3f}, macro-F1 {most.macro_f1:.3f}")
    shown = f"{untrained.shots} examples in the prompt {untrained.few_shot:.3f}" if untrained.shots else FEW_SHOT
    say(
        f"without training, on the first {untrained.rows} test rows: zero-shot {untrained.zero_shot:.3f}, "
        f"{shown}; adapter {untrained.adapter:.3f}"
    )


def score(run: Run, store: Store) -> Evaluation:
    """Return the evaluation, and leave it and its page in the run's folder."""
    with bar(None, "evaluation"):
        return _scored(run, store)


def _scored(run: Run, store: Store) -> Evaluation:
    job, recipe = run.job(), run.recipe
    from trainer import evaluate as evaluation
    from trainer.page import page

    result = evaluation.evaluate(
        run.folder / "adapter",
        job,
        _released(run, store),
        embed=_encoder(recipe),
        general_text=_general_text(recipe),
    )
    run.write(EVALUATION, result.content())
    (run.folder / REPORT).write_text(page(recipe, job.base, run.trained(), result), encoding="utf-8")
    return result


def _judge(run: Run, options: argparse.Namespace) -> None:
    """Evaluate a reward model: how often it prefers what people preferred."""
    with bar(None, "evaluation"):
        job = run.job()
        from trainer.reward import judged

        found = judged(run.folder, job.splits.test, job.codec)
    run.write(EVALUATION, found)
    if options.json:
        print(json.dumps(found))
        return
    rows = [{"measure": name, "value": round(value, 4)} for name, value in found.items()]
    cli.show(rows, as_json=False, columns=("measure", "value"))
    if not run.recipe.task.makes.closed:
        print(f"next: a recipe with objective grpo and reinforce.reward_model: {run.folder}")


def comparable(run: Run, store: Store) -> Manifest | None:
    """Return the version that is served now, if it does the same on the same base."""
    if (release := store.released(run.recipe.name)) is None:
        return None
    manifest, _ = store.manifest(run.recipe.name, release.stable)
    same = manifest.base.digest == run.base.digest and manifest.task.kind == run.recipe.task.kind
    return manifest if same else None


def _released(run: Run, store: Store) -> Any:
    from trainer.evaluate import Released

    if (manifest := comparable(run, store)) is None:
        return None
    return Released(manifest.version, store.fetch(manifest.name, manifest.version, cache_folder()), manifest.task)


def _encoder(recipe: Recipe) -> Any:
    if recipe.task.makes.closed or not recipe.evaluation.similarity:
        return None
    from trainer.embeddings import encoder

    try:
        return encoder(cache_folder())
    except HotswapError as error:
        say(f"similarity is left out: {error}")
        return None


def _general_text(recipe: Recipe) -> str:
    if recipe.evaluation.general_text is not None:
        return general_text(recipe.evaluation.general_text)
    from pydoc_data.topics import topics  # English prose on every machine that has Python

    return "\n\n".join(topics[name] for name in sorted(topics))
