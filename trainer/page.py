"""``report.html``: what a run has to show, in one file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from adapters.base_model import Base
from adapters.tasks.base import BaseTask
from trainer.evaluation import Evaluation, Scores
from trainer.plots import plots
from trainer.recipe import Recipe
from trainer.report import CONFUSED, FEW_SHOT, READABLE_LABELS, figure, score_rows
from trainer.run_record import RunRecord
from trainer.verdict import confused, findings, lost, training_held, weakest, worth_serving

WEAKEST = 10
TONES = {"good": "good", "fair": "so-so", "bad": "mind this", "unknown": ""}


class Number(NamedTuple):
    """One of the numbers that the page has in large type; ``interval`` is of 95 %."""

    of: str
    value: float
    interval: tuple[float, float] | None


def page(recipe: Recipe, base: Base, run: RunRecord, evaluation: Evaluation) -> str:
    """Return the page: the verdict first, what it rests on next, every number last and folded. Every text of the data
    is escaped."""
    kind = recipe.task.makes
    tested = evaluation.scores["test"].adapter
    return template("report.html.j2").render(
        recipe=recipe,
        base=base,
        run=run,
        evaluation=evaluation,
        tested=tested,
        verdict=worth_serving(evaluation, kind),
        findings=[*filter(None, [training_held(run)]), *findings(evaluation, kind)],
        tones=TONES,
        numbers=numbers(evaluation, kind),
        plots=plots(run.history, evaluation, kind.merit_name),
        weakest=weakest(tested.per_class or {})[:WEAKEST],
        confused=confused(tested.confusion)[:CONFUSED],
        readable=READABLE_LABELS,
        losses=lost(evaluation),
        scores=score_rows(evaluation.scores),
        no_examples=FEW_SHOT,
        headings=kind.headings,
        merit=kind.merit_name,
        sureness="confidence" if kind.closed else kind.merit_name,
    )


def numbers(evaluation: Evaluation, kind: type[BaseTask]) -> list[Number]:
    """Return the mean merit of this adapter, of the simple baseline and of the base untrained, as far as measured."""
    both = evaluation.scores["test"]
    simple = evaluation.baseline.name if evaluation.baseline else "simple baseline"
    of: dict[str, Scores | None] = {"this adapter": both.adapter, simple: both.baseline, "base, untrained": both.base}
    return [
        Number(name, scores.values[kind.merit_metric], scores.intervals.get(kind.merit_metric))
        for name, scores in of.items()
        if scores and kind.merit_metric in scores.values
    ]


def template(name: str) -> Template:
    """Return one of the templates beside this file. Whatever it is given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["figure"] = figure
    return environment.get_template(name)
