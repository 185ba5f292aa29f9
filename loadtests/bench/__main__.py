"""``python -m loadtests.bench``: what hotswap gains, as ratios with their spread."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from adapters import cli
from adapters.errors import HotswapError
from loadtests.bench import plan, report
from loadtests.bench.bench import Bench
from loadtests.bench.material import make_material

GROUPS = list(dict.fromkeys(group.name for group in plan.full().groups))


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench",
        description="Measure ours, stock vLLM (tuned alike and as installed) and FastAPI with PEFT on the same work, "
        "in turns. The machine must be idle otherwise. Writes bench.json and bench.svg.",
        epilog="example: python -m loadtests.bench --only classify,kernels --repeats 5",
    )
    parser.add_argument("--quick", action="store_true", help="less of everything, in under 4 minutes on two cores")
    parser.add_argument("--only", type=_groups, default=[], metavar="A,B", help=f"some of: {', '.join(GROUPS)}")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="interleaved repeats (3)")
    parser.add_argument("--json", action="store_true", help="print the JSON instead of tables")
    parser.add_argument("--output", type=Path, default=report.RESULTS, metavar="DIR", help="default: loadtests/results")
    parser.set_defaults(command=bench)
    return cli.run(parser)


def bench(options: argparse.Namespace) -> int:
    if options.repeats < 1:
        raise HotswapError("--repeats is 1 or more; 3 or more show a spread.")
    chosen = (plan.quick if options.quick else plan.full)(options.only)
    with tempfile.TemporaryDirectory(prefix="hotswap-bench-") as scratch, ExitStack() as stack:
        print(f"making {chosen.adapters} adapters and more; then servers start", file=sys.stderr, flush=True)
        material = make_material(Path(scratch), chosen.adapters)
        run = Bench(chosen, material, options.repeats, Path(scratch), stack)
        run.run()
        told = report.results(run)
    report.write(told, options.output)
    print(json.dumps(told, indent=1) if options.json else report.text(told))
    return 0


def _groups(text: str) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in GROUPS:
            raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(GROUPS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
