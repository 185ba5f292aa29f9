"""Who asks: users for Locust, each of whom sends at random moments of a stated rate, whatever becomes of it.

A user who waits for an answer before the next question hides overload: the slower the server, the less it is asked
("coordinated omission"). So every request runs by itself, and its time counts from the moment at which it was due.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, Generic, TypeVar

import openai
from gevent.pool import Group
from locust import FastHttpUser, events, task
from pydantic import BaseModel, Field, ValidationError, model_validator


def above_zero(variable: str, default: float) -> float:
    """Return the number in the environment. Raises :class:`SystemExit` for what cannot be meant."""
    text = os.environ.get(variable, default)
    with suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise SystemExit(f"{variable}={text}: it is a number above 0, such as {default:g}.")


RATE = above_zero("HOTSWAP_LOAD_RATE", 2)
CLASSIFY = os.environ.get("HOTSWAP_LOAD_CLASSIFY", "sentiment").split(",")
SUMMARIZE = os.environ.get("HOTSWAP_LOAD_SUMMARIZE", "one-line-summary").split(",")
API_KEY = os.environ.get("HOTSWAP_API_KEY")
HEADERS = {"Authorization": f"Bearer {API_KEY}"} if API_KEY else {}
ADMIN_KEY = os.environ.get("HOTSWAP_LOAD_ADMIN_KEY")
BATCH = 16
BUSY = " (429)"
# What was sent before the end is waited for so long: it counts like all else.
LAST_ANSWER_SECONDS = 60

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
    outputs: list[Output] = Field(min_length=1)


@events.init.add_listener
def _share_the_rate(environment, **_) -> None:
    """Give each of the -u users its share. A shape makes them more and fewer, and with them the rate; and the master,
    who alone knows how many there are to be, tells the workers all options that are not Locust's own."""
    environment.parsed_options.user_rate = RATE / (environment.parsed_options.num_users or 1)


class Caller(FastHttpUser):
    """Sends its share of RATE at the moments of a Poisson process; all requests run side by side."""

    abstract = True
    path: ClassVar[str]  # what it asks, as it is named in the statistics
    max_retries = 0  # a request that was sent twice would hide that the first one failed
    concurrency = 10_000

    def on_start(self) -> None:
        self._asking = Group()

    def on_stop(self) -> None:
        self._asking.join(timeout=LAST_ANSWER_SECONDS)

    def wait_time(self) -> float:
        return random.expovariate(self.environment.parsed_options.user_rate)

    @task
    def arrive(self) -> None:
        self._asking.spawn(self._ask)

    def _ask(self) -> None:
        try:
            self.ask()
        except Exception as error:
            self.environment.events.user_error.fire(user_instance=self, exception=error, tb=error.__traceback__)

    def ask(self) -> None:
        raise NotImplementedError

    def send(self, body: dict[str, Any], check: Callable[[bytes], str | None]) -> None:
        """Ask; ``check`` says what is wrong with an answer. 429 with ``Retry-After`` is counted apart."""
        path = self.path.partition(" ")[0]
        with self.client.post(path, json=body, headers=HEADERS, catch_response=True, name=self.path) as response:
            if response.status_code == 429 and response.headers.get("Retry-After", "").isdigit():
                response.request_meta["name"] += BUSY
                response.success()
            elif response.status_code == 200 and (fault := check(response.content)):
                response.failure(fault)


def named(name: str) -> str:
    """Return the adapter's name or, half of the time, exactly the version that answered last."""
    version = last_version.get(name) if random.random() < 0.5 else None
    return f"{name}@{version}" if version else name


def checked(model: type[Answer[Any]], reference: str, texts: int = 1) -> Callable[[bytes], str | None]:
    """Return what says whether an answer to ``reference`` is one of ``model``, with so many outputs."""

    def check(content: bytes) -> str | None:
        try:
            answer = model.model_validate_json(content)
        except ValidationError as error:
            fault = error.errors()[0]
            return f"not an answer: {'.'.join(map(str, fault['loc']))}: {fault['msg']}"
        name, _, version = reference.partition("@")
        if answer.adapter.name != name or version not in ("", str(answer.adapter.version)):
            return "another adapter version answered than the one asked for"
        if len(answer.outputs) != texts:
            return f"{len(answer.outputs)} outputs for {texts} texts"
        last_version[name] = answer.adapter.version
        return None

    return check


