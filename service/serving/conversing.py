"""Requests in OpenAI's shapes: reference → choice → hold → vLLM's own serving → answer under the version's name."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from adapters.reference import InvalidReference, Reference
from service.engine.base import Engine
from service.engine.openai import Kind, texts
from service.errors import AdapterNotFound, InvalidRequest, TaskMismatch
from service.http.keys import Caller
from service.metrics import Metrics
from service.serving.admission import Admission
from service.serving.answering import BASE, Answering
from service.serving.residency import Held

# How each API calls the most tokens of an answer.
LIMITS = {"chat": "max_completion_tokens", "completions": "max_tokens", "responses": "max_output_tokens"}


@dataclass(frozen=True)
class Reply:
    """What precedes an answer: who gives it, and the answer itself where it is not a stream."""

    model: str
    digest: str
    document: dict[str, Any] | None = None


class Conversing:
    """Answers with vLLM's own serving classes what they know how to; the rest of the way is every request's."""

    def __init__(
        self, engine: Engine, answering: Answering, admission: Admission, base: tuple[str, str], metrics: Metrics
    ) -> None:
        self._engine, self._answering, self._admission, self._metrics = engine, answering, admission, metrics
        self._base, self._digest = base

    async def answer(self, kind: Kind, document: Mapping[str, Any], caller: Caller) -> AsyncGenerator[Reply | str]:
        """Yield who answers, with the answer; for a stream, without it and then the stream's events.

        To be read in one task. Raises :class:`ServiceError`.
        """
        reference = reference_of(document.get("model"), self._base)
        user = next((document[name] for name in ("safety_identifier", "user") if document.get(name)), None)
        async with self._answering.lend(kind, texts(document), reference, caller, _known(user)) as held:
            if held is not None and held.manifest.virtual_tokens:
                raise TaskMismatch(f"'{held.choice.name}' is a learnt prompt; ask it at /v1/predict.")
            api = await self._engine.openai()
            request = api.parse(kind, {**document, **self._silent(kind, document, held)})
            if (getattr(request, "n", 1) or 1) > self._admission.concurrency:
                raise InvalidRequest(
                    f"'n' is at most {self._admission.concurrency} here; ask again for more.", param="n"
                )
            model, digest = self._named(held)
            meter = Meter(self._admission, self._metrics, held)
            adapter = held.loaded.engine_name if held else None
            answer = await api.answer(kind, request, adapter, meter)
            if isinstance(answer, dict):
                if "system_fingerprint" in answer:
                    answer["system_fingerprint"] = f"{model}-{digest.removeprefix('sha256:')[:12]}"
                yield Reply(model, digest, answer)
                return
            yield Reply(model, digest)
            async with aclosing(answer):  # type: ignore[type-var]
                async for event in answer:
                    if meter.failure:
                        raise meter.failure
                    yield event

    def _silent(self, kind: Kind, document: Mapping[str, Any], held: Held | None) -> dict[str, Any]:
        """Return what holds for the version where the request says nothing."""
        more = held.manifest.task.defaults() if held else {}
        if not more:
            return {}
        limit = more.pop("max_tokens")
        if not any(document.get(name) is not None for name in LIMITS.values()):
            more[LIMITS[kind]] = min(limit, self._engine.limits.max_model_len)
        if (document.get("n") or 1) != 1 and not more["temperature"]:
            del more["temperature"]  # several answers are drawn, or they would be one
        return {name: value for name, value in more.items() if document.get(name) is None}

    def _named(self, held: Held | None) -> tuple[str, str]:
        if held is None:
            return self._base, self._digest
        return f"{held.choice.name}@{held.choice.version}", held.loaded.digest


def reference_of(model: Any, base: str) -> str | None:
    """Return the adapter that is meant by ``model``, or none for the base model. Raises :class:`ServiceError`."""
    if not isinstance(model, str) or not model:
        raise InvalidRequest("It is an adapter, such as sentiment or sentiment@3, or the base model.", param="model")
    if model == base:
        return None
    try:
        return str(Reference.parse(model))
    except InvalidReference:
        raise AdapterNotFound(f"No model is called '{model[:100]}'; GET /v1/models lists them.") from None


def _known(user: Any) -> str | None:
    return user[:200] if isinstance(user, str) else None


class Meter:
    """Lets one request's generations into the engine as there is room, and counts them for its version."""

    def __init__(self, admission: Admission, metrics: Metrics, held: Held | None) -> None:
        labels = (held.choice.name, str(held.choice.version)) if held else BASE
        self._admission, self._metrics, self._labels = admission, metrics, metrics.version(*labels)
        self.failure: Exception | None = None

    @asynccontextmanager
    async def turn(self, tokens: int, answers: int = 1) -> AsyncIterator[None]:
        with self._admission.turns([tokens] * answers) as turns:
            given = 0
            while given < answers:  # who is first in line gets every place that becomes free: nobody waits for another
                given += len(await turns.next())
            yield
            seconds = [turns.done(place) for place in range(answers)]
            self._metrics.engine_seconds.labels(*self._labels).observe(seconds[0])

    def count(self, prompt: int, completion: int) -> None:
        if prompt:
            self._metrics.input_tokens.labels(*self._labels).observe(prompt)
            self._metrics.prompt_tokens.labels(*self._labels).inc(prompt)
        self._metrics.completion_tokens.labels(*self._labels).inc(completion)

    def fail(self, error: Exception) -> None:
        self.failure = error
