"""The bench's arithmetic and reports; that its servers start and agree is for ``make bench`` itself to show."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from loadtests.bench import plan, report
from loadtests.bench.bench import Bench
from loadtests.bench.machine import Limits, Model, limits_line
from loadtests.bench.process import Failed, Process, last_words
from loadtests.bench.ratios import RATIOS, Ratio, Side, agreement, spread
from loadtests.bench.workload import Sample, Workload, pick

MIXED = Workload("classify_mixed", "classify", 4, 32, 4)


def sample(seconds: float, answers: str = "pnpn", latencies: tuple[float, ...] = (1, 2, 3, 4)) -> Sample:
    return Sample(seconds, list(latencies), list(answers), prompt_tokens=100, output_tokens=8)


def test_a_sample_gives_rates_and_percentiles() -> None:
    one = sample(2, latencies=tuple(range(101)))
    assert (one.texts_per_second, one.prompt_tokens_per_second, one.output_tokens_per_second) == (2, 50, 4)
    assert (one.p50, one.p95) == (50, 95)


def test_each_repeat_gives_a_ratio_of_its_own() -> None:
    ratio = Ratio("r", Side("ours", "w"), Side("vllm", "w"), 2)
    samples = {("ours", "w"): [sample(1), sample(2), sample(1)], ("vllm", "w"): [sample(3), sample(2), sample(8)]}
    assert ratio.values(samples) == [3, 1, 8]
    assert spread(ratio.values(samples)) == {"median": 3, "min": 1, "max": 8}
    assert ratio.values({("ours", "w"): [sample(1)]}) == []


def test_a_target_is_a_floor_or_a_ceiling() -> None:
    floor, ceiling = Ratio("r", Side("a", "w"), Side("b", "w"), 2), Ratio("r", Side("a", "w"), Side("b", "w"), 2, True)
    assert (floor.reached(3), floor.reached(1), ceiling.reached(3), ceiling.reached(1)) == (True, False, False, True)
    assert Ratio("r", Side("a", "w"), Side("b", "w")).reached(1) is None


def test_agreement_is_the_share_of_equal_answers() -> None:
    samples = {
        ("ours", "w"): [sample(1, "pnpn"), sample(1, "pppp")],
        ("vllm", "w"): [sample(1, "pnpp"), sample(1, "pppp")],
    }
    assert agreement(samples, "w", "ours", "vllm") == 7 / 8
    assert agreement(samples, "w", "ours", "peft") is None


def test_zipf_asks_the_first_most_and_uniform_asks_all_alike() -> None:
    random = np.random.default_rng(0)
    zipf, uniform = (Counter(pick(16, 20_000, law, random)) for law in ("zipf", "uniform"))
    assert set(zipf) == set(uniform) == set(range(16))
    assert zipf[0] / zipf[1] == pytest.approx(2, rel=0.1)
    assert zipf[0] / zipf[15] == pytest.approx(16, rel=0.25)
    assert max(uniform.values()) / min(uniform.values()) < 1.2


def test_the_line_on_the_machine_says_which_shares_are_used() -> None:
    model = Model(prefill=100_000_000, step=125_000_000)
    line = limits_line(Limits(sgemm_gflops=200, read_gb_per_second=20), model, prefill=500, decode=160, streams=16)
    assert "prefill at 500 tokens/s is 50% of the first" in line
    assert "160 tokens/s over 16 streams is 25% of the second" in line


def test_every_ratio_is_fed_by_the_full_plan() -> None:
    measured = {(server, workload.name) for group in plan.full().groups for server, workload in group.pairs}
    for ratio in RATIOS:
        assert {(ratio.over.server, ratio.over.workload), (ratio.under.server, ratio.under.workload)} <= measured


def test_the_quick_plan_feeds_every_target_but_those_of_many_adapters() -> None:
    measured = {(server, workload.name) for group in plan.quick().groups for server, workload in group.pairs}
    wanted = {(side.server, side.workload) for r in RATIOS if r.target is not None for side in (r.over, r.under)}
    assert {workload for _, workload in wanted - measured} == {"adapters_1", "adapters_64_uniform", "adapters_256_zipf"}
    assert plan.quick().stages[0].servers == ["ours", "vllm", "engine-grouped", "engine-stock"]


def test_no_more_than_four_servers_are_there_at_a_time() -> None:
    assert max(len(stage.servers) for stage in plan.full().stages) == 4


def test_what_is_not_asked_for_is_said() -> None:
    chosen = plan.quick(["base"])
    assert [stage.servers for stage in chosen.stages] == [["ours", "vllm"]]
    assert "kernels (--only)" in chosen.left_out


def test_the_report_has_every_part(tmp_path: Path) -> None:
    with ExitStack() as stack:
        bench = Bench(plan.quick(["classify"]), SimpleNamespace(), 2, tmp_path, stack)  # type: ignore[arg-type]
        bench.samples["ours", MIXED.name] = [sample(1), sample(2)]
        bench.samples["vllm", MIXED.name] = [sample(6, "pnnn"), sample(10)]
        process = SimpleNamespace(peak_gib=2.5)
        bench.servers = {"ours": SimpleNamespace(start_seconds=20, process=process)}  # type: ignore[dict-item]
        bench.failures = ["engine-stock, start: no memory"]
        told = report.results(bench)
    assert told["ratios"]["classify_mixed_vs_vllm"] == {"median": 5.5, "min": 5, "max": 6}
    assert told["agreement"] == {MIXED.name: {"vllm": 7 / 8}}
    assert told["absolute"]["workloads"][MIXED.name]["ours"]["texts_per_second"]["max"] == 4
    report.write(told, tmp_path / "results")
    assert json.loads((tmp_path / "results" / "bench.json").read_text()) == told
    assert (tmp_path / "results" / "bench.svg").read_text().startswith("<?xml")
    printed = report.text(told)
    for part in (">= 5", "reached", "vllm 87.5%", "engine-stock, start: no memory", "base (--only)"):
        assert part in printed


def test_a_server_that_does_not_start_is_told_by_its_last_line(tmp_path: Path) -> None:
    process = Process("http.server", ["not-a-port"], {}, tmp_path / "log", piped=False)
    with pytest.raises(Failed, match=r"status 2.*not-a-port"):
        process.wait(lambda: False)
    process.stop()


def test_the_last_words_are_an_error_that_says_something() -> None:
    log = "(worker) ERROR ValueError: no memory\nRuntimeError: failed. See root cause above.\n\n"
    assert last_words(log) == "ValueError: no memory"
    assert last_words("one\ntwo\n\n") == "two"
    assert last_words("") == "it said nothing"


def test_a_resting_process_takes_no_time_and_nothing_is_left_of_it(tmp_path: Path) -> None:
    process = Process("timeit", ["-n", "1", "import time; time.sleep(60)"], {}, tmp_path / "log", piped=False)
    process.rest()
    os.waitpid(process.id, os.WUNTRACED)
    with process.awake():
        pass
    process.stop()
    assert process.peak_gib > 0
    with pytest.raises(ProcessLookupError):
        os.killpg(process.id, 0)


def test_the_docs_say_what_was_measured() -> None:
    page = (report.RESULTS.parents[1] / "docs/benchmarks.md").read_text()
    measured = json.loads((report.RESULTS / "bench.json").read_text())["ratios"]
    told = re.findall(r"^\| `([\w-]+)` \|.*\| \*\*(.+?)\*\* \| (.+?)–(.+?) \|", page, re.MULTILINE)
    assert {name for name, *_ in told} >= {ratio.name for ratio in RATIOS if ratio.target is not None}
    for name, *figures in told:
        assert figures == [f"{measured[name][key]:.2f}" for key in ("median", "min", "max")]


def test_help_shows_an_example() -> None:
    done = subprocess.run([sys.executable, "-m", "loadtests.bench", "--help"], capture_output=True, text=True)
    assert "example: python -m loadtests.bench" in done.stdout
    done = subprocess.run([sys.executable, "-m", "loadtests.bench", "--only", "x"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "'x' is none of classify" in done.stderr