class Classify(Caller):
    """One text to a request."""

    weight, path = 6, "/v1/classify"

    def ask(self) -> None:
        reference = named(random.choice(CLASSIFY))
        self.send({"adapter": reference, "input": random.choice(REVIEWS)}, checked(Answer[Label], reference))


class Summarize(Caller):
    weight, path = 2, "/v1/summarize"

    def ask(self) -> None:
        reference = named(random.choice(SUMMARIZE))
        self.send({"adapter": reference, "input": random.choice(DESCRIPTIONS)}, checked(Answer[Summary], reference))


class Batch(Caller):
    """BATCH texts to a request."""

    path = "/v1/predict"

    def ask(self) -> None:
        reference = named(random.choice(CLASSIFY))
        texts = random.choices(REVIEWS, k=BATCH)
        self.send({"model": reference, "inputs": texts}, checked(Answer[Label], reference, BATCH))


class Stream(Caller):
    """A summary as server-sent events, which must end with ``done``."""

    path = "/v1/summarize (stream)"

    def ask(self) -> None:
        body = {"adapter": named(random.choice(SUMMARIZE)), "input": random.choice(DESCRIPTIONS), "stream": True}
        self.send(body, lambda content: None if b"event: done" in content else "the stream ended without 'done'")


class OpenAI(Caller):
    """OpenAI's own client, which names an adapter as its model."""

    path = "/v1/completions (openai)"

    def on_start(self) -> None:
        super().on_start()
        self._openai = openai.OpenAI(base_url=f"{self.host}/v1", api_key=API_KEY or "none", max_retries=0)

    def ask(self) -> None:
        started, fault, busy = time.monotonic(), None, ""
        try:
            prompt = f"Text: {random.choice(DESCRIPTIONS)}\n\nSummary:"
            name = random.choice(SUMMARIZE)
            answer = self._openai.completions.create(model=name, prompt=prompt, max_tokens=16, temperature=0)
            if not answer.choices[0].text:
                fault = ValueError("an empty completion")
        except openai.RateLimitError:
            busy = BUSY
        except openai.OpenAIError as error:
            fault = error
        self.environment.events.request.fire(
            request_type="POST",
            name=self.path + busy,
            response_time=1000 * (time.monotonic() - started),
            response_length=0,
            exception=fault,
            context={},
        )


class Many(Caller):
    """All classification adapters of the server, loaded or not, the first ones far more often (Zipf)."""

    path = "/v1/predict (many)"

    def on_start(self) -> None:
        super().on_start()
        listed = self.client.get("/v1/adapters?limit=1000", headers=HEADERS)
        adapters = listed.json()["adapters"] if listed.status_code == 200 else []
        self._names = [each["name"] for each in adapters if each["task"] == "classification" and each["stable"]]
        self._weights = [1 / place for place in range(1, len(self._names) + 1)]

    def ask(self) -> None:
        if not self._names:  # the figures say that this was not answered
            return
        (name,) = random.choices(self._names, self._weights)
        self.send({"adapter": name, "input": random.choice(REVIEWS)}, checked(Answer[Label], name))


class Releaser(Caller):
    """Releases again what is released, with the key in HOTSWAP_LOAD_ADMIN_KEY, while the others ask."""

    abstract = ADMIN_KEY is None
    fixed_count, path = 1, "/v1/adapters/NAME/releases"

    def wait_time(self) -> float:
        return random.expovariate(0.2)

    def ask(self) -> None:
        name, headers = random.choice(CLASSIFY), {"Authorization": f"Bearer {ADMIN_KEY}"}
        answer = self.client.get(f"/v1/adapters/{name}", headers=headers, name="/v1/adapters/NAME")
        if answer.status_code != 200:
            return
        now = answer.json()
        body = {"stable": now["stable"], "expected_generation": now["generation"], "why": "load test"}
        with self.client.post(
            f"/v1/adapters/{name}/releases", json=body, headers=headers, catch_response=True, name=self.path
        ) as response:
            if response.status_code == 409:  # somebody else released: that is what the number is for
                response.success()
