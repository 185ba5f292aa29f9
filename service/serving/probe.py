"""What a version must show between being loaded and being served."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping

from adapters import probes
from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.manifest import Manifest, Reference
from service.engine.base import Engine

# An engine that does not answer for so long holds back this version, not every version after it.
PATIENCE_SECONDS = 30.0
# An adapter that moves no log-probability by this share of the tolerance is not being applied.
LEAST_CHANGE = 0.005
KNOWN_QUESTIONS = 1000

Question = tuple[tuple[int, ...], tuple[int, ...]]  # a prompt, and the tokens whose log-probabilities are asked


class Probe:
    """Asks a freshly loaded version, and the base model, a few short texts; one forward pass each."""

    def __init__(self, engine: Engine, base: Base, tolerance: float | None = None) -> None:
        self._engine, self._base = engine, base
        self._tolerance = engine.limits.tolerance if tolerance is None else tolerance
        self._plain: dict[Question, Mapping[int, float]] = {}

    async def check(self, manifest: Manifest, engine_name: str) -> None:
        """Raise :class:`InvalidAdapter` where the version changes no answer of the base model, or does not give the
        reference answers of its manifest to within the tolerance; :class:`TimeoutError`, :class:`EngineDown`."""
        references = manifest.references or self._own(manifest)
        questions = [self._question(manifest, reference) for reference in references]
        async with asyncio.timeout(PATIENCE_SECONDS):
            # The base model is frozen: versions of one task ask it the same, and it is asked once.
            unknown = [question for question in questions if question not in self._plain]
            logprobs = await asyncio.gather(
                *(self._ask(question, engine_name) for question in questions),
                *(self._ask(question, None) for question in unknown),
            )
        adapted = logprobs[: len(references)]
        if not all(math.isfinite(logprob) for answer in adapted for logprob in answer.values()):
            raise InvalidAdapter("it does not answer with numbers: its weights overflow; train again at a lower rate")
        if len(self._plain) > KNOWN_QUESTIONS:
            self._plain.clear()
        self._plain.update(zip(unknown, logprobs[len(references) :], strict=True))
        plain = [self._plain[question] for question in questions]
        change = max(_distance(one, other) for one, other in zip(adapted, plain, strict=True))
        if not change > LEAST_CHANGE * min(self._tolerance, 1.0):
            raise InvalidAdapter(
                "it does not change the base model's answers: it was not trained, or the engine does not apply it"
            )
        off = max((_distance(answer, r.logprobs) for answer, r in zip(adapted, references, strict=True)), default=0.0)
        if manifest.references and not off <= self._tolerance:
            raise InvalidAdapter(
                f"it does not answer as it did when it was evaluated: off by {off:.2g} nats, and {self._tolerance:g} "
                "are tolerated (HOTSWAP_PROBE_TOLERANCE); evaluate and publish it again"
            )

    def _own(self, manifest: Manifest) -> tuple[Reference, ...]:
        """Return what to ask a version that brought no reference answers: nothing is compared with these zeros."""
        ids = probes.choices(manifest.task, len(self._base.tokenizer.vocabulary()))
        return tuple(Reference(text=text, logprobs=dict.fromkeys(ids, 0.0)) for text in probes.TEXTS)

    def _question(self, manifest: Manifest, reference: Reference) -> Question:
        room = self._engine.limits.max_model_len - manifest.virtual_tokens
        prompt = manifest.task.prompt(reference.text, self._base.tokenizer, room=room)
        return tuple(prompt.ids), tuple(reference.logprobs)

    async def _ask(self, question: Question, engine_name: str | None) -> Mapping[int, float]:
        prompt, token_ids = question
        logprobs: Mapping[int, float] = {}
        async for chunk in self._engine.generate(list(prompt), probes.sampling(token_ids), engine_name):
            logprobs = chunk.logprobs
        return logprobs


def _distance(one: Mapping[int, float], other: Mapping[int, float]) -> float:
    """Return the largest difference, in nats."""
    return max(abs(one[token] - other[token]) for token in other)
