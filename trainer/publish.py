"""From a finished run to a version in the store: gate, card, manifest, release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.intake import add_version
from adapters.lint import CARD, REPORT
from adapters.manifest import Manifest, Profile, Reference
from adapters.signing import Signer
from adapters.store import Store
from adapters.tasks import ClassificationTask, SummarizationTask
from trainer.page import page
from trainer.recipe import Recipe, Standing
from trainer.report import card

SIGNIFICANT = 0.05


def check_gate(recipe: Recipe, evaluation: dict[str, Any]) -> None:
    """Raise :class:`HotswapError` naming every metric that is below what the recipe asks for, and the base or the
    released version where the candidate does not stand up to it."""
    scores = evaluation["scores"]
    wanted = {"test": recipe.gate.test, **recipe.gate.extra_tests}
    missed = []
    for test, thresholds in wanted.items():
        reached = scores.get(test, {}).get("adapter", {})
        for metric, least in thresholds.items():
            value = reached.get(metric)
            if value is None:
                missed.append(f"{test} has no {metric}")
            elif not value >= least:  # nor may what is no number pass
                missed.append(f"{test} {metric} is {value:.4f}, the gate asks for {least}")
    if (by_base := evaluation.get("base")) is not None:
        told = f"the base untrained scores {by_base['base']:.4f}"
        missed += _beaten("base", recipe.gate.base, by_base, told)
    if (by_released := evaluation.get("released")) is not None:
        told = f"version {by_released['version']}, which is served, scores {by_released['released']:.4f}"
        missed += _beaten("released", recipe.gate.released, by_released, told)
    if missed:
        raise HotswapError("the gate is closed, nothing is published: " + "; ".join(missed))


def _beaten(key: str, wanted: Standing, against: dict[str, Any], told: str) -> list[str]:
    """Return why the candidate does not stand as ``gate.KEY`` wants it to, against the other on the same rows."""
    ours, theirs, p = against["candidate"], against[key], against["p_value"]
    told += f" and this one {ours:.4f} (p = {p:.2g})"
    if wanted != "any" and p < SIGNIFICANT and ours < theirs:
        return [f"{told}; gate.{key}: any lets it pass"]
    if wanted == "better" and not (p < SIGNIFICANT and ours > theirs):
        return [f"{told}, and gate.{key} asks for a better one"]
    return []


def publish(
    recipe: Recipe,
    store: Store,
    task: ClassificationTask | SummarizationTask,
    base: Base,
    run: dict[str, Any],
    evaluation: dict[str, Any],
    signer: Signer | None = None,
    *,
    with_report: bool = True,
) -> Manifest:
    """Write the run's adapter as the next version and return its manifest; ``with_report`` puts the page into it, which
    quotes test rows. Raises where gate or lint refuse."""
    check_gate(recipe, evaluation)
    folder: Path = recipe.run_folder / "adapter"
    if with_report:
        (folder / REPORT).write_text(page(recipe, base, run, evaluation), encoding="utf-8")
    (folder / CARD).write_text(card(recipe, base, run, evaluation), encoding="utf-8")
    lineage = {
        "recipe": recipe.model_dump(mode="json", exclude={"output", "sweep"}),
        "data": {"fingerprint": run["data"], "rows": run["rows"]},
        "seconds": run["seconds"],
        **run.get("made_with", {}),  # a run of an earlier version of the trainer does not say
    }
    return add_version(
        store,
        recipe.name,
        folder,
        task,
        base,
        signer=signer,
        with_report=with_report,
        description=recipe.description,
        metrics=evaluation["scores"],
        profile=Profile.model_validate(evaluation["profile"]),
        references=tuple(Reference.model_validate(answer) for answer in evaluation.get("references", [])),
        lineage=lineage,
    )
