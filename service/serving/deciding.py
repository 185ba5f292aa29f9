"""Many questions about one text: the text is read once, and each question costs its own words.

The text stands before the question, so that the engine finds it in its prefix cache. Possible answers are coded by one
token each, and scored in one step. An adapter answers the choices that it was trained on, as at ``/v1/predict``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain, product
from string import ascii_uppercase
from typing import Any

from adapters.base_model import Base
from adapters.tasks import ClassificationTask, Completion, Sampling
from service.engine.base import Engine
from service.errors import AdapterFailed, InvalidRequest, TooLong
from service.http.decisions import Choice, DecisionRequest, Predicate, Question, Score
from service.http.keys import Caller
from service.metrics import Metrics
from service.serving.admission import Admission
from service.serving.answering import Answering, together
from service.serving.conversing import Meter, reference_of
from service.serving.residency import Held


@dataclass
class Spent:
    """Tokens that a request's questions took, and how many of them the engine had read before."""

    prompt: int = 0
    cached: int = 0
    completion: int = 0


@dataclass(frozen=True)
class Scored:
    """A question as the engine reads it: its tokens, and one token for each answer it may give."""

    ids: list[int]
    codes: list[int] = field(default_factory=list)


class Deciding:
    """Answers predicates, choices and scores about a text, with the base model or an adapter whose labels they are."""

    def __init__(
        self, engine: Engine, answering: Answering, admission: Admission, base: Base, metrics: Metrics
    ) -> None:
        self._engine, self._answering, self._base = engine, answering, base
        self._about = admission, metrics
        self._codes = _codes(base)

    async def answer(self, request: DecisionRequest, caller: Caller) -> tuple[str, str, dict[str, Any]]:
        """Return the model that answers, its digest, and the decision. Raises :class:`ServiceError`."""
        text = request.text
        if not text.strip():
            raise InvalidRequest("The input is empty.", param="input")
        reference = reference_of(request.model, self._base.name)
        said = [text, *(question.wording for question in request.questions)]
        async with self._answering.lend("decisions", said, reference, caller, request.safety_identifier) as held:
            spent = Spent()
            if held is None:
                answers = await self._zero_shot(text, request.questions, spent)
            else:
                answers = await self._trained(text, request.questions, held, spent)
        model = f"{held.choice.name}@{held.choice.version}" if held else self._base.name
        digest = held.loaded.digest if held else self._base.digest
        return model, digest, {"answers": answers, "model": model, "usage": _usage(spent)}

    async def _zero_shot(self, text: str, questions: Sequence[Question], spent: Spent) -> list[dict[str, Any]]:
        asked = await asyncio.to_thread(self._asked, text, questions)
        if all(each is None for each in asked):
            raise TooLong("Input and question together are longer than the base model reads; send less.")

        async def one(question: Question, scored: Scored | None) -> dict[str, Any]:
            if scored is None:
                return _refusal(question)
            return _answer(question, await self._scores(scored, None, None, spent))

        pairs = list(zip(questions, asked, strict=True))
        # The first alone: what it reads of the text is there for the others.
        first = await one(*pairs[0])
        return [first, *await together(one(*pair) for pair in pairs[1:])]

    def _asked(self, text: str, questions: Sequence[Question]) -> list[Scored | None]:
        """Make prompts, text first; nothing of a question that does not fit behind it."""
        room, encode = self._engine.limits.max_model_len - 1, self._base.tokenizer.encode
        read = encode(f"Text: {text}\n\n")
        made: list[Scored | None] = []
        for question in questions:
            wording, codes = self._worded(question)
            ids = [*read, *encode(wording)]
            made.append(Scored(ids, codes) if len(ids) <= room else None)
        return made

    def _worded(self, question: Question) -> tuple[str, list[int]]:
        if isinstance(question, Predicate):
            ids = [self._base.tokenizer.encode(word)[0] for word in (" yes", " no")]
            return f"Question: Is this true of the text? {question.wording}\nAnswer yes or no.\nAnswer:", ids
        options = _options(question)
        if len(options) > len(self._codes):
            raise InvalidRequest(f"The base model tells at most {len(self._codes)} answers apart; ask for fewer.")
        lines = "\n".join(f"{code}. {option}" for (code, _), option in zip(self._codes, options, strict=False))
        ids = [token for _, token in self._codes[: len(options)]]
        return f"Question: {question.wording}\n{lines}\nAnswer with one of the letters.\nAnswer:", ids

    async def _trained(
        self, text: str, questions: Sequence[Question], held: Held, spent: Spent
    ) -> list[dict[str, Any]]:
        """Read the text once with the adapter; it answers the choices between labels of its own."""
        task = held.manifest.task
        if not isinstance(task, ClassificationTask):
            return [_refusal(question) for question in questions]
        room = self._engine.limits.max_model_len - held.manifest.virtual_tokens
        prompt = await asyncio.to_thread(task.prompt, text, self._base.tokenizer, room=room, cut=False)
        codes = [label.token_id for label in task.labels]
        logprobs = await self._scores(Scored(prompt.ids, codes), held.loaded.engine_name, held, spent, raw=True)
        scores = task.read(Completion(logprobs=dict(zip(codes, logprobs, strict=True))), {})["scores"]
        answers = []
        for question in questions:
            values = [option.value for option in question.choices] if isinstance(question, Choice) else []
            if not values or not all(isinstance(value, str) and value in scores for value in values):
                answers.append(_refusal(question))
                continue
            total = sum(scores[value] for value in values)
            answers.append(_answer(question, [scores[value] / total for value in values]))
        return answers

    async def _scores(
        self, scored: Scored, adapter: str | None, held: Held | None, spent: Spent, *, raw: bool = False
    ) -> list[float]:
        """Return each answer's probability among them (``raw``: its log-probability over the vocabulary)."""
        meter = Meter(*self._about, held)
        logprobs: dict[int, float] = {}
        for sampling in Sampling(max_tokens=1, choices=tuple(scored.codes)).passes():
            async with (
                meter.turn(len(scored.ids)),
                aclosing(self._engine.generate(scored.ids, sampling, adapter)) as chunks,
            ):
                async for chunk in chunks:
                    logprobs |= chunk.logprobs
                    meter.count(len(scored.ids), chunk.tokens)
                    spent.prompt, spent.completion = spent.prompt + len(scored.ids), spent.completion + chunk.tokens
                    spent.cached += chunk.timing.cached_tokens if chunk.timing else 0
        values = [logprobs[code] for code in scored.codes]
        if not all(map(math.isfinite, values)):
            raise AdapterFailed(
                f"{held.choice if held else 'The base model'} does not answer with numbers to this text."
            )
        return values if raw else _softmax(values)


