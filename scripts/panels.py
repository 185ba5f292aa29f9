"""Grafana's panels, as our dashboards use them, and the queries that they have in common."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import common, dashboard, stat, timeseries
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    DataSourceRef,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DynamicConfigValue, Threshold

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
Query = tuple[str, str]
Panel = stat.Panel | timeseries.Panel


def number(title: str, description: str, unit: str, query: Query, *limits: float) -> stat.Panel:
    """Return one figure: green, from the first limit on orange, from the second on red."""
    made = stat.Panel().graph_mode(BigValueGraphMode.AREA).span(4).height(4)
    return _filled(made, title, description, unit, [query]).thresholds(_steps(limits))


def graph(
    title: str, description: str, unit: str, *queries: Query, limits: tuple[float, ...] = (), dashed: str = ""
) -> timeseries.Panel:
    """Return lines over time, with lines at ``limits``; those of the queries ``dashed`` (their letters) are dashed."""
    made = timeseries.Panel().span(8).height(8).line_width(1).fill_opacity(0)
    made.legend(
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.LIST)
        .placement(LegendPlacement.BOTTOM)
    ).tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    if limits:
        lines = common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE)
        made.thresholds(_steps(limits)).thresholds_style(lines)
    for letter in dashed:
        dash = DynamicConfigValue(id_val="custom.lineStyle", value={"fill": "dash", "dash": [6, 6]})
        made.override_by_query(letter, [dash])
    return _filled(made, title, description, unit, queries)


def _filled(made: Panel, title: str, description: str, unit: str, queries: Sequence[Query]) -> Panel:
    made.title(title).description(description).unit(unit).min(0).datasource(SOURCE)
    for letter, (expression, legend) in zip("ABCDEF", queries, strict=False):
        made.with_target(Dataquery().ref_id(letter).expr(expression).legend_format(legend).datasource(SOURCE))
    return made


def _steps(limits: tuple[float, ...]) -> dashboard.ThresholdsConfig:
    colours = ("orange", "red", "dark-red") if len(limits) > 1 else ("red",)
    steps = [Threshold(color="green")] + [
        Threshold(value=value, color=colour) for value, colour in zip(limits, colours, strict=False)
    ]
    return dashboard.ThresholdsConfig().steps(steps)


def quantile(q: float, metric: str, labels: str = "", by: str = "") -> str:
    """Return the expression of a histogram's quantile."""
    groups = ", ".join(filter(None, ("le", by)))
    return f"histogram_quantile({q}, sum by ({groups}) (rate({metric}_bucket{{{labels}}}[$__rate_interval])))"


def total(metric: str, by: str = "", labels: str = "") -> str:
    """Return the expression of a counter's rate over all replicas."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}[$__rate_interval]))"
