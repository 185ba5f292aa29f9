"""``python -m loadtests.llama_cpp``: our service in float32 beside llama.cpp's server, which can pack the base.

llama.cpp is built from its source (any release; tried with commit 0c1e570), with cmake's targets llama-server and
llama-quantize. Its server takes an adapter by request, as ours does; texts of different adapters it reads in turns.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from adapters import cli
from adapters.errors import HotswapError
from loadtests.bench.machine import describe
from loadtests.bench.material import RELEASED, Adapter, Material, make_material
from loadtests.bench.process import Process, last_words
from loadtests.bench.report import RESULTS, table
from loadtests.bench.servers import Hotswap, HttpServer
from loadtests.bench.workload import Request, Sample, Workload
from loadtests.serving import say

PACKED = ("F32", "Q8_0", "Q4_1")
SLOTS, CONTEXT = 16, 1024
# No other token than a label's can win against this, and among labels it changes nothing.
BIAS = 1000.0
WORKLOADS = (
    Workload("classify, 4 adapters mixed, 32 in flight", "classify", 4, 32, 32),
    Workload("classify, 1 adapter, 32 in flight", "classify", 1, 32, 32),
    Workload("classify, base, 32 in flight", "classify", 0, 32, 32),
    Workload("summarize, 4 adapters mixed, 8 in flight", "summarize", 4, 8, 8),
    Workload("summarize, 1 adapter, 8 in flight", "summarize", 1, 8, 8),
    Workload("summarize, 1 adapter, 1 in flight", "summarize", 1, 1, 4),
)


class LlamaCpp(HttpServer):
    """llama-server over the base packed in some way, with all adapters, none of them applied unless asked for."""

    def __init__(self, material: Material, scratch: Path, llama: Llama, packed: str) -> None:
        self.name, self._llama, self._packed = f"llama.cpp {packed}", llama, packed
        super().__init__(material, scratch)

    def _process(self) -> Process:
        arguments = ["--model", str(self._llama.model(self._packed)), "--host", "127.0.0.1", "--port", str(self.port)]
        arguments += ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT), "--no-webui", "--no-cache-prompt"]
        arguments += ["--threads", str(os.cpu_count()), "--lora-init-without-apply"]
        arguments += ["--lora", ",".join(map(str, self._llama.adapters.values()))]
        return Process(str(self._llama.server), arguments, {}, self.log, piped=False)

    def _load(self, adapters: list[Adapter]) -> None:
        """They are there: it takes none while it runs."""

    def _call(self, workload: Workload, request: Request) -> tuple[str, dict]:
        mine = request.adapter
        body: dict[str, Any] = {"prompt": request.prompt, "temperature": 0, "n_predict": request.sampling.max_tokens}
        body["lora"] = [
            {"id": place, "scale": float(mine is not None and name == mine.name)}
            for place, name in enumerate(self._llama.adapters)
        ]
        if request.sampling.choices:
            body["logit_bias"] = [[token, BIAS] for token in request.sampling.choices]
        return "/completion", body

    def _read(self, request: Request, answer: Any) -> tuple[str, int]:
        return answer["content"].strip(), answer["tokens_predicted"]


class Llama:
    """llama.cpp's programs, and what it makes of the base and the adapters, once each, in ``scratch``."""

    def __init__(self, source: Path, build: Path, scratch: Path, material: Material) -> None:
        self._source, self._build, self._scratch = source, build, scratch
        self.server = (build / "bin" / "llama-server").resolve()
        programs = (self.server, build / "bin" / "llama-quantize")
        if not all(program.is_file() for program in programs) or not (source / "convert_lora_to_gguf.py").is_file():
            raise HotswapError(
                f"{build} has no bin/llama-server and bin/llama-quantize, or {source} is not the source: build them."
            )
        self._base = material.base.folder
        self._convert("convert_hf_to_gguf.py", self._base, scratch / "F32.gguf")
        chosen = (*material.classify[:RELEASED], *material.summarize[:RELEASED])
        self.adapters: dict[str, Path] = {}
        for adapter in chosen:
            file = scratch / f"{adapter.name}.gguf"
            self._convert("convert_lora_to_gguf.py", adapter.folder, file, "--base", str(self._base))
            self.adapters[adapter.name] = file

    def model(self, packed: str) -> Path:
        file = self._scratch / f"{packed}.gguf"
        if not file.exists():
            _run([self._build / "bin" / "llama-quantize", self._scratch / "F32.gguf", file, packed])
        return file

    def _convert(self, script: str, folder: Path, file: Path, *more: str) -> None:
        command = [sys.executable, self._source / script, folder, "--outfile", file, "--outtype", "f32", *more]
        _run(command, PYTHONPATH=str(self._source / "gguf-py"))


