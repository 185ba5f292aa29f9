"""Write k8s/monitoring/dashboards/: three dashboards of Grafana, from what they show.   python -m scripts.dashboards"""

from __future__ import annotations

import json
from pathlib import Path

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from scripts.panels import SOURCE, Panel, graph, number, quantile, total

FOLDER = Path(__file__).parents[1] / "k8s" / "monitoring" / "dashboards"
RUNBOOK = "docs/runbook.md"
VERSION = 'adapter=~"$adapter", version=~"$version"'
FEATURE = f'{VERSION}, feature=~"$feature"'
WINDOW = 'window=~"$window"'
NAMED = "{{adapter}}@{{version}}"


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in dashboards().items():
        (FOLDER / f"{name}.json").write_text(text)


def dashboards() -> dict[str, str]:
    """Return the JSON of each dashboard by its name."""
    return {name: _json(made) for name, made in _all().items()}


def _json(made: dashboard.Dashboard) -> str:
    built = json.loads(JSONEncoder().encode(made.build()))
    for link in built["links"]:
        del link["placement"]  # the builder's only choice hides it in a menu
    return json.dumps(built, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def _all() -> dict[str, dashboard.Dashboard]:
    several = [_asked("adapter", "hotswap_requests_total", several=True)]
    several += [_asked("version", 'hotswap_requests_total{adapter=~"$adapter"}', several=True)]
    one = [_asked("adapter", "hotswap_drift_reference_rows")]
    one += [_asked("version", 'hotswap_drift_reference_rows{adapter=~"$adapter"}')]
    one += [_asked("feature", f"hotswap_drift_reference_share{{{VERSION}}}"), _windows()]
    return {
        "service": _dashboard("Service", "Is it there, is it fast, is there room?", several, SERVICE),
        "adapters": _dashboard("Adapters", "Versions side by side; a line where a release began.", several, ADAPTERS),
        "drift": _dashboard("Drift", "Are the answers what they were, and are they right?", one, DRIFT),
    }


def _dashboard(
    title: str, description: str, variables: list[dashboard.QueryVariable], panels: list[Panel]
) -> dashboard.Dashboard:
    made = (
        dashboard.Dashboard(f"hotswap: {title}")
        .uid(f"hotswap-{title.lower()}")
        .description(description)
        .tags(["hotswap"])
        .refresh("30s")
        .time("now-6h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .variables([dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"), *variables])
        .annotation(_releases())
        .link(dashboard.DashboardLink("Runbook").type(DashboardLinkType.LINK).url(RUNBOOK).icon("doc"))
        .link(dashboard.DashboardLink("hotswap").type(DashboardLinkType.DASHBOARDS).tags(["hotswap"]).keep_time(True))
    )
    for place, panel in enumerate(panels, start=1):
        made.with_panel(panel.id(place))
    return made


def _asked(name: str, selector: str, *, several: bool = False) -> dashboard.QueryVariable:
    """Return a variable whose values are those of the label ``name`` in what ``selector`` finds."""
    made = (
        dashboard.QueryVariable(name)
        .label(name.capitalize())
        .datasource(SOURCE)
        .query({"qryType": 1, "query": f"label_values({selector}, {name})", "refId": name})
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.NATURAL_ASC)
    )
    if not several:
        return made
    everything = VariableOption(text=["All"], value=["$__all"])
    return made.multi(True).include_all(True).all_value(".*").current(everything)


def _windows() -> dashboard.CustomVariable:
    hour = VariableOption(text="1h", value="1h")
    return dashboard.CustomVariable("window").label("Window").values("1h,6h,1d").current(hour)


def _releases() -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Releases")
        .datasource(SOURCE)
        .enable(True)
        .icon_color("blue")
        .expr("max by (adapter) (changes(hotswap_served_generation[2m])) > 0")
    )


