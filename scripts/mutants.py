"""Change one thing in the serving core or the store, run the tests that reach it, and see whether one fails.

    make mutants ONLY=service/serving/routing.py    one module
    make mutants SAMPLE=60                          the same sixty of all, every time
    make mutants                                    all of them: hours

What is changed and by which tests it is held is in pyproject.toml, [tool.mutmut]; results are kept in mutants/.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

from mutmut.__main__ import copy_also_copy_files, copy_src_dir, create_mutants, setup_source_paths
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

KILLED = ("killed", "timeout", "segfault", "caught by type check")
SEED = 16


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="FILE", help="a module, as service/serving/routing.py")
    parser.add_argument("--sample", type=int, metavar="N", help="so many mutants, chosen by a fixed seed")
    given = parser.parse_args()
    names = sorted(name for path in generate() if given.only in (None, path) for name in results(path))
    if not names:
        parser.error(f"--only: nothing is changed in {given.only}; [tool.mutmut] in pyproject.toml lists the modules")
    if given.sample:
        names = random.Random(SEED).sample(names, min(given.sample, len(names)))  # noqa: S311 - a sample
    status = subprocess.run([sys.executable, "-m", "mutmut", "run", *names]).returncode
    show(set(names))
    return status


def generate() -> list[str]:
    """Write every mutant into ``mutants/``; return the modules."""
    copy_src_dir()
    copy_also_copy_files()
    setup_source_paths()
    create_mutants(1)
    return [str(path) for path in walk_mutatable_files()]


def results(path: str) -> dict[str, int | None]:
    """Return the mutants of a module, and what became of each: a code that mutmut explains."""
    meta = Path("mutants", f"{path}.meta")
    codes: dict[str, int | None] = json.loads(meta.read_text())["exit_code_by_key"] if meta.exists() else {}
    return codes


def show(names: set[str]) -> None:
    total: Counter[bool] = Counter()
    for path in map(str, walk_mutatable_files()):
        fates = {name: status_by_exit_code[code] for name, code in results(path).items() if name in names}
        killed = Counter(fate in KILLED for fate in fates.values())
        total += killed
        if fates:
            print(f"{path:40} {killed[True]:4} of {len(fates):4} noticed")
        for name, fate in fates.items():
            if fate not in KILLED:
                print(f"    {fate}: python -m mutmut show {name}")
    print(f"{'all':40} {total[True]:4} of {sum(total.values()):4} noticed")


if __name__ == "__main__":
    sys.exit(main())
