"""Our engine by itself: JSON lines in, JSON lines out.

    echo '{"requests": [[null, [1, 2, 3], 4, []]], "in_flight": 1}' | python -m loadtests.bench.engine --kernel grouped

``{"load": {name: folder}}`` makes adapters resident. A request is (adapter or null, prompt, most tokens, token ids
to be scored instead of text).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Literal, TextIO

from adapters.base_model import resolve_base
from adapters.packages import cache_folder
from adapters.tasks import Sampling
from loadtests.bench.limits import DTYPE, KV_GIB, LORAS, MODEL_LEN, RANK, SEQUENCES
from service.engine.launch import relaunch
from service.engine.vllm import VllmEngine
from service.settings import Settings


def settings(kernel: Literal["grouped", "stock"], **others: Any) -> Settings:
    ours = {
        "max_loras": LORAS,
        "max_lora_rank": RANK,
        "max_model_len": MODEL_LEN,
        "max_concurrency": SEQUENCES,
        "kv_cache_gib": KV_GIB,
        "dtype": DTYPE,
        "cpu_lora": kernel,
    }
    return Settings.model_validate(ours | others)


async def serve(engine: VllmEngine, lines: TextIO, out: TextIO) -> None:
    """Answer every line until there are no more."""
    await engine.start()
    try:
        print("{}", file=out, flush=True)
        while line := await asyncio.to_thread(lines.readline):
            order = json.loads(line)
            for name, folder in order.get("load", {}).items():
                await engine.load(name, Path(folder))
            told = await batch(engine, order["requests"], order["in_flight"]) if "requests" in order else {}
            print(json.dumps(told), file=out, flush=True)
    finally:
        await engine.stop()


async def batch(
    engine: VllmEngine, requests: list[tuple[str | None, list[int], int, list[int]]], in_flight: int
) -> dict:
    """Run the requests; return the seconds for all and for each, the answers (text or scores), and their tokens."""
    latencies, tokens = [0.0] * len(requests), 0
    answers: list[str | list[float]] = [""] * len(requests)
    waiting = iter(range(len(requests)))

    async def work() -> None:
        nonlocal tokens
        for number in waiting:
            adapter, prompt, max_tokens, choices = requests[number]
            began = time.perf_counter()
            async for chunk in engine.generate(prompt, Sampling(max_tokens, tuple(choices)), adapter):
                tokens += chunk.tokens
                answers[number] = [chunk.logprobs[token] for token in choices] if choices else chunk.text
            latencies[number] = time.perf_counter() - began

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(min(in_flight, len(requests))):
            group.create_task(work())
    return {"seconds": time.perf_counter() - began, "latencies": latencies, "answers": answers, "tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel", choices=("grouped", "stock"), default="grouped", help="how LoRA is computed")
    parser.add_argument("--settings", type=json.loads, default={}, help="others than the benchmark's, as JSON")
    options = parser.parse_args()
    chosen = settings(options.kernel, **options.settings)
    relaunch(chosen)
    # What vLLM prints on standard output goes where errors go: the answers alone are read by a program.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    asyncio.run(serve(VllmEngine(chosen, resolve_base(None, cache_folder())), sys.stdin, out))


if __name__ == "__main__":
    main()
