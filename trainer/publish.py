"""From a finished run to a version in the store: gate, card, manifest, release."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.intake import add_version
from adapters.lint import CARD, REPORT
from adapters.manifest import Manifest
from adapters.signing import Signer
from adapters.store import Store
from adapters.tasks import AnyTask
from trainer.evaluation import Evaluation
from trainer.page import page
from trainer.recipe import Recipe, Standing
from trainer.report import card
from trainer.run_record import RunRecord
from trainer.verdict import SIGNIFICANT

BETTER = (
    "what may help: more rows, a longer training.budget, lora.rank: 16, a larger base, `trainer sweep`; or serve the "
    "simple model"
)


def check_gate(recipe: Recipe, evaluation: Evaluation) -> None:
    """Raise :class:`HotswapError` naming every metric that is below what the recipe asks for, and the base or the
    released version where the candidate does not stand up to it."""
    wanted = {"test": recipe.gate.test, **recipe.gate.extra_tests}
    missed = []
    for test, thresholds in wanted.items():
        reached = evaluation.scores[test].adapter.values if test in evaluation.scores else {}
        for metric, least in thresholds.items():
            value = reached.get(metric)
            if value is None:
                missed.append(f"{test} has no {metric}")
            elif not value >= least:  # nor may what is no number pass
                missed.append(f"{test} {metric} is {value:.4f}, the gate asks for {least}")
    if by := evaluation.base:
        told = f"the base untrained scores {by.base:.4f}"
        missed += _beaten("base", recipe.gate.base, by.candidate, by.base, by.p_value, told)
    if simple := evaluation.baseline:
        told = f"{simple.name} scores {simple.baseline:.4f}"
        found = _beaten("baseline", recipe.gate.baseline, simple.candidate, simple.baseline, simple.p_value, told)
        missed += [f"{each}; {BETTER}" for each in found]
    if served := evaluation.released:
        told = f"version {served.version}, which is served, scores {served.released:.4f}"
        missed += _beaten("released", recipe.gate.released, served.candidate, served.released, served.p_value, told)
    if missed:
        raise HotswapError("the gate is closed, nothing is published: " + "; ".join(missed))


def _beaten(key: str, wanted: Standing, ours: float, theirs: float, p: float, told: str) -> list[str]:
    """Return why the candidate does not stand as ``gate.KEY`` wants it to, against the other on the same rows."""
    told += f" and this one {ours:.4f} (p = {p:.2g})"
    if wanted != "any" and p < SIGNIFICANT and ours < theirs:
        return [f"{told}; gate.{key}: any lets it pass"]
    if wanted == "better" and not (p < SIGNIFICANT and ours > theirs):
        return [f"{told}, and gate.{key} asks for a better one"]
    return []


def publish(
    recipe: Recipe,
    store: Store,
    task: AnyTask,
    base: Base,
    run: RunRecord,
    evaluation: Evaluation,
    signer: Signer | None = None,
    *,
    with_report: bool = True,
    made_by: Mapping[str, str] | None = None,
) -> Manifest:
    """Write the run's adapter as the next version and return its manifest; ``with_report`` puts the page into it, which
    quotes test rows; ``made_by`` is more of its lineage. Raises where gate or lint refuse."""
    check_gate(recipe, evaluation)
    folder: Path = recipe.run_folder / "adapter"
    if with_report:
        (folder / REPORT).write_text(page(recipe, base, run, evaluation), encoding="utf-8")
    (folder / CARD).write_text(card(recipe, base, run, evaluation), encoding="utf-8")
    lineage = {
        "recipe": recipe.model_dump(mode="json", exclude={"output", "sweep"}),
        "data": {"fingerprint": run.data, "rows": run.rows},
        "seconds": run.seconds,
        **run.made_with.content(),
        **(made_by or {}),
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
        metrics={test: both.content() for test, both in evaluation.scores.items()},
        profile=evaluation.profile,
        references=evaluation.references,
        computed=evaluation.computed,
        lineage=lineage,
    )
