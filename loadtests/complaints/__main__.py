"""``python -m loadtests.complaints``: what users complain of, tried on stock vLLM's server and on ours."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

import httpx

from adapters import cli
from adapters.errors import HotswapError
from loadtests.complaints.adapters import make_material
from loadtests.complaints.points import POINTS
from loadtests.complaints.servers import Ours, Stock
from loadtests.serving import say

RESULTS = Path(__file__).parents[1] / "results"
SERVERS = {"vllm": Stock, "hotswap": Ours}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.complaints",
        description="Start stock vLLM's server, then ours, and try on each what users of such servers complain of. "
        "Nothing depends on time. Writes complaints.json and prints a table in Markdown.",
        epilog="example: python -m loadtests.complaints --only hotswap",
    )
    parser.add_argument("--only", choices=SERVERS, help="one server; what was found of the other is kept")
    parser.add_argument("--adapters", type=int, default=40, metavar="N", help="to load and unload (40)")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="default: loadtests/results")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> int:
    path = options.output / "complaints.json"
    options.output.mkdir(parents=True, exist_ok=True)
    told: dict[str, Any] = json.loads(path.read_text()) if options.only and path.exists() else {}
    told["vllm_version"] = version(packages_distributions()["vllm"][0])
    for name in [options.only] if options.only else SERVERS:
        with tempfile.TemporaryDirectory(prefix="hotswap-complaints-") as scratch:
            say(f"{name}: making adapters")
            told[name] = {}
            server = SERVERS[name](make_material(Path(scratch), options.adapters))
            say(f"{name}: starting it")
            try:
                server.start()
                for point, look in POINTS.items():
                    try:
                        verdict, seen = look(server)
                    except (HotswapError, httpx.HTTPError) as error:
                        verdict, seen = "could not be tried", {"error": f"{type(error).__name__}: {error}"}
                    told[name][point] = {"verdict": verdict, "seen": seen}
                    say(f"{name}: {point}: {verdict}")
                    path.write_text(json.dumps(told, indent=1) + "\n")
            finally:
                server.stop()
    print(table(told))
    return 0


def table(told: dict[str, Any]) -> str:
    """Return the verdicts side by side, in Markdown."""
    rows = [f"| complaint | stock vLLM {told['vllm_version']} | hotswap |", "|---|---|---|"]
    for point in POINTS:
        cells = [told.get(name, {}).get(point, {}).get("verdict", "–") for name in SERVERS]
        rows.append("| " + " | ".join([point, *cells]) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
