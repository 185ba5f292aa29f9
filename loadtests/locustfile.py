"""Load on a running service, at a stated offered rate.

    locust -f loadtests/locustfile.py --headless -u 10 -r 10 -t 30s --host http://127.0.0.1:8000
    locust -f loadtests/locustfile.py Classify Many …       # some of loadtests/callers.py only

Exit status 1 when more than 1 % of the answers fail or are not what was asked for, when the 95th percentile of a kind
of request is above the limit, when one was not answered at all, or when less was sent than was to be offered. A 429
with ``Retry-After`` is no failure, and counted apart. Settings, from the environment:

    HOTSWAP_API_KEY           sent as a bearer token
    HOTSWAP_LOAD_RATE         requests a second offered by all users together (2)
    HOTSWAP_LOAD_SHAPE        the rate over time, of HOTSWAP_LOAD_RATE: steady (as -u says), spike, ramp or soak
    HOTSWAP_LOAD_P95_MS       limit of the 95th percentile (10000)
    HOTSWAP_LOAD_CLASSIFY     classification adapters, separated by commas; one named twice is asked twice as often
    HOTSWAP_LOAD_SUMMARIZE    the same for summarization
    HOTSWAP_LOAD_ADMIN_KEY    a key that may release: versions change meanwhile
"""

from __future__ import annotations

import os
import time

import gevent
from locust import LoadTestShape, events
from locust.runners import WorkerRunner

from loadtests.callers import (  # noqa: F401 - Locust finds them here
    BUSY,
    RATE,
    Batch,
    Classify,
    Many,
    OpenAI,
    Releaser,
    Stream,
    Summarize,
    above_zero,
)

P95_MS = above_zero("HOTSWAP_LOAD_P95_MS", 10000)
SHAPE = os.environ.get("HOTSWAP_LOAD_SHAPE", "steady")
MAX_FAILURES = 0.01
# What is sent of what is offered, where the sender keeps up; random moments make it differ by chance.
LEAST_SENT, COUNTED = 0.7, 100
# The rate over the share of the time that has passed, as a multiple of HOTSWAP_LOAD_RATE.
SHAPES = {
    "spike": lambda passed: 5.0 if 0.4 <= passed < 0.6 else 1.0,
    "ramp": lambda passed: 1 + 9 * passed,
    "soak": lambda passed: 0.7,
}
STEP_SECONDS = 5
stopped: dict[str, float] = {}  # when no more was sent; answers were waited for
# The imports above took seconds, which gevent has not noticed: a short run would be over before it began.
gevent.get_hub().loop.update_now()


if SHAPE in SHAPES:

    class Shape(LoadTestShape):
        """More and fewer users, of whom each sends at the same rate."""

        use_common_options = True

        def tick(self) -> tuple[int, float] | None:
            options = self.runner.environment.parsed_options
            seconds, passed = options.run_time or 60, self.get_run_time()
            if passed >= seconds:
                return None
            step = passed // STEP_SECONDS * STEP_SECONDS  # the number of users is to settle
            users = max(1, round((options.num_users or 1) * SHAPES[SHAPE](step / seconds)))
            return users, users

elif SHAPE != "steady":
    raise SystemExit(f"HOTSWAP_LOAD_SHAPE={SHAPE}: there are steady, {', '.join(SHAPES)}.")


def judge(environment) -> list[str]:
    """Print the figures that count; return what is not as it should be."""
    entries = environment.stats.entries.values()
    answered = [entry for entry in entries if not entry.name.endswith(BUSY)]
    asked, failed = sum(entry.num_requests for entry in answered), sum(entry.num_failures for entry in answered)
    p95 = {entry.name: entry.get_response_time_percentile(0.95) for entry in answered}
    total = environment.stats.total
    sent = total.num_requests / max(1.0, stopped.get("at", time.time()) - total.start_time)
    print(
        f"offered {RATE:g}/s, sent {sent:.1f}/s: {asked} taken, {failed} of them failed, "
        f"{total.num_requests - asked} told to come back; p95 "
        + ", ".join(f"{name} {ms:.0f} ms" for name, ms in sorted(p95.items()))
    )
    faults = [f"{user.path} was not answered" for user in environment.user_classes if user.path not in p95]
    faults += [f"p95 of {name} is above {P95_MS:g} ms" for name, ms in sorted(p95.items()) if ms > P95_MS]
    if failed > MAX_FAILURES * asked:
        faults.append(f"more than {MAX_FAILURES:.0%} of the requests failed")
    if SHAPE == "steady" and total.num_requests > COUNTED and sent < LEAST_SENT * RATE:
        faults.append(f"less was sent than offered: this machine cannot send {RATE:g}/s, or there were too few users")
    if environment.runner and environment.runner.exceptions:
        faults.append("the load test itself raised an exception")
    return faults


@events.test_stopping.add_listener
def _note_the_end(**_) -> None:
    stopped["at"] = time.time()


@events.quitting.add_listener
def _exit(environment, **_) -> None:
    """Set the exit status by the figures; of several processes the master's has all of them."""
    if isinstance(environment.runner, WorkerRunner):
        return
    faults = judge(environment)
    for fault in faults:
        print(f"FAILED: {fault}")
    environment.process_exit_code = 1 if faults else 0
