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
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from pathlib import Path
from statistics import median

from adapters import cli
from loadtests.serving import ready, say, service
from loadtests.traffic import Ask, connect, send

RESULTS = Path(__file__).parent / "results" / "overhead.json"
TEXT = "The second half of the film number {n} drags, but its two leads and the music more than make up for it."
IN_FLIGHT = 32
OFF = {"engine_metrics": "false", "feedback_database": "off", "log_level": "error"}
ON = {"engine_metrics": "true", "feedback_texts": "plain", "log_format": "json"}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.overhead",
        description="Serve in turns with everything on (vLLM's metrics, feedback in a database with texts, a JSON line "
        "and a trace for each request) and with what can be off, off; count answers. Writes overhead.json.",
        epilog="example: python -m loadtests.overhead --turns 3 --seconds 20",
    )
    parser.add_argument("--turns", type=int, default=3, help="of each (3)")
    parser.add_argument("--seconds", type=float, default=20, help="of each turn (20)")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> int:
    rates: dict[str, list[float]] = {"off": [], "on": []}
    with tempfile.TemporaryDirectory(prefix="hotswap-overhead-") as scratch, collector() as endpoint:
        for turn in range(options.turns):
            for name, settings in (("off", OFF), ("on", ON)) if turn % 2 == 0 else (("on", ON), ("off", OFF)):
                rate = asyncio.run(measured(Path(scratch), settings, endpoint if name == "on" else "", options.seconds))
                rates[name].append(round(rate, 1))
                say(f"{name}: {rate:.1f} answers/s")
    ratio = median(rates["on"]) / median(rates["off"])
    told = {"answers a second": rates, "on/off": round(ratio, 4), "in flight": IN_FLIGHT, "seconds": options.seconds}
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told))
    return 0


async def measured(scratch: Path, settings: dict[str, str], endpoint: str, seconds: float) -> float:
    """Return the answers a second of a service of its own, all of them right away asked again."""
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = endpoint
    numbers, answered = count(), 0
    with service(scratch / "service.log", cache_gib=1, store=scratch / "store", **settings) as (url, _):
        while not ready(url):
            await asyncio.sleep(0.5)
        async with connect(url) as client:

            async def ask(until: float) -> None:
                nonlocal answered
                while time.monotonic() < until:
                    body = {"adapter": "sentiment", "input": TEXT.format(n=next(numbers))}
                    outcome = await send(client, Ask("sentiment", 0, body), asyncio.get_running_loop().time())
                    answered += outcome.status == 200

            for length in (3.0, seconds):  # the first to warm up
                answered, began = 0, time.monotonic()
                await asyncio.gather(*(ask(began + length) for _ in range(IN_FLIGHT)))
                took = time.monotonic() - began
    return answered / took


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
