"""The plots of ``report.html``: drawings that take the colour of the text around them, on whatever is behind them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from markupsafe import Markup, escape

from trainer.evaluation import Evaluation, ReliabilityBin
from trainer.robustness import AS_WRITTEN
from trainer.run_record import HistoryEntry

INK = "#010203"  # stands for the text's colour, which matplotlib cannot name
BLUE, ORANGE, GREY = "#3f86d9", "#e0822f", "#8a8f98"  # seen on white and on black
STYLE = {
    "svg.hashsalt": "hotswap",
    "font.size": 9,
    **{f"{part}.color": INK for part in ("text", "xtick", "ytick")},
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
}


def plots(history: Sequence[HistoryEntry], evaluation: Evaluation, merit: str) -> dict[str, Markup]:
    """Return title → drawing, of what was measured."""
    found = {}
    if any(entry.loss is not None or entry.eval_loss is not None for entry in history):
        found["Loss"] = _plot("Loss", lambda axes: _curves(axes, history))
    if bins := evaluation.reliability:
        title = "Reliability on the test rows"
        found[title] = _plot(title, lambda axes: _reliability(axes, bins))
    if disturbed := evaluation.robustness.merits if evaluation.robustness else {}:
        title = "Disturbed test rows"
        found[title] = _plot(title, lambda axes: _bars(axes, disturbed, merit))
    return found


def _curves(axes: Any, history: Sequence[HistoryEntry]) -> None:
    training = [(entry.step, entry.loss) for entry in history if entry.loss is not None]
    validation = [(entry.step, entry.eval_loss) for entry in history if entry.eval_loss is not None]
    for points, name, colour in ((training, "training", GREY), (validation, "validation", BLUE)):
        if points:
            axes.plot(*zip(*points, strict=True), marker="." if len(points) < 50 else "", label=name, color=colour)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend(frameon=False)


def _reliability(axes: Any, bins: Sequence[ReliabilityBin]) -> None:
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=1)
    most = max(each.rows for each in bins)
    sizes = [20 + 180 * each.rows / most for each in bins]
    axes.scatter([each.confidence for each in bins], [each.right for each in bins], s=sizes, alpha=0.8, color=BLUE)
    axes.set(xlabel="confidence", ylabel="share that was right", xlim=(0, 1.04), ylim=(0, 1.04))


def _bars(axes: Any, disturbed: dict[str, float], merit: str) -> None:
    names = list(disturbed)[::-1]
    colours = [BLUE if name == AS_WRITTEN else ORANGE for name in names]
    drawn = axes.barh(names, [disturbed[name] for name in names], color=colours)
    axes.bar_label(drawn, fmt="%.3f", padding=3)
    axes.set(xlabel=merit, xlim=(0, 1.12 * max(*disturbed.values(), 0.01)))


def _plot(title: str, draw: Callable[[Any], None]) -> Markup:
    with _figure() as (figure, axes):
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        out = io.StringIO()
        # Neither a date nor random ids: the same run gives the same page.
        unsaid = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", bbox_inches="tight", transparent=True, metadata=unsaid)
    drawn = out.getvalue()[out.getvalue().index("<svg") :].replace(INK, "currentColor")
    named = f'<svg role="img" aria-label="{escape(title)}"' + drawn.removeprefix("<svg")
    return Markup(named)  # noqa: S704  # drawn here, of numbers and our names


@contextmanager
def _figure() -> Iterator[tuple[Any, Any]]:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3))
        yield figure, figure.subplots()