def _codes(base: Base) -> list[tuple[str, int]]:
    """Return letters, then pairs of them, that are one token behind a blank, with their tokens; without the blank for
    a vocabulary that has few such."""
    return max((_coded(base, form) for form in (" {}", "{}")), key=len)


def _coded(base: Base, form: str) -> list[tuple[str, int]]:
    codes: dict[int, str] = {}
    for letters in chain(ascii_uppercase, map("".join, product(ascii_uppercase, repeat=2))):
        ids = base.tokenizer.encode(form.format(letters))
        if len(ids) == 1:
            codes.setdefault(ids[0], letters)
    return [(letters, token) for token, letters in codes.items()]


def _options(question: Choice | Score) -> list[str]:
    if isinstance(question, Choice):
        named = [
            (str(option.value).lower() if isinstance(option.value, bool) else option.value, option.description)
            for option in question.choices
        ]
    else:
        named = [(level.label, level.description) for level in question.levels]
    return [f"{name}: {about}" if about else name for name, about in named]


def _answer(question: Question, probabilities: list[float]) -> dict[str, Any]:
    told: dict[str, Any] = {"type": question.type, "name": question.name}
    if isinstance(question, Predicate):
        return {**told, "probability": probabilities[0]}
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    told["confidence"] = probabilities[best]
    if isinstance(question, Choice):
        values = [option.value for option in question.choices]
        each = [{"value": value, "probability": share} for value, share in zip(values, probabilities, strict=True)]
        return {**told, "choice": values[best], "probabilities": each}
    levels = [
        {"label": level.label, "value": n, "probability": share}
        for n, (level, share) in enumerate(zip(question.levels, probabilities, strict=True))
    ]
    return {**told, "score": sum(n * share for n, share in enumerate(probabilities)), "probabilities": levels}


def _refusal(question: Question) -> dict[str, Any]:
    return {"type": "refusal", "name": question.name}


def _softmax(logprobs: list[float]) -> list[float]:
    top = max(logprobs)
    weights = [math.exp(each - top) for each in logprobs]
    return [weight / sum(weights) for weight in weights]


def _usage(spent: Spent) -> dict[str, Any]:
    return {
        "input_tokens": spent.prompt,
        "input_tokens_details": {"cached_tokens": spent.cached, "cache_write_tokens": 0},
        "output_tokens": spent.completion,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": spent.prompt + spent.completion,
    }
