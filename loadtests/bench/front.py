"""``python -m loadtests.bench.front``: what one API process costs, where the engine is not the limit.

CPU time of the process that speaks HTTP, not seconds on a clock: other work on the machine changes it little, and one
process can do no more than fits into its second. A further text is what a text costs in a request of 32, beside 31
others. Parts are py-spy's samples of the same work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from adapters import cli
from adapters.errors import HotswapError
from loadtests.bench.load import drive
from loadtests.bench.machine import describe
from loadtests.bench.material import Adapter, Material
from loadtests.bench.process import Failed, Process
from loadtests.bench.ratios import spread
from loadtests.bench.report import RESULTS, table
from loadtests.bench.servers import BASE, Hotswap, Vllm
from loadtests.bench.small_base import NAME, TEMPLATE, make_small

BATCH = 32
# Requests of a measurement and how many are in flight, by texts in each.
LOAD = {1: (1500, 32), BATCH: (150, 2)}
SAMPLES_A_SECOND = 250
OWN_AIM = (250, 80)
AIMS = {"one_text_vs_vllm": 1.5, "32_texts_vs_vllm": 3}
# Theirs is all that is done below them.
OWNERS = (("AsyncLLM", r"vllm/|zmq/"), ("fake engine", r"service/engine/fake\.py"))
# The first that matches a frame, from the innermost frame outwards. Frames that match nothing are their caller's.
PARTS = (
    ("tokenizing", r"adapters/tokens\.py"),
    ("prompt", r"(prompt|body|limit|around|prompts) \(adapters/tasks/|_prompts? \(service"),
    ("reading", r"(read|sampling) \(adapters/tasks/"),
    ("metrics", r"prometheus_client/|service/metrics\.py|_record \("),
    ("monitoring", r"service/monitoring/|adapters/profile\.py|service/rollout/"),
    ("engine call", r"service/engine/"),
    ("JSON", r"service/http/body\.py|[( ]json/|msgspec|_to_json|model_dump"),
    ("validation", r"pydantic|Address\.read|fastapi/_compat|service/http/schemas\.py"),
    ("keys and quota", r"service/http/(access|keys|quota)\.py|limits/"),
    ("admission", r"service/serving/admission\.py"),
    ("choice", r"service/serving/(routing|residency)\.py|adapters/(reference|catalogue)\.py|_choose"),
    ("answering", r"service/serving/|service/tracing\.py|service/errors\.py"),
    ("routes", r"fastapi/|starlette/|service/http/(routes|middleware|problems|edge)|service/app\.py"),
    ("HTTP parsing", r"uvicorn/|h11/|httptools|service/http/connection\.py"),
)
REST = "event loop, other"
# What waits is in the kernel, or in uvloop: time, but not the processor's.
WAITING = re.compile(r"Runner\.run|Condition\.wait|WorkerThread\.run|_worker \(concurrent|select \(selectors|^$")


class _Front:
    """A server that is asked for one text or a batch of them a request."""

    port: int
    url: str
    process: Any

    def calls(self, texts: Sequence[str], batch: int) -> list[tuple[str, dict]]:
        raise NotImplementedError

    def api_processes(self) -> list[psutil.Process]:
        return [psutil.Process(self.process.id)]

    def _children(self, called: str) -> list[psutil.Process]:
        children = psutil.Process(self.process.id).children()
        return [child for child in children if called in " ".join(child.cmdline())]


class _Ours(Hotswap, _Front):
    engine = "vllm"

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"base_model": self.material.base.folder, "engine": self.engine}

    def calls(self, texts: Sequence[str], batch: int) -> list[tuple[str, dict]]:
        if batch == 1:
            return [("/v1/classify", {"adapter": NAME, "input": text}) for text in texts]
        return [("/v1/classify", {"adapter": NAME, "inputs": some}) for some in _batches(texts, batch)]


class _Fake(_Ours):
    name, engine = "ours, fake engine", "fake"


class _Vllm(Vllm, _Front):
    """Asked for the log-probabilities of the labels' tokens: the least work that classifies. It makes the tokens."""

    def calls(self, texts: Sequence[str], batch: int) -> list[tuple[str, dict]]:
        labels = self.material.classify[0].task.sampling({}).choices
        body = {"model": NAME, "max_tokens": 1, "temperature": 0, "logprobs": 1, "logprob_token_ids": labels}
        body["return_tokens_as_token_ids"] = True
        prompts = [TEMPLATE.format(text=text) for text in texts]
        return [("/v1/completions", {**body, "prompt": some}) for some in _batches(prompts, batch)]


class _OursTwice(_Ours):
    name = "ours, two processes"

    def _settings(self) -> dict[str, Any]:
        return super()._settings() | {"api_processes": 2}

    def api_processes(self) -> list[psutil.Process]:
        return super().api_processes() + self._children("service.processes.follower")


class _FakeTwice(_OursTwice):
    name, engine = "ours, fake engine, two processes", "fake"