SERVICE: list[Panel] = [
    number("Ready replicas", "Replicas that answer requests.", "short", ("sum(hotswap_ready)", "ready")),
    number("Requests", "Of all adapters, whatever became of them.", "reqps", (total("hotswap_requests_total"), "")),
    number(
        "Error budget burn",
        "Over an hour: at 1 the budget of failures lasts for the month, at 14.4 for two days.",
        "none",
        ('hotswap:slo_failures:burn{window="1h"}', "burn"),
        1,
        14.4,
    ),
    number(
        "Latency budget burn",
        "The same for requests that take over ten seconds.",
        "none",
        ('hotswap:slo_slow:burn{window="1h"}', "burn"),
        1,
        14.4,
    ),
    number(
        "Turned away", "Share of the requests that got 429.", "percentunit", ("hotswap:overloaded:ratio5m", ""), 0.01
    ),
    number("Alerts", "Firing now.", "short", ('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"), 1),
    graph(
        "Requests by outcome",
        "ok, or the code of the error; dashed: every response that is the caller's fault, read or not.",
        "reqps",
        (total("hotswap_requests_total", "outcome", VERSION), "{{outcome}}"),
        (total("hotswap_http_responses_total", "status", 'status=~"4.."'), "HTTP {{status}}"),
        dashed="B",
    ),
    graph(
        "Budget burn by window",
        "An alert needs two windows above a line: 1h and 5m above 14.4, 6h and 30m above 6, 3d and 6h above 1.",
        "none",
        ("hotswap:slo_failures:burn", "failures, {{window}}"),
        ("hotswap:slo_slow:burn", "slow, {{window}}"),
        limits=(1, 6, 14.4),
        dashed="B",
    ),
    graph(
        "Request seconds",
        "From the parsed request to its answer.",
        "s",
        (quantile(0.5, "hotswap_request_seconds", VERSION), "p50"),
        (quantile(0.95, "hotswap_request_seconds", VERSION), "p95"),
        (quantile(0.99, "hotswap_request_seconds", VERSION), "p99"),
        limits=(10,),
    ),
    graph(
        "Where the time goes (p95)",
        "A long queue is load; a long time in the engine is long texts or cold adapters.",
        "s",
        (quantile(0.95, "hotswap_queue_seconds"), "queue"),
        (quantile(0.95, "hotswap_engine_seconds"), "engine"),
        (quantile(0.95, "hotswap_prefill_seconds"), "prefill"),
        (quantile(0.95, "hotswap_decode_seconds"), "decode"),
    ),
    graph(
        "Batch occupancy",
        "Texts in the engine, of those that it takes at once, by replica.",
        "percentunit",
        ("hotswap_batch_occupancy", "{{instance}}"),
    ),
    graph(
        "Texts in the engine and waiting",
        "By replica; dashed: those that wait.",
        "short",
        ("hotswap_in_flight", "{{instance}}"),
        ("hotswap_waiting", "{{instance}}, waiting"),
        ("hotswap:waiting:sum", "waiting, all"),
        dashed="B",
    ),
    graph(
        "Tokens",
        "Read and written a second, and the estimate of what was refused.",
        "short",
        (total("hotswap_prompt_tokens_total"), "in"),
        (total("hotswap_completion_tokens_total"), "out"),
        (total("hotswap_refused_tokens_total"), "refused"),
    ),
    graph(
        "Fine-tuning jobs",
        "By state, and the mean minutes that those took which ended; dashed: how many minutes the oldest has waited.",
        "short",
        ("max by (state) (hotswap_jobs)", "{{state}}"),
        (
            "max by (state) (hotswap_jobs_seconds) / 60 / clamp_min(max by (state) (hotswap_jobs), 1)",
            "{{state}}, minutes",
        ),
        ("max(hotswap_jobs_oldest_queued_seconds) / 60", "oldest, minutes"),
        dashed="C",
    ),
    graph(
        "Faults",
        "A minute: engines that died, reads of the store that failed.",
        "short",
        (f"60 * {total('hotswap_engine_restarts_total')}", "engine restarts"),
        (f"60 * {total('hotswap_store_errors_total', 'instance')}", "store, {{instance}}"),
    ),
    graph(
        "Adapters by state",
        "On all replicas; dashed: adapters whose newest release is not served everywhere.",
        "short",
        ("sum by (state) (hotswap_adapters)", "{{state}}"),
        ("sum(hotswap_adapters_behind)", "behind"),
        dashed="B",
    ),
    graph(
        "Feedback kept",
        "Judgements by what became of them, those that wait to be written, and whether the database is there.",
        "short",
        (total("hotswap_feedback_writes_total", "outcome"), "{{outcome}} a second"),
        ("sum(hotswap_feedback_queue)", "waiting"),
        ("hotswap_feedback_database_up", "{{instance}}, database"),
    ),
]

ADAPTERS: list[Panel] = [
    graph(
        "Requests",
        "A canary's share is a line of its own.",
        "reqps",
        (total("hotswap_requests_total", "adapter, version, channel", VERSION), f"{NAMED} {{{{channel}}}}"),
    ),
    graph(
        "Failures",
        "Of the requests that are not the caller's own mistake.",
        "percentunit",
        (f"hotswap:failures:ratio5m{{{VERSION}}}", NAMED),
        limits=(0.05,),
    ),
    graph(
        "Canary and stable",
        "Share of failures in an hour, each with one failure and one success more; dashed: the stable version.",
        "percentunit",
        (f"hotswap:canary:failures1h{{{VERSION}}}", NAMED),
        ('hotswap:stable:failures1h{adapter=~"$adapter"}', "{{adapter}} stable"),
        dashed="B",
    ),
    graph(
        "Request seconds (p95)",
        "By route.",
        "s",
        (f"hotswap:request_seconds:p95_5m{{{VERSION}}}", f"{{{{route}}}} {NAMED}"),
        limits=(10,),
    ),
    graph(
        "Engine seconds (p95)",
        "One text.",
        "s",
        (quantile(0.95, "hotswap_engine_seconds", VERSION, "adapter, version"), NAMED),
    ),
    graph(
        "Tokens",
        "A second; dashed: written.",
        "short",
        (total("hotswap_prompt_tokens_total", "adapter, version", VERSION), f"{NAMED} in"),
        (total("hotswap_completion_tokens_total", "adapter, version", VERSION), f"{NAMED} out"),
        dashed="B",
    ),
    graph(
        "First token seconds (p95)",
        "From a text's turn to its first token; dashed: the mean time between tokens.",
        "s",
        (quantile(0.95, "hotswap_first_token_seconds", VERSION, "adapter, version"), NAMED),
        (quantile(0.95, "hotswap_inter_token_seconds", VERSION, "adapter, version"), f"{NAMED} between"),
        dashed="B",
    ),
    graph(
        "Tokens not computed again",
        "A second: the prompt's beginning was known. Dashed: replicas that have the version in the engine.",
        "short",
        (total("hotswap_cached_prompt_tokens_total", "adapter, version", VERSION), NAMED),
        (f"sum by (adapter, version) (hotswap_adapter_resident{{{VERSION}}})", f"{NAMED} resident"),
        dashed="B",
    ),
    graph(
        "Texts answered from the cache",
        "A second, by outcome of the look-up. Dashed: MiB that the answers of all versions take.",
        "short",
        (total("hotswap_answer_cache_lookups_total", "adapter, version, outcome", VERSION), f"{NAMED} {{{{outcome}}}}"),
        ("sum(hotswap_answer_cache_bytes) / 2^20", "MiB"),
        dashed="B",
    ),
    graph(
        "Text length",
        "Tokens before cutting.",
        "short",
        (quantile(0.5, "hotswap_input_tokens", VERSION, "adapter, version"), f"{NAMED} p50"),
        (quantile(0.95, "hotswap_input_tokens", VERSION, "adapter, version"), f"{NAMED} p95"),
        dashed="B",
    ),
    graph(
        "Texts cut to fit",
        "Share in an hour.",
        "percentunit",
        (f'hotswap:truncated:share{{{VERSION}, window="1h"}}', NAMED),
        limits=(0.05,),
    ),
    graph(
        "Labels",
        "Share of the answers of an hour.",
        "percentunit",
        (f'hotswap:predictions:share{{{VERSION}, window="1h"}}', f"{NAMED} {{{{label}}}}"),
        limits=(0.95,),
    ),
    graph(
        "Release in the store and release served",
        "Apart: a replica is behind. Dashed: the oldest that a replica serves.",
        "short",
        ('max by (adapter) (hotswap_store_generation{adapter=~"$adapter"})', "{{adapter}} store"),
        ('min by (adapter) (hotswap_served_generation{adapter=~"$adapter"})', "{{adapter}} served"),
        dashed="B",
    ),
    graph(
        "Loads and evictions",
        "A minute.",
        "short",
        (f"60 * {total('hotswap_adapter_loads_total', 'outcome')}", "loads: {{outcome}}"),
        (f"60 * {total('hotswap_adapter_evictions_total')}", "evictions"),
    ),
    graph(
        "Load, probe and swap seconds (p95)",
        "From the files to the first caller.",
        "s",
        (quantile(0.95, "hotswap_adapter_load_seconds"), "load"),
        (quantile(0.95, "hotswap_probe_seconds"), "probe"),
        (quantile(0.95, "hotswap_swap_seconds"), "swap"),
    ),
    graph(
        "Shadow: agreement",
        "Of the copied texts of an hour that both answered.",
        "percentunit",
        (f"hotswap:shadow:agreement1h{{{VERSION}}}", NAMED),
    ),
    graph(
        "Shadow: copied texts",
        "A second, by what the shadow made of them.",
        "short",
        (total("hotswap_shadow_total", "outcome", VERSION), "{{outcome}}"),
    ),
    graph(
        "Judgements",
        "A minute.",
        "short",
        (f"60 * {total('hotswap_feedback_total', 'adapter, version, outcome', VERSION)}", f"{NAMED} {{{{outcome}}}}"),
    ),
]

DRIFT: list[Panel] = [
    graph(
        "Live against reference",
        "Share of each bin of the chosen feature; dashed: in the version's evaluation.",
        "percentunit",
        (f"hotswap:drift:live_share{{{FEATURE}, {WINDOW}}}", "{{bin}}"),
        (f"hotswap:drift:reference_share{{{FEATURE}}}", "{{bin}}, reference"),
        dashed="B",
    ),
    graph(
        "PSI and its threshold",
        "Of the chosen feature, by window; dashed: what so many answers do not exceed by chance, 0.1 at least.",
        "none",
        (f"hotswap:drift:psi{{{FEATURE}}}", "{{window}}"),
        (f"hotswap:drift:psi_threshold{{{FEATURE}}}", "{{window}}, threshold"),
        dashed="B",
    ),
    graph(
        "Evidence",
        "Of every feature: at 1 and more the answers are not those of the reference, however often one looks.",
        "none",
        (f"max by (feature) (hotswap_drift_evidence{{{VERSION}}})", "{{feature}}"),
        limits=(1,),
    ),
    graph(
        "PSI of every feature",
        "In multiples of its threshold: above 1 is an alert.",
        "none",
        (f"hotswap:drift:psi{{{VERSION}, {WINDOW}}} / hotswap:drift:psi_threshold", "{{feature}}"),
        limits=(1,),
    ),
    graph(
        "Jensen-Shannon divergence of every feature",
        "In bits: 0 is the same mix, 1 nothing in common.",
        "none",
        (f"hotswap:drift:js{{{VERSION}, {WINDOW}}}", "{{feature}}"),
    ),
    graph(
        "Answers compared",
        "In the window; dashed: rows of the reference.",
        "short",
        (f"hotswap:drift:rows{{{VERSION}, {WINDOW}}}", "{{feature}}"),
        (f"hotswap:drift:reference_rows{{{VERSION}}}", "reference"),
        dashed="B",
    ),
    graph(
        "Accuracy: estimated and realized",
        "Over a day: what calibrated scores promise, and what people said, with its 99.9 % interval (dashed).",
        "percentunit",
        (f'hotswap:accuracy:estimated{{{VERSION}, window="1d"}}', "estimated"),
        (f"hotswap:accuracy:realized{{{VERSION}}}", "realized"),
        (f"hotswap:accuracy:realized_low{{{VERSION}}}", "realized, at least"),
        (f"hotswap:accuracy:realized_high{{{VERSION}}}", "realized, at most"),
        dashed="CD",
    ),
    graph(
        "Answers judged",
        "In a day.",
        "short",
        (f"hotswap:feedback:judged{{{VERSION}}}", "judged"),
    ),
    graph(
        "Scores",
        "Of the chosen labels; dashed: share of scores of at most 0.6 in an hour.",
        "percentunit",
        (quantile(0.1, "hotswap_prediction_confidence", VERSION), "p10"),
        (quantile(0.5, "hotswap_prediction_confidence", VERSION), "p50"),
        (f'hotswap:confidence:low_share{{{VERSION}, window="1h"}}', "unsure"),
        dashed="C",
    ),
]

if __name__ == "__main__":
    main()
