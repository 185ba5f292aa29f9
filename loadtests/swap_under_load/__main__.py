"""``python -m loadtests.swap_under_load``: the proof that versions change without a lost, late or wrong answer."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from adapters import cli
from adapters.errors import HotswapError
from loadtests.swap_under_load import report
from loadtests.swap_under_load.run import Plan, run

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.swap_under_load",
        description="Start the service, offer it requests at a constant rate, and meanwhile publish, try out, promote, "
        "replace and roll back versions. Every answer must be that of the weights it names, and of a version that was "
        "released at the time. The machine must be idle otherwise. Writes swap_under_load.json.",
        epilog="example: python -m loadtests.swap_under_load --seconds 60 --rate 5",
    )
    parser.add_argument("--seconds", type=float, default=300, help="how long versions change (300)")
    parser.add_argument("--quiet", type=float, help="how long nothing does, in between (a third of it)")
    parser.add_argument("--adapters", type=int, default=8, metavar="N", help="adapters that share the requests (8)")
    parser.add_argument(
        "--rate",
        type=float,
        default=10,
        help="requests a second (10: about half of what two cores can do with the default base)",
    )
    parser.add_argument("--every", type=float, default=2, metavar="SECONDS", help="from change to change (2)")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="API processes that answer (1)")
    parser.add_argument("--base", help="folder or Hugging Face id of another base model")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of a table")
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="default: loadtests/results")
    parser.set_defaults(command=command)
    return cli.run(parser)


def command(options: argparse.Namespace) -> int:
    if min(options.seconds, options.rate, options.every, options.adapters, options.processes) <= 0:
        raise HotswapError("--seconds, --rate, --every, --adapters and --processes are more than 0.")
    quiet = options.seconds / 3 if options.quiet is None else options.quiet
    plan = Plan(options.seconds, quiet, options.rate, options.every, options.adapters, options.base, options.processes)
    with tempfile.TemporaryDirectory(prefix="hotswap-swaps-") as scratch:
        told = report.results(run(plan, Path(scratch)))
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "swap_under_load.json").write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told, indent=1) if options.json else report.text(told))
    complaints = report.complaints(told)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
