"""``python -m loadtests``: Locust on the service at HOTSWAP_URL or port 8000, or on one that is started for it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from adapters import cli
from adapters.errors import HotswapError
from loadtests import run_locust
from loadtests.serving import ready, say, service

DEFAULT, SECONDS = "http://127.0.0.1:8000", 30
REPORT = Path("var", "loadtest.html")
# Of loadtests/callers.py, which only Locust may import: it replaces the sockets of the process.
USERS = ("Classify", "Summarize", "Batch", "Stream", "OpenAI", "Many")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests",
        description=f"Locust for {SECONDS} s, on the service at HOTSWAP_URL or port 8000, or on one started for "
        f"it. Writes {REPORT}. Settings: docs/deploying.md.",
        epilog="example: HOTSWAP_LOAD_RATE=5 python -m loadtests Classify Many",
    )
    parser.add_argument(
        "users", nargs="*", metavar="USER", help=f"of {', '.join(USERS)}, Releaser; default: all but it"
    )
    parser.set_defaults(command=command)
    options = parser.parse_args()
    if unknown := set(options.users) - {*USERS, "Releaser"}:
        parser.error(f"there is no {', '.join(sorted(unknown))}: there are {', '.join(USERS)} and Releaser")
    if "Releaser" in options.users and "HOTSWAP_LOAD_ADMIN_KEY" not in os.environ:
        parser.error("Releaser needs HOTSWAP_LOAD_ADMIN_KEY, a key with the scope admin")
    return cli.run(parser)


def command(options: argparse.Namespace) -> int:
    url = os.environ.get("HOTSWAP_URL", DEFAULT).rstrip("/")
    with ExitStack() as stack:
        if not ready(url):
            if "HOTSWAP_URL" in os.environ:
                say(f"HOTSWAP_URL={url} does not answer /readyz.")
                return 2
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotswap-load-")))
            say("nothing is served here: starting a service for the load test")
            url, process = stack.enter_context(service(scratch / "service.log", store=scratch / "store"))
            process.wait(lambda: ready(url))
        REPORT.parent.mkdir(exist_ok=True)
        try:
            done = run_locust(url, SECONDS, users=options.users or USERS, more=["--html", str(REPORT)])
        except subprocess.TimeoutExpired as error:
            raise HotswapError(f"Locust did not end within {error.timeout:.0f} s, and was ended.") from None
    print(done.stdout)
    say(f"{done.stderr if done.returncode else ''}report: {REPORT}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
