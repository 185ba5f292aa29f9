"""Draw a dashboard's panels from what a Prometheus knows, without Grafana.

    python -m loadtests.dashboards k8s/monitoring/dashboards/service.json --out service.png

Panels stand where the dashboard puts them; colours and details are not Grafana's.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.dates import ConciseDateFormatter
from matplotlib.ticker import PercentFormatter

SHOWN = {"reqps": "/s", "s": " s", "percentunit": "", "short": "", "none": ""}
MOST_LINES = 12


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dashboard", type=Path)
    parser.add_argument("--prometheus", default="http://127.0.0.1:9090")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--until", metavar="TIME", type=datetime.fromisoformat, help="as 2026-11-27T14:10; now")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a variable of the dashboard")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    source = Prometheus(given.prometheus, given.minutes, given.until)
    board = json.loads(given.dashboard.read_text())
    chosen = variables(board, source) | dict(pair.split("=", 1) for pair in given.set)
    draw(board, chosen, source, given.out)


class Prometheus:
    """Questions to its HTTP interface, over the ``minutes`` before ``until`` (default: now)."""

    def __init__(self, url: str, minutes: float = 30, until: datetime | None = None) -> None:
        self._client = httpx.Client(base_url=url, timeout=60)
        self._minutes, self._until = minutes, until

    def values(self, label: str, selector: str) -> list[str]:
        return list(self._ask(f"label/{label}/values", {"match[]": selector}))

    def instant(self, expression: str) -> list[dict[str, Any]]:
        return list(self._ask("query", {"query": expression})["result"])

    def lines(self, expression: str) -> list[dict[str, Any]]:
        end = self._until.timestamp() if self._until else time.time()
        step = max(1, round(self._minutes * 60 / 240))
        when = {"start": end - self._minutes * 60, "end": end, "step": step}
        return list(self._ask("query_range", {"query": expression} | when)["result"])

    def _ask(self, path: str, parameters: dict[str, Any]) -> Any:
        response = self._client.get(f"/api/v1/{path}", params=parameters)
        if response.status_code != 200:
            raise ValueError(f"{parameters}: {response.text}")
        return response.json()["data"]


def _natural(value: str) -> tuple[int, str]:
    """As Grafana sorts versions: 3 before 10."""
    return (int(value), "") if value.isdecimal() else (0, value)


def variables(board: dict[str, Any], source: Prometheus) -> dict[str, str]:
    """Return the value that each of the board's variables has when it is opened: all, or the first there is."""
    chosen: dict[str, str] = {}
    for variable in board["templating"]["list"]:
        if variable["type"] == "custom":
            chosen[variable["name"]] = variable["current"]["value"]
        elif variable["includeAll"]:
            chosen[variable["name"]] = variable["allValue"]
        elif variable["type"] == "query":
            asked = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert asked is not None, variable["query"]
            found = sorted(source.values(asked[2], filled(asked[1], chosen)), key=_natural)
            chosen[variable["name"]] = found[0] if found else ""
    return chosen


def filled(expression: str, chosen: dict[str, str], rate: str = "1m") -> str:
    """Return the expression with its variables filled in, as Grafana does it."""
    expression = expression.replace("$__rate_interval", rate)
    return re.sub(r"\$(\w+)", lambda name: chosen[name[1]], expression)


def expressions(board: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the titles and expressions of all queries of a board, its annotations included."""
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in board["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


def draw(board: dict[str, Any], chosen: dict[str, str], source: Prometheus, out: Path) -> None:
    mpl.rcParams |= {"font.size": 7, "axes.spines.top": False, "axes.spines.right": False, "lines.linewidth": 1.1}
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = plt.figure(figsize=(16, rows * 0.36), layout="constrained")
    figure.suptitle(f"{board['title']} — {board['description']}", fontsize=11)
    grid = figure.add_gridspec(rows, 24)
    marked = [
        moment
        for annotation in board["annotations"]["list"]
        for line in source.lines(filled(annotation["expr"], chosen))
        for moment in beginnings(line["values"])
    ]
    for panel in board["panels"]:
        place = panel["gridPos"]
        axes = figure.add_subplot(grid[place["y"] : place["y"] + place["h"], place["x"] : place["x"] + place["w"]])
        axes.set_title(panel["title"], fontsize=8, fontweight="bold", loc="left")
        lines = [
            (name(target["legendFormat"], line["metric"]), line["values"], target["refId"])
            for target in panel["targets"]
            for line in source.lines(filled(target["expr"], chosen))
        ]
        if panel["type"] == "stat":
            draw_number(axes, panel, lines)
        else:
            draw_lines(axes, panel, lines)
            for moment in marked if lines else ():
                axes.axvline(datetime.fromtimestamp(moment, UTC), color="tab:blue", linewidth=0.6, linestyle="--")
    figure.savefig(out, dpi=90)


def beginnings(points: list[Any]) -> list[float]:
    """Return the moments at which there is something and there was nothing before."""
    moments = [moment for moment, _ in points]
    step = min((b - a for a, b in pairwise(moments)), default=0)
    return moments[:1] + [b for a, b in pairwise(moments) if b - a > step]


def name(legend: str, labels: dict[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), legend)


def draw_number(axes: Axes, panel: dict[str, Any], lines: list[tuple[str, list[Any], str]]) -> None:
    axes.axis("off")
    value = float(lines[0][1][-1][1]) if lines else float("nan")
    unit = panel["fieldConfig"]["defaults"]["unit"]
    shown = f"{value:.1%}" if unit == "percentunit" else f"{value:.3g}{SHOWN[unit]}"
    colour = "tab:green"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step.get("value") is not None and value >= step["value"]:
            colour = {"orange": "tab:orange"}.get(step["color"], "tab:red")
    axes.text(0.5, 0.4, shown, ha="center", va="center", fontsize=20, color=colour)


def draw_lines(axes: Axes, panel: dict[str, Any], lines: list[tuple[str, list[Any], str]]) -> None:
    dashed = {override["matcher"]["options"] for override in panel["fieldConfig"]["overrides"]}
    for legend, points, letter in lines:
        moments = [datetime.fromtimestamp(moment, UTC) for moment, _ in points]
        style = "--" if letter in dashed else "-"
        axes.plot(moments, [float(value) for _, value in points], style, label=legend)
    defaults = panel["fieldConfig"]["defaults"]
    high = axes.get_ylim()[1]
    axes.set_ylim(0, high)
    for step in defaults.get("thresholds", {}).get("steps", []):
        if step.get("value") is not None and step["value"] < 4 * high:
            axes.axhline(step["value"], color="tab:red", linewidth=0.7, linestyle=":")
    if defaults["unit"] == "percentunit":
        axes.yaxis.set_major_formatter(PercentFormatter(1))
    else:
        axes.set_ylabel(SHOWN[defaults["unit"]].strip())
    if lines:
        axes.xaxis.set_major_formatter(ConciseDateFormatter(axes.xaxis.get_major_locator()))
        axes.legend(*_few(axes), fontsize=6, ncols=2, frameon=False, loc="best")


def _few(axes: Axes) -> tuple[list[Any], list[str]]:
    handles, labels = axes.get_legend_handles_labels()
    return handles[:MOST_LINES], labels[:MOST_LINES]


if __name__ == "__main__":
    main()