def _run(command: Sequence[str | Path], **environment: str) -> None:
    """Run one of llama.cpp's programs. Raises :class:`HotswapError` with its last words."""
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HotswapError(f"{' '.join(map(str, command[:2]))} failed: {last_words(done.stderr)}")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.llama_cpp",
        description="Measure our service and llama.cpp's server, in turns, on the same texts. Writes llama_cpp.json.",
        epilog="example: python -m loadtests.llama_cpp --source llama.cpp --build llama.cpp/build",
    )
    parser.add_argument("--source", type=Path, required=True, metavar="DIR", help="llama.cpp's source")
    parser.add_argument("--build", type=Path, required=True, metavar="DIR", help="where it was built")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="in turns (3)")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory(prefix="hotswap-llama-") as made, ExitStack() as stack:
        scratch = Path(made)
        material = make_material(scratch, RELEASED)
        llama = Llama(options.source, options.build, scratch, material)
        kinds = [Hotswap, *(partial(LlamaCpp, llama=llama, packed=packed) for packed in PACKED)]
        servers = [kind(material, scratch) for kind in kinds]
        for server in servers:
            server.start(stack)
        samples = _measured(servers, material, options.repeats)
        told = {"machine": describe(), "start_seconds": {}, "gib": {}, "workloads": _results(samples)}
        for server in servers:
            told["start_seconds"][server.name] = round(server.start_seconds, 1)
            told["gib"][server.name] = round(server.process.peak_gib, 2)
    (RESULTS / "llama_cpp.json").write_text(json.dumps(told, indent=1) + "\n")
    print(text(told))


def _measured(servers: Iterable[HttpServer], material: Material, repeats: int) -> dict[tuple[str, str], list[Sample]]:
    samples: dict[tuple[str, str], list[Sample]] = {}
    start = 0
    for repeat in range(repeats + 1):  # the first warms up
        for workload in WORKLOADS:
            requests = workload.requests(material, start)
            start += workload.texts
            for server in servers:
                say(f"repeat {repeat} of {repeats}: {workload.name}: {server.name}")
                with server.awake():
                    server.load(request.adapter for request in requests)
                    sample = server.run(workload, requests)
                if repeat:
                    samples.setdefault((workload.name, server.name), []).append(sample)
    return samples


def _results(samples: dict[tuple[str, str], list[Sample]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return workload → server → texts a second, p95, and how much of it was answered as ours does."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (workload, server), mine in samples.items():
        ours = samples[workload, Hotswap.name]
        pairs = [pair for a, b in zip(ours, mine, strict=True) for pair in zip(a.answers, b.answers, strict=True)]
        ratios = [a.texts_per_second / b.texts_per_second for a, b in zip(ours, mine, strict=True)]
        found.setdefault(workload, {})[server] = {
            "texts_per_second": round(median(sample.texts_per_second for sample in mine), 2),
            "p95": round(median(sample.p95 for sample in mine), 3),
            "ours_over_it": round(median(ratios), 2),
            "answers_equal": round(sum(one == other for one, other in pairs) / len(pairs), 3),
        }
    return found


def text(told: dict[str, Any]) -> str:
    rows = [
        (workload, server, *(str(value) for value in values.values()))
        for workload, servers in told["workloads"].items()
        for server, values in servers.items()
    ]
    sizes = [(name, str(gib), str(told["start_seconds"][name])) for name, gib in told["gib"].items()]
    heads = ("WORKLOAD", "SERVER", "TEXTS/S", "P95 S", "OURS OVER IT", "ANSWERS EQUAL")
    return f"{table(heads, rows)}\n\n{table(('SERVER', 'GIB', 'START S'), sizes)}"


if __name__ == "__main__":
    sys.exit(main())
