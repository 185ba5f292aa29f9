"""What a run showed, and whether that is good enough."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

import numpy as np

from loadtests.swap_under_load.fleet import fault
from loadtests.swap_under_load.run import Run
from loadtests.traffic import Outcome, Phase

MAX_SERVED_P95_SECONDS = 1.5
MAX_P95_RATIO = 1.5


def results(run: Run) -> dict[str, Any]:
    """Return everything, as it is written to ``swap_under_load.json``. Times are in seconds."""
    outcomes = [*run.quiet.outcomes, *run.swaps.outcomes]
    failures = [_told(o) for o in outcomes if o.status != 200]
    adapters = {adapter.name: adapter for adapter in run.fleet}
    answered = [o for o in outcomes if o.status == 200]
    wrong = [found for o in answered if (found := fault(o, adapters[o.reference.partition("@")[0]]))]
    quiet, swaps = _latency(run.quiet), _latency(run.swaps)
    return {
        "plan": {
            **vars(run.plan),
            "base": run.base,
            "cpus": len(os.sched_getaffinity(0)),
            "cpus_used_by_others": round(run.others, 3),
        },
        "requests": {"planned": run.plan.rate, "quiet": _rates(run.quiet), "swaps": _rates(run.swaps)},
        "answers": dict(Counter(o.body["adapter"]["channel"] for o in answered)),
        "versions_that_answered": len({(o.body["adapter"]["name"], o.body["adapter"]["version"]) for o in answered}),
        "failures": {"count": len(failures), "first": failures[:5]},
        "wrong_answers": {"count": len(wrong), "first": wrong[:5]},
        "changes": {"published": run.published, "retired": run.retired, **_changes(run)},
        "publish_to_served": _served(run),
        "latency": {"quiet": quiet, "swaps": swaps, "p95_ratio": round(swaps["p95"] / quiet["p95"], 2)},
        "inside_the_service": _inside(run.metrics),
        "memory_mib": _memory(run.memory),
    }


def complaints(told: dict[str, Any], *, times: bool = True) -> list[str]:
    """Return what is not as it must be; without ``times``, whatever the machine."""
    found = [
        f"{told[kind]['count']} {kind.replace('_', ' ')}, such as: {told[kind]['first'][0]}"
        for kind in ("failures", "wrong_answers")
        if told[kind]["count"]
    ]
    if told["publish_to_served"]["unserved"]:
        found.append(f"{told['publish_to_served']['unserved']} releases were never served")
    served, ratio = told["publish_to_served"]["all"]["p95"], told["latency"]["p95_ratio"]
    if times and served > MAX_SERVED_P95_SECONDS:
        found.append(f"from release to served took {served} s (p95); the limit is {MAX_SERVED_P95_SECONDS} s")
    if times and ratio > MAX_P95_RATIO:
        found.append(f"requests took {ratio} times as long (p95) while versions changed; the limit is {MAX_P95_RATIO}")
    return found


def text(told: dict[str, Any]) -> str:
    plan, requests, served = told["plan"], told["requests"], told["publish_to_served"]
    rows = [
        ("base, CPUs, adapters", f"{plan['base']}, {plan['cpus']}, {plan['adapters']}"),
        *((f"{phase}: offered, answered per second", _pair(requests[phase])) for phase in ("quiet", "swaps")),
        *((f"{phase}: latency", _spread(told["latency"][phase])) for phase in ("quiet", "swaps")),
        ("CPU time taken by other processes", f"{plan['cpus_used_by_others']:.0%}"),
        ("p95 with swaps / quiet", told["latency"]["p95_ratio"]),
        ("requests", sum(requests[phase]["requests"] for phase in ("quiet", "swaps"))),
        ("answers by channel", _counts(told["answers"])),
        ("failures, wrong answers", f"{told['failures']['count']}, {told['wrong_answers']['count']}"),
        ("changes", _counts(told["changes"])),
        *((f"release to served, {way}", _spread(served[way])) for way in ("all", "http", "store") if served[way]),
        *((name.replace("_", " "), f"{value} s on average") for name, value in told["inside_the_service"].items()),
        *((f"resident memory, MiB: {process}", _counts(used)) for process, used in told["memory_mib"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def _served(run: Run) -> dict[str, Any]:
    later = [served for adapter in run.fleet for served in adapter.releases[1:]]
    ways = {"all": ("http", "store"), "http": ("http",), "store": ("store",)}
    spreads = {
        name: spread([max(0.0, s.seen - s.created) for s in later if s.way in of and s.seen < np.inf])
        for name, of in ways.items()
    }
    return {**spreads, "unserved": sum(s.seen == np.inf for s in later)}


def _memory(used: list[tuple[float, dict[str, int]]]) -> dict[str, dict[str, float]]:
    """Return begin, end and growth a minute (of a line through the second half) for each process."""
    seconds = np.array([at for at, _ in used])
    later = seconds >= seconds[-1] / 2
    found = {}
    for process in used[0][1]:
        mib = np.array([resident[process] for _, resident in used]) / 2**20
        slope = np.polyfit(seconds[later], mib[later], 1)[0] * 60 if later.sum() > 2 else 0.0
        found[process] = {"begin": round(mib[0]), "end": round(mib[-1]), "a minute": round(float(slope), 3)}
    return found


def _changes(run: Run) -> dict[str, int]:
    return dict(Counter(served.kind for adapter in run.fleet for served in adapter.releases[1:]))


def _latency(phase: Phase) -> dict[str, float]:
    return spread([o.seconds for o in phase.outcomes])


def _rates(phase: Phase) -> dict[str, float]:
    count = len(phase.outcomes)
    rates = {"offered": count / phase.offered_seconds, "answered": count / phase.seconds}
    return {"requests": count, **{name: round(rate, 2) for name, rate in rates.items()}}


def spread(seconds: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and maximum; nothing of nothing."""
    if not seconds:
        return {}
    p50, p95 = np.percentile(seconds, [50, 95])
    return {name: round(float(value), 3) for name, value in (("p50", p50), ("p95", p95), ("max", max(seconds)))}


def _inside(metrics: str) -> dict[str, float]:
    """Return what the service itself says about the mean seconds of loads and swaps."""
    found = {}
    for name in re.findall(r"(?m)^hotswap_(\w*(?:load|swap|probe)_seconds)_count", metrics):
        count, total = (
            sum(float(value) for value in re.findall(rf"(?m)^hotswap_{name}_{what}(?:{{.*?}})? (\S+)$", metrics))
            for what in ("count", "sum")
        )
        found[name] = round(total / count, 3) if count else 0.0
    return found


def _told(outcome: Outcome) -> str:
    return f"{outcome.reference}: status {outcome.status}, {str(outcome.body)[:200]}"


def _pair(rates: dict[str, float]) -> str:
    return f"{rates['offered']}, {rates['answered']}"


def _spread(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {1000 * value:.0f} ms" for name, value in seconds.items())


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
