"""A workload: how many texts, of which adapters, how many in flight; and what came of one run of it."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from adapters.tasks import ClassificationTask, SummarizationTask, Task
from adapters.tasks.base import Sampling
from loadtests.bench.material import Adapter, Material

Popularity = Literal["uniform", "zipf"]
DECODE_PROMPT = 16


@dataclass(frozen=True)
class Request:
    """One text; without an adapter it is for the base model."""

    adapter: Adapter | None
    task: Task
    text: str
    prompt: list[int]
    sampling: Sampling


@dataclass(frozen=True)
class Sample:
    """One run of a workload. ``answers`` are in the order of the requests."""

    seconds: float
    latencies: list[float]
    answers: list[str]
    prompt_tokens: int
    output_tokens: int

    @property
    def texts_per_second(self) -> float:
        return len(self.answers) / self.seconds

    @property
    def prompt_tokens_per_second(self) -> float:
        return self.prompt_tokens / self.seconds

    @property
    def output_tokens_per_second(self) -> float:
        return self.output_tokens / self.seconds

    @property
    def p50(self) -> float:
        return float(np.percentile(self.latencies, 50))

    @property
    def p95(self) -> float:
        return float(np.percentile(self.latencies, 95))


@dataclass(frozen=True)
class Workload:
    """``adapters`` take the texts in shares set by ``popularity``; with none, the base model does.

    ``labels`` is how stock vLLM is asked for one: an answer constrained to the choices, as its documentation
    says, or the log-probabilities of their tokens, which is exactly the work that ours does. ``prefill``
    classifies with the adapters' prompts even without an adapter; ``decode`` continues beginnings of texts by
    ``tokens``, and the first half of the texts by one. ``route`` is how ours is asked: by its own API, or by that which
    both have.
    """

    name: str
    kind: Literal["classify", "summarize", "prefill", "decode"]
    adapters: int
    in_flight: int
    texts: int
    popularity: Popularity = "uniform"
    labels: Literal["choice", "logprobs"] = "choice"
    tokens: int = 0
    route: Literal["own", "completions"] = "own"

    def requests(self, material: Material, start: int) -> list[Request]:
        """Return the requests for the texts from ``start`` on: the same ones for every server."""
        texts = material.reviews if self.kind in ("classify", "prefill") else material.descriptions
        owners = material.summarize if self.kind == "summarize" else material.classify
        random = np.random.default_rng([zlib.crc32(self.name.encode()), start])
        picks = pick(self.adapters, self.texts, self.popularity, random) if self.adapters else [None] * self.texts
        return [
            self.request(material, None if pick is None else owners[pick], texts[(start + i) % len(texts)])
            for i, pick in enumerate(picks)
        ]

    def request(self, material: Material, adapter: Adapter | None, text: str) -> Request:
        tokenizer = material.base.tokenizer
        if self.kind == "decode":
            task: Task = SummarizationTask.of("{text}:", max_answer_tokens=self.tokens)
            prompt = tokenizer.encode(text * 8, start=True)[:DECODE_PROMPT]
        else:
            own = material.classify[0].task if self.kind == "prefill" else zero_shot(material)
            task = adapter.task if adapter else own
            prompt = task.prompt(text, tokenizer).ids
        return Request(adapter, task, text, prompt, task.sampling({}))


def zero_shot(material: Material) -> ClassificationTask:
    """Return what ``/v1/classify`` makes of the labels when it is given no adapter."""
    task = material.classify[0].task
    assert isinstance(task, ClassificationTask)
    return ClassificationTask.zero_shot([label.name for label in task.labels], material.base.tokenizer)


def pick(items: int, count: int, popularity: str, random: np.random.Generator) -> list[int]:
    """Return ``count`` of the first ``items`` numbers; by Zipf's law number k is asked for 1/(k+1) as often as 0."""
    weights = 1 / np.arange(1, items + 1) if popularity == "zipf" else np.ones(items)
    return random.choice(items, size=count, p=weights / weights.sum()).tolist()
