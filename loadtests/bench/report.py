"""The run as a table, a chart and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loadtests.bench.bench import Bench
from loadtests.bench.machine import describe, limits_line, model
from loadtests.bench.plan import STREAMS
from loadtests.bench.ratios import RATIOS, agreement, spread

OURS = "ours"
RESULTS = Path(__file__).parents[1] / "results"


def results(bench: Bench) -> dict[str, Any]:
    """Return everything, as it is written to ``bench.json``."""
    ratios = {ratio.name: spread(values) for ratio in RATIOS if (values := ratio.values(bench.samples))}
    return {
        "machine": describe() | (asdict(bench.limits) if bench.limits else {}) | {"limits": machine_line(bench)},
        "mode": bench.plan.mode,
        "repeats": min((len(samples) for samples in bench.samples.values()), default=0),
        "ratios": ratios,
        "targets": {ratio.name: ratio.target for ratio in RATIOS if ratio.target is not None},
        "absolute": absolute(bench),
        "agreement": agreements(bench),
        "not_run": [*bench.plan.left_out, *bench.failures],
    }


def absolute(bench: Bench) -> dict[str, Any]:
    """Return seconds, rates and memory: workload → server → figures."""
    found: dict[str, Any] = {"workloads": {}, "servers": {}}
    for (server, workload), samples in bench.samples.items():
        found["workloads"].setdefault(workload, {})[server] = {
            "texts_per_second": spread([s.texts_per_second for s in samples]),
            "prompt_tokens_per_second": spread([s.prompt_tokens_per_second for s in samples]),
            "output_tokens_per_second": spread([s.output_tokens_per_second for s in samples]),
            "p50_seconds": spread([s.p50 for s in samples]),
            "p95_seconds": spread([s.p95 for s in samples]),
        }
    for name, started in bench.servers.items():
        first, hundredth = bench.first_answers.get(name, (None, None))
        found["servers"][name] = {
            "start_seconds": None if bench.plan.together else started.start_seconds,
            "first_answer_seconds": first,
            "hundredth_answer_seconds": hundredth,
            "peak_memory_gib": started.process.peak_gib,
        }
    return found


def agreements(bench: Bench) -> dict[str, dict[str, float]]:
    """Return workload → server → share of answers equal to ours: a fast server may still answer rubbish."""
    found: dict[str, dict[str, float]] = {}
    for server, workload in bench.samples:
        share = agreement(bench.samples, workload, OURS, server) if server != OURS else None
        if share is not None:
            found.setdefault(workload, {})[server] = share
    return found


def machine_line(bench: Bench) -> str | None:
    samples = bench.samples
    prefill, decode = samples.get(("engine-grouped", "prefill_base")), samples.get(("engine-grouped", "decode_base"))
    if not (bench.limits and prefill and decode):
        return None
    read = spread([s.prompt_tokens_per_second for s in prefill])["median"]
    written = spread([s.output_tokens_per_second for s in decode])["median"]
    return limits_line(bench.limits, model(bench.material.base.folder), read, written, STREAMS)


def text(told: dict[str, Any]) -> str:
    """Return what is printed at the end."""
    parts = [
        table(("RATIO", "MEDIAN", "MIN", "MAX", "TARGET", ""), _ratio_rows(told)),
        table(("WORKLOAD", "SERVER", "TEXTS/S", "TOKENS IN/S", "TOKENS OUT/S", "P50 S", "P95 S"), _rate_rows(told)),
        table(("SERVER", "START S", "FIRST ANSWER S", "HUNDREDTH S", "PEAK GIB"), _server_rows(told)),
    ]
    shares = [f"{w} {s} {share:.1%}" for w, servers in told["agreement"].items() for s, share in servers.items()]
    parts += [f"same answers as ours: {'; '.join(shares)}"] if shares else []
    parts += [told["machine"]["limits"]] if told["machine"]["limits"] else []
    parts += ["not run:\n" + "\n".join(f"  {line}" for line in told["not_run"])] if told["not_run"] else []
    return "\n\n".join(parts)


def _ratio_rows(told: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for ratio in RATIOS:
        found = told["ratios"].get(ratio.name)
        if found is None:
            continue
        target = "" if ratio.target is None else f"{'<=' if ratio.at_most else '>='} {ratio.target:g}"
        verdict = {True: "reached", False: "missed", None: ""}[ratio.reached(found["median"])]
        yield ratio.name, *(f"{found[key]:.2f}" for key in ("median", "min", "max")), target, verdict


def _rate_rows(told: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    keys = ("texts_per_second", "prompt_tokens_per_second", "output_tokens_per_second", "p50_seconds", "p95_seconds")
    for workload, servers in told["absolute"]["workloads"].items():
        for server, found in servers.items():
            yield workload, server, *(_number(found[key]["median"]) for key in keys)


def _server_rows(told: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for server, found in told["absolute"]["servers"].items():
        keys = ("start_seconds", "first_answer_seconds", "hundredth_answer_seconds", "peak_memory_gib")
        yield server, *(_number(found[key]) for key in keys)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def write(told: dict[str, Any], folder: Path) -> None:
    """Write ``bench.json`` and ``bench.svg``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.json").write_text(json.dumps(told, indent=1) + "\n")
    chart(told, folder / "bench.svg")


def chart(told: dict[str, Any], path: Path) -> None:
    """Draw each ratio as a point between its extremes, with its target, where 2 and 1/2 are equally far from 1."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    drawn = [ratio for ratio in RATIOS if ratio.name in told["ratios"]][::-1]
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.3 * len(drawn)), layout="constrained")
    for row, ratio in enumerate(drawn):
        found = told["ratios"][ratio.name]
        axes.plot([found["min"], found["max"]], [row, row], color="tab:blue", linewidth=4, alpha=0.4)
        axes.plot(found["median"], row, "o", color="tab:blue")
        axes.annotate(f"{found['median']:.2f}", (found["max"], row), (6, -3), textcoords="offset points", fontsize=8)
        if ratio.target is not None:
            axes.plot(ratio.target, row, "|", color="tab:red", markersize=14, markeredgewidth=2)
    axes.axvline(1, color="grey", linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.margins(x=0.12)
    axes.set_yticks(range(len(drawn)), [ratio.name + (" (less is better)" if ratio.at_most else "") for ratio in drawn])
    axes.set_title(f"hotswap {told['mode']} bench, {told['machine']['cores']} cores: median, extremes, red: target")
    figure.savefig(path)
    pyplot.close(figure)
