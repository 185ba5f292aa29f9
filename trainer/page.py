"""``report.html``: what a run has to show, in one file that needs nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from adapters.base_model import Base
from trainer.evaluation import Evaluation, ReliabilityBin
from trainer.recipe import Recipe
from trainer.report import FEW_SHOT, score_rows, worth_it
from trainer.run_record import HistoryEntry, RunRecord


def page(recipe: Recipe, base: Base, run: RunRecord, evaluation: Evaluation) -> str:
    """Return the page: scores, plots, disturbances and examples. Every text of the data is escaped."""
    kind = recipe.task.makes
    disturbed = evaluation.robustness.merits if evaluation.robustness else {}
    plots = {
        "Loss": _plot(lambda axes: _curves(axes, run.history)),
        "Reliability on the test rows": _plot(lambda axes: _reliability(axes, evaluation.reliability))
        if evaluation.reliability
        else None,
        "Disturbed test rows": _plot(lambda axes: _bars(axes, disturbed, kind.merit_name)) if disturbed else None,
    }
    return template("report.html.j2").render(
        recipe=recipe,
        base=base,
        no_examples=FEW_SHOT,
        headings=kind.headings,
        merit=kind.merit_name,
        sureness="confidence" if kind.closed else kind.merit_name,
        run=run,
        evaluation=evaluation,
        scores=score_rows(evaluation.scores),
        verdict=worth_it(evaluation),
        tested=evaluation.scores["test"].adapter,
        plots={title: plot for title, plot in plots.items() if plot},
    )


def template(name: str) -> Template:
    """Return one of the templates beside this file. Whatever it is given is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(name)


def _curves(axes: Any, history: Sequence[HistoryEntry]) -> None:
    training = [(entry.step, entry.loss) for entry in history if entry.loss is not None]
    validation = [(entry.step, entry.eval_loss) for entry in history if entry.eval_loss is not None]
    for points, name in ((training, "training"), (validation, "validation")):
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=name)
    axes.set(xlabel="step", ylabel="loss")
    if axes.lines:
        axes.legend(frameon=False)


def _reliability(axes: Any, bins: Sequence[ReliabilityBin]) -> None:
    axes.plot([0, 1], [0, 1], color="#bbb", linewidth=1)
    most = max(each.rows for each in bins)
    sizes = [20 + 180 * each.rows / most for each in bins]
    axes.scatter([each.confidence for each in bins], [each.right for each in bins], s=sizes, alpha=0.7)
    axes.set(xlabel="confidence", ylabel="share that was right", xlim=(0, 1.02), ylim=(0, 1.02))


def _bars(axes: Any, disturbed: dict[str, float], merit: str) -> None:
    names = list(disturbed)[::-1]
    drawn = axes.barh(names, [disturbed[name] for name in names])
    axes.bar_label(drawn, fmt="%.3f", padding=3)
    axes.set(xlabel=merit, xlim=(0, 1.1))


def _plot(draw: Callable[[Any], None]) -> Markup:
    with _figure() as (figure, axes):
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        # Neither a date nor random ids: the same run gives the same page.
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    return Markup(out.getvalue()[out.getvalue().index("<svg") :])  # noqa: S704  # drawn here, of numbers and our names


@contextmanager
def _figure() -> Iterator[tuple[Any, Any]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context({"svg.hashsalt": "hotswap", "font.size": 9}):
        figure = Figure(figsize=(4.6, 3))
        yield figure, figure.subplots()