class _VllmTwice(_Vllm):
    """With several API servers vLLM takes no adapters while it runs: it is started with them."""

    name = "vllm, two processes"

    def _server(self, arguments: list[str], environment: dict[str, str]) -> Process:
        shared = ["serve", str(self.material.base.folder), "--served-model-name", BASE, "--enable-lora"]
        shared += ["--host", "127.0.0.1", "--port", str(self.port), "--api-server-count", "2", "--lora-modules"]
        shared += [f"{adapter.name}={adapter.folder}" for adapter in self.material.classify]
        module = "vllm.entrypoints.cli.main"
        return Process(module, [*shared, *arguments], {"HF_HUB_OFFLINE": "1", **environment}, self.log, piped=False)

    def _load(self, adapters: list[Adapter]) -> None:
        """They are there."""

    def api_processes(self) -> list[psutil.Process]:
        return self._children("APIServer")


KINDS: dict[str, type[Any]] = {"fake": _Fake, "ours": _Ours, "vllm": _Vllm}
# Measured where they are named: on two cores, two processes have none for themselves.
MORE: dict[str, type[Any]] = {"fake2": _FakeTwice, "ours2": _OursTwice, "vllm2": _VllmTwice}


@dataclass
class Measured:
    """Of one server, by texts a request: CPU microseconds a request, and requests a second, one for each repeat."""

    cpu_us: dict[int, list[float]] = field(default_factory=lambda: {batch: [] for batch in LOAD})
    rates: dict[int, list[float]] = field(default_factory=lambda: {batch: [] for batch in LOAD})
    shares: dict[int, dict[str, float]] = field(default_factory=dict)

    def parts(self) -> dict[str, tuple[float, float]]:
        """Return part → CPU microseconds of a request with one text, and of a further text."""
        us = {n: {part: share * _median(self.cpu_us[n]) for part, share in self.shares[n].items()} for n in self.shares}
        names = [part for part, _ in (*OWNERS, *PARTS)] + [REST]
        return {
            part: (us[1].get(part, 0.0), (us[BATCH].get(part, 0.0) - us[1].get(part, 0.0)) / (BATCH - 1))
            for part in names
            if part in us[1] or part in us[BATCH]
        }

    @property
    def further_us(self) -> list[float]:
        return [(many - one) / (BATCH - 1) for one, many in zip(self.cpu_us[1], self.cpu_us[BATCH], strict=True)]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench.front",
        description="Measure the API process: ours on an engine that answers at once, ours on vLLM with a tiny base, "
        "and vLLM's own server with the same base, in turns. Writes front.json.",
        epilog="example: python -m loadtests.bench.front --only fake",
    )
    parser.add_argument("--only", default=",".join(KINDS), metavar="A,B", help=f"some of: {', '.join(KINDS | MORE)}")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="interleaved repeats (3)")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="default: loadtests/results")
    parser.set_defaults(command=_bench)
    return cli.run(parser)


