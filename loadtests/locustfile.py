"""Classify and summarize with mixed adapters, at a stated offered rate.

    locust -f loadtests/locustfile.py --headless -u 4 -r 2 -t 30s --host http://127.0.0.1:8000

Exit status 1 when more than 1 % of the answers fail or are not what was asked for, when a task's 95th
percentile is above the limit, or when a task was not answered at all. A 429 with ``Retry-After`` is no failure:
the caller comes back when told, and these are counted apart. Settings, from the environment:

    HOTSWAP_API_KEY           sent as a bearer token
    HOTSWAP_LOAD_RATE         requests a second offered by all users together (2)
    HOTSWAP_LOAD_P95_MS       limit of the 95th percentile (10000)
    HOTSWAP_LOAD_CLASSIFY     classification adapters, separated by commas; one named twice is asked twice as often
    HOTSWAP_LOAD_SUMMARIZE    the same for summarization
"""

from __future__ import annotations

import os
import random
from typing import Generic, TypeVar

import gevent
from locust import FastHttpUser, constant_throughput, events, task
from pydantic import BaseModel, Field, ValidationError, model_validator

RATE = float(os.environ.get("HOTSWAP_LOAD_RATE", "2"))
P95_MS = float(os.environ.get("HOTSWAP_LOAD_P95_MS", "10000"))
CLASSIFY = os.environ.get("HOTSWAP_LOAD_CLASSIFY", "sentiment").split(",")
SUMMARIZE = os.environ.get("HOTSWAP_LOAD_SUMMARIZE", "one-line-summary").split(",")
API_KEY = os.environ.get("HOTSWAP_API_KEY")
MAX_FAILURES = 0.01
BUSY = " (429)"

REVIEWS = (
    "A moving, beautifully acted film that earns every one of its tears.",
    "Two hours of people shouting in corridors; the plot never turns up.",
    "I expected another lazy sequel and got the funniest comedy of the year.",
    "The effects are splendid, the dialogue is not, and the ending is simply missing.",
    "Worth seeing for the photography alone, and the quiet performance at its centre.",
    "It is hard to say what is worse, the script or the singing.",
    "My daughter wanted to see it again the next morning, and so did I.",
    "A good idea, buried under forty minutes of explanation.",
)
DESCRIPTIONS = (
    (
        "This package contains a small program that watches a folder and copies every new or changed file to a second "
        "place. Copies are compared by their contents, not by their dates, and an interrupted run is continued where "
        "it stopped. A report can be sent by mail after each run."
    ),
    (
        "The library reads and writes the map tiles that are used by most outdoor navigation devices. It understands "
        "compressed and uncompressed tiles, can merge several maps into one, and keeps the names of places in all the "
        "languages that the original had. Bindings for Python are in a separate package."
    ),
    (
        "An interactive viewer for the log files of web servers. It follows several files at the same time, colours "
        "lines by status code, and shows how many requests each client has made within the last minute. Filters are "
        "ordinary regular expressions and can be stored under a name."
    ),
    (
        "A typing tutor for the terminal. Lessons begin with the middle row of the keyboard and adapt to the mistakes "
        "that the learner makes most often. It knows the layouts of eleven languages and draws a chart of the progress."
    ),
)

Output = TypeVar("Output")
last_version: dict[str, int] = {}


class Label(BaseModel):
    label: str
    score: float
    scores: dict[str, float]

    @model_validator(mode="after")
    def _agrees(self) -> Label:
        if abs(self.scores.get(self.label, -1) - self.score) > 0.01 or abs(sum(self.scores.values()) - 1) > 0.01:
            raise ValueError("the score is not that of the label, or the scores do not sum to 1")
        return self


class Summary(BaseModel):
    summary: str = Field(min_length=1)
    finish_reason: str


class Adapter(BaseModel):
    name: str
    version: int


class Answer(BaseModel, Generic[Output]):
    adapter: Adapter
    outputs: list[Output] = Field(min_length=1, max_length=1)


class Caller(FastHttpUser):
    max_retries = 0  # a request that was sent twice would hide that the first one failed

    def wait_time(self) -> float:
        return constant_throughput(RATE / self.environment.runner.target_user_count)(self)

    @task(3)
    def classify(self) -> None:
        self.ask("/v1/classify", random.choice(CLASSIFY), random.choice(REVIEWS), Answer[Label])

    @task(1)
    def summarize(self) -> None:
        self.ask("/v1/summarize", random.choice(SUMMARIZE), random.choice(DESCRIPTIONS), Answer[Summary])

    def ask(self, path: str, name: str, text: str, model: type[Answer]) -> None:
        """Ask for the adapter by its name or, half of the time, for exactly the version that answered last."""
        version = last_version.get(name) if random.random() < 0.5 else None
        request = {"adapter": f"{name}@{version}" if version else name, "input": text}
        headers = {"Authorization": f"Bearer {API_KEY}"} if API_KEY else {}
        pause = 0
        with self.client.post(path, json=request, headers=headers, catch_response=True) as response:
            if response.status_code == 429 and response.headers.get("Retry-After", "").isdigit():
                pause = int(response.headers["Retry-After"])
                response.request_meta["name"] += BUSY
                response.success()
            elif response.status_code == 200:
                try:
                    adapter = model.model_validate_json(response.content).adapter
                except ValidationError as error:
                    fault = error.errors()[0]
                    response.failure(f"not an answer: {'.'.join(map(str, fault['loc']))}: {fault['msg']}")
                else:
                    if adapter.name == name and version in (None, adapter.version):
                        last_version[name] = adapter.version
                    else:
                        response.failure("another adapter version answered than the one asked for")
        gevent.sleep(pause)


@events.quitting.add_listener
def judge(environment, **_) -> None:
    """Print the figures that count, and set the exit status by them."""
    entries = environment.stats.entries.values()
    answered = [entry for entry in entries if not entry.name.endswith(BUSY)]
    asked, failed = sum(entry.num_requests for entry in answered), sum(entry.num_failures for entry in answered)
    p95 = {entry.name: entry.get_response_time_percentile(0.95) for entry in answered}
    turned_away = environment.stats.num_requests - asked
    print(
        f"offered {RATE:g}/s, sent {environment.stats.total.total_rps:.1f}/s: {asked} taken, {failed} of them failed, "
        f"{turned_away} told to come back; p95 " + ", ".join(f"{name} {ms:.0f} ms" for name, ms in sorted(p95.items()))
    )
    faults = [f"{name} was not answered" for name in ("/v1/classify", "/v1/summarize") if name not in p95]
    faults += [f"p95 of {name} is above {P95_MS:g} ms" for name, ms in sorted(p95.items()) if ms > P95_MS]
    if failed > MAX_FAILURES * asked:
        faults.append(f"more than {MAX_FAILURES:.0%} of the requests failed")
    if environment.runner and environment.runner.exceptions:
        faults.append("the load test itself raised an exception")
    for fault in faults:
        print(f"FAILED: {fault}")
    environment.process_exit_code = 1 if faults else 0
