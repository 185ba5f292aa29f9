"""``python -m loadtests.overhead``: what metrics, feedback, logs and traces cost of the throughput."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from statistics import median, quantiles

import psutil

from adapters import cli
from loadtests.serving import ready, say, service
from loadtests.traffic import Ask, connect, send

RESULTS = Path(__file__).parent / "results" / "overhead.json"
TEXT = "The second half of the film number {n} drags, but its two leads and the music more than make up for it."
IN_FLIGHT = 32
NUMBERS = count()
OFF = {"engine_metrics": "false", "feedback_database": "off", "log_level": "error"}
ON = {"engine_metrics": "true", "feedback_texts": "plain", "log_format": "json"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.overhead",
        description="Two services side by side, asked in turns: one with everything on (vLLM's metrics, feedback "
        "with texts in a database, a JSON line and a trace for each request), one without. Writes overhead.json.",
        epilog="example: python -m loadtests.overhead --turns 20 --seconds 5",
    )
    parser.add_argument("--turns", type=int, default=20, help="of each (20)")
    parser.add_argument("--seconds", type=float, default=5, help="of each turn (5)")
    parser.set_defaults(command=lambda options: asyncio.run(compare(options)))
    return cli.run(parser)


async def compare(options: argparse.Namespace) -> int:
    turns: dict[str, list[Turn]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory(prefix="hotswap-overhead-") as made, collector() as endpoint, ExitStack() as stack:
        scratch = Path(made)
        sides = {
            "off": stack.enter_context(served(scratch / "off", OFF, "")),
            "on": stack.enter_context(served(scratch / "on", ON, endpoint)),
        }
        for side in sides.values():
            await turn(side, 3.0)  # to warm up
        for n in range(options.turns):
            for name in ("off", "on") if n % 2 == 0 else ("on", "off"):
                turns[name].append(await turn(sides[name], options.seconds))
            off, on = (turns[name][-1] for name in ("off", "on"))
            say(f"answers/s {off.rate:.1f} off, {on.rate:.1f} on; CPU {off.cost:.2f} and {on.cost:.2f} ms an answer")
    pairs = list(zip(turns["off"], turns["on"], strict=True))
    told = {
        "throughput on/off": quartiles([on.rate / off.rate for off, on in pairs]),
        "cpu on/off": quartiles([on.cost / off.cost for off, on in pairs]),
        "cpu ms an answer": {name: round(median(each.cost for each in all_), 3) for name, all_ in turns.items()},
        "answers a second": {name: round(median(each.rate for each in all_), 1) for name, all_ in turns.items()},
        "in flight": IN_FLIGHT,
        "turns": options.turns,
        "seconds": options.seconds,
    }
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    return 0


@dataclass(frozen=True)
class Turn:
    """Answers a second, and milliseconds of CPU, of all processes, an answer."""

    rate: float
    cost: float


@contextmanager
def served(scratch: Path, settings: dict[str, str], endpoint: str) -> Iterator[tuple[str, int]]:
    """Serve, ready; yield address and process id."""
    scratch.mkdir()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    with service(scratch / "log", cache_gib=1, store=scratch / "store", **settings) as (url, process):
        while not ready(url):
            time.sleep(0.5)
        yield url, process.id


async def turn(side: tuple[str, int], seconds: float) -> Turn:
    """Ask for so long, an answer's caller at once again."""
    url, pid = side
    answered = 0
    async with connect(url) as client:

        async def ask(until: float) -> None:
            nonlocal answered
            while time.monotonic() < until:
                body = {"adapter": "sentiment", "input": TEXT.format(n=next(NUMBERS))}
                outcome = await send(client, Ask("sentiment", 0, body), asyncio.get_running_loop().time())
                answered += outcome.status == 200

        began, used = time.monotonic(), cpu_seconds(pid)
        await asyncio.gather(*(ask(began + seconds) for _ in range(IN_FLIGHT)))
        return Turn(answered / (time.monotonic() - began), 1000 * (cpu_seconds(pid) - used) / answered)


def cpu_seconds(pid: int) -> float:
    server = psutil.Process(pid)
    times = [each.cpu_times() for each in (server, *server.children(recursive=True))]
    return sum(each.user + each.system for each in times)


def quartiles(values: list[float]) -> list[float]:
    return [round(value, 4) for value in quantiles(values, n=4)]


@contextmanager
def collector() -> Iterator[str]:
    """Take spans, and throw them away."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


if __name__ == "__main__":
    sys.exit(main())