def _bench(options: argparse.Namespace) -> int:
    chosen = options.only.split(",")
    if options.repeats < 1 or not set(chosen) <= set(KINDS | MORE):
        raise HotswapError(f"--repeats is 1 or more, and --only some of {', '.join(KINDS | MORE)}.")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # as our service has it for vLLM
    with tempfile.TemporaryDirectory(prefix="hotswap-front-") as scratch, ExitStack() as stack:
        material = make_small(Path(scratch))
        servers = {name: (KINDS | MORE)[name](material, Path(scratch)) for name in chosen}
        for server in servers.values():
            server.start(stack)
        measured = _measured(servers, material, options.repeats, Path(scratch))
    told = results(measured)
    if set(chosen) == set(KINDS):
        options.output.mkdir(parents=True, exist_ok=True)
        (options.output / "front.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1) if options.json else text(told))
    return 0


def _measured(servers: dict[str, Any], material: Material, repeats: int, scratch: Path) -> dict[str, Measured]:
    measured = {name: Measured() for name in servers}
    for server in servers.values():
        with server.awake():
            server.load(material.classify)
            for batch in LOAD:
                _drive(server, material.reviews, batch, part=0.3)
    for repeat in range(repeats):
        for name, server in servers.items():
            _say(f"repeat {repeat + 1} of {repeats}: {server.name}")
            with server.awake():
                for batch in LOAD:
                    cpu, rate = _drive(server, material.reviews, batch)
                    measured[name].cpu_us[batch].append(cpu)
                    measured[name].rates[batch].append(rate)
    for name, server in servers.items():
        if name not in ("vllm", *MORE):
            with server.awake():
                for batch in LOAD:
                    measured[name].shares[batch] = _shares(server, material.reviews, batch, scratch / "stacks")
    return measured


def _drive(server: Any, texts: Sequence[str], batch: int, part: float = 1.0) -> tuple[float, float]:
    """Return CPU microseconds a request, and requests a second."""
    requests, in_flight = round(LOAD[batch][0] * part), LOAD[batch][1]
    calls = server.calls([texts[i % len(texts)] for i in range(requests * batch)], batch)
    before = _cpu_seconds(server)
    seconds, _, answers = drive(server.url, calls, in_flight)
    cpu = _cpu_seconds(server) - before
    if any("error" in str(answer)[:20] or not answer for answer in answers):
        raise Failed(f"{server.name} did not answer every text")
    return 1e6 * cpu / requests, requests / seconds


def _cpu_seconds(server: Any) -> float:
    return float(sum(sum(process.cpu_times()[:2]) for process in server.api_processes()))


def _shares(server: Any, texts: Sequence[str], batch: int, stacks: Path) -> dict[str, float]:
    """Return part → share of the process's CPU time; nothing where there is no py-spy."""
    spy = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if spy is None:
        return {}
    stacks.unlink(missing_ok=True)
    command = [spy, "record", "--pid", str(server.process.id), "--rate", str(SAMPLES_A_SECOND), "--format", "raw"]
    # Without --nonblocking the process would be stopped for every look at it.
    sampler = subprocess.Popen(
        [*command, "--nonblocking", "--output", str(stacks)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    time.sleep(1)
    cpu, _ = _drive(server, texts, batch)
    sampler.send_signal(signal.SIGINT)
    sampler.wait(30)
    found: Counter[str] = Counter()
    for line in stacks.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not WAITING.search(frames[-1]):
            found[part_of(frames)] += int(count)
    # Samples are taken by the clock: where somebody else had the processor meanwhile, there are too many.
    total = max(sum(found.values()), SAMPLES_A_SECOND * cpu * LOAD[batch][0] / 1e6)
    found[REST] += round(total - sum(found.values()))
    return {part: count / total for part, count in found.most_common()}


def part_of(stack: Sequence[str]) -> str:
    """Return the part that a stack, its innermost frame last, belongs to."""
    for owner, pattern in OWNERS:
        if any(re.search(pattern, frame) for frame in stack):
            return owner
    for frame in reversed(stack):
        for part, pattern in PARTS:
            if re.search(pattern, frame):
                return part
    return REST


def results(measured: dict[str, Measured]) -> dict[str, Any]:
    """Return everything, as it is written to ``front.json``."""
    told: dict[str, Any] = {
        "machine": describe(),
        "aims": {**AIMS, "own_us": OWN_AIM},
        "servers": {},
        "parts": {},
        "ratios": {},
    }
    for name, found in measured.items():
        told["servers"][name] = {
            "request_us": spread(found.cpu_us[1]),
            "batch_us": spread(found.cpu_us[BATCH]),
            "further_text_us": spread(found.further_us),
            "requests_per_second": spread(found.rates[1]),
            "batched_texts_per_second": spread([BATCH * rate for rate in found.rates[BATCH]]),
        }
        if all(found.shares.values()) and found.shares:
            told["parts"][name] = found.parts()
    if {"ours", "vllm"} <= set(measured):
        ours, theirs = measured["ours"], measured["vllm"]
        for batch, ratio in ((1, "one_text_vs_vllm"), (BATCH, "32_texts_vs_vllm")):
            told["ratios"][ratio] = spread(_over(theirs.cpu_us[batch], ours.cpu_us[batch]))
            told["ratios"][f"{ratio}_by_the_clock"] = spread(_over(ours.rates[batch], theirs.rates[batch]))
    return told


def text(told: dict[str, Any]) -> str:
    keys = ("request_us", "further_text_us", "requests_per_second", "batched_texts_per_second")
    rows = [(name, *(f"{found[key]['median']:.0f}" for key in keys)) for name, found in told["servers"].items()]
    parts = [table(("API PROCESS", "CPU US A REQUEST", "A FURTHER TEXT", "REQUESTS/S", "TEXTS/S BY 32"), rows)]
    for name, found in told["parts"].items():
        lines = [(part, f"{one:.0f}", f"{more:.1f}") for part, (one, more) in found.items()]
        own = [costs for part, costs in found.items() if part not in dict(OWNERS)]
        one, more = (sum(column) for column in zip(*own, strict=True))
        lines.append((f"all but the engine (aim: {OWN_AIM[0]}, {OWN_AIM[1]})", f"{one:.0f}", f"{more:.1f}"))
        parts.append(table((f"PART OF {name.upper()}", "US A REQUEST", "A FURTHER TEXT"), lines))
    ratios = [
        (ratio, *(f"{found[key]:.2f}" for key in ("median", "min", "max")), str(AIMS.get(ratio, "")))
        for ratio, found in told["ratios"].items()
    ]
    if ratios:
        parts.append(table(("TEXTS A CPU SECOND", "MEDIAN", "MIN", "MAX", "AIM"), ratios))
    return "\n\n".join(parts)


def _over(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


def _batches(texts: Sequence[str], batch: int) -> list[list[str]]:
    return [list(texts[at : at + batch]) for at in range(0, len(texts), batch)]


def _median(values: Sequence[float]) -> float:
    return statistics.median(values)


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
