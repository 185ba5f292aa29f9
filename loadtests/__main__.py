"""``python -m loadtests``: Locust on the service at HOTSWAP_URL or port 8000, or on one that is started for it."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from loadtests import run_locust
from loadtests.serving import ready, say, service

DEFAULT, SECONDS = "http://127.0.0.1:8000", 30
REPORT = Path("var", "loadtest.html")


def main() -> int:
    url = os.environ.get("HOTSWAP_URL", DEFAULT)
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
        users = sys.argv[1:] or ["Classify", "Summarize", "Batch", "Stream", "OpenAI", "Many"]
        done = run_locust(url, SECONDS, users=users, more=["--html", str(REPORT)])
    print(done.stdout)
    say(f"{done.stderr if done.returncode else ''}report: {REPORT}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
