"""The use case: reference → lease → prompt → engine → reading → answer. Knows no HTTP."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from ulid import ULID

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.tasks import ClassificationTask, Completion, SummarizationTask
from adapters.tasks.summarization import ROUNDS
from service.engine.base import Chunk, Engine
from service.errors import (
    ClientClosed,
    InvalidRequest,
    NotReady,
    ServiceError,
    TaskMismatch,
    TooLong,
    from_lower,
)
from service.http.keys import Caller
from service.http.schemas import (
    AdapterUsed,
    Classification,
    Inputs,
    ItemError,
    Parameters,
    Prediction,
    Problem,
    Summary,
    Usage,
)
from service.metrics import Metrics
from service.monitoring.feedback import Feedback
from service.rollout.evidence import Tally
from service.rollout.shadow import Shadow
from service.serving.admission import Admission
from service.serving.registry import Lease, Registry, parse
from service.settings import Settings

logger = logging.getLogger("hotswap")
# A request with more than this is made into tokens in a thread: it would keep the event loop, and the probes, waiting.
INLINE_CHARS = 4000
# Of one long text; more would keep others' short ones waiting.
PARTS_AT_ONCE = 4
Kind = Literal["classification", "summarization"]
AnyTask = ClassificationTask | SummarizationTask


@dataclass(frozen=True)
class Work:
    """Who answers: the version a request got, or the base model with a task made for the request."""

    task: AnyTask
    lease: Lease | None = None

    @property
    def engine_name(self) -> str | None:
        return self.lease.loaded.engine_name if self.lease else None

    @property
    def labels(self) -> tuple[str, str]:
        return (self.lease.manifest.name, str(self.lease.manifest.version)) if self.lease else ("base", "0")

    @property
    def used(self) -> AdapterUsed | None:
        if self.lease is None:
            return None
        manifest = self.lease.manifest
        return AdapterUsed(
            name=manifest.name, version=manifest.version, channel=self.lease.channel, digest=self.lease.loaded.digest
        )


class Inference:
    """Answers requests; metrics of a request are written in one place, whatever became of it."""

    def __init__(
        self, engine: Engine, registry: Registry, admission: Admission, base: Base, settings: Settings, metrics: Metrics
    ) -> None:
        self._engine, self._registry, self._admission = engine, registry, admission
        self._base, self._settings, self._metrics = base, settings, metrics
        self.tally = Tally()
        self.feedback = Feedback(metrics, self.tally, settings.feedback_log)
        self._shadow = Shadow(registry, admission, metrics, self.tally, self._shadowed)
        self.open = False

    async def predict(self, route: str, asked: Inputs, reference: str, caller: Caller, kind: Kind | None) -> Prediction:
        """Answer with an adapter. ``kind`` is the task that the route insists on, if it does."""
        async with (
            self._request(route, asked) as seen,
            self._work(reference, caller, asked.caller, kind, seen) as work,
        ):
            prediction = await self._answer_all(work, asked)
        if work.lease is not None:
            self._shadow.offer(work.lease, asked, prediction.outputs)
        return prediction

    async def zero_shot(self, route: str, asked: Inputs, labels: list[str]) -> Prediction:
        """Classify with the base model."""
        async with self._request(route, asked) as seen:
            try:
                task = ClassificationTask.zero_shot(labels, self._base.tokenizer)
            except (ValidationError, InvalidAdapter) as error:
                raise InvalidRequest("these labels cannot be told apart by the model; reword them.") from error
            seen.work = work = Work(task)
            return await self._answer_all(work, asked)

    async def stream(
        self, route: str, asked: Inputs, reference: str, caller: Caller
    ) -> AsyncGenerator[tuple[Literal["delta"], str] | tuple[Literal["done"], Prediction]]:
        """Summarize one text; yield ("delta", text) pieces, then ("done", the whole prediction)."""
        async with (
            self._request(route, asked) as seen,
            self._work(reference, caller, asked.caller, "summarization", seen) as work,
        ):
            usage, sent = Usage(), ""
            output = Summary(summary="", finish_reason="stop")
            async with aclosing(self._summaries(work, asked.texts[0], asked, usage)) as summaries:
                async for output in summaries:
                    if len(output.summary) > len(sent):
                        yield "delta", output.summary[len(sent) :]
                        sent = output.summary
            yield "done", self._prediction(work, asked, [output], usage)

    @asynccontextmanager
    async def _request(self, route: str, asked: Inputs) -> AsyncIterator[_Seen]:
        """Admit, bound in time, translate errors, and write the request's metrics."""
        seen, started, outcome, failed = _Seen(), time.monotonic(), "ok", False
        try:
            if not self.open:
                raise NotReady("The service is starting or stopping; see /readyz.")
            async with asyncio.timeout(self._settings.deadline_seconds), self._admission.admit(asked.texts):
                yield seen
        except (asyncio.CancelledError, GeneratorExit):
            outcome = ClientClosed.code
            raise
        except Exception as error:
            told = from_lower(error)
            outcome, failed = told.code, told.status >= 500
            if type(told) is ServiceError:
                logger.exception("a request failed")
            if told is error:
                raise
            raise told from error
        finally:
            name, version = self._metrics.bounded("version", *(seen.work.labels if seen.work else ("none", "0")))
            channel = seen.work.lease.channel if seen.work and seen.work.lease else "none"
            self._metrics.requests.labels(route, name, version, channel, outcome).inc()
            seconds = time.monotonic() - started
            self._metrics.request_seconds.labels(route, name, version).observe(seconds)
            # A caller's own mistake, or its leaving, says nothing about the version.
            if seen.work and seen.work.lease and channel != "pinned" and (failed or outcome == "ok"):
                manifest = seen.work.lease.manifest
                self.tally.answered(manifest.name, manifest.version, seconds, failed=failed)

    @asynccontextmanager
    async def _work(
        self, reference: str, caller: Caller, user: str | None, kind: Kind | None, seen: _Seen
    ) -> AsyncIterator[Work]:
        name, _ = parse(reference)
        caller.need_adapter(name)
        async with self._registry.lease(reference, user or caller.name) as lease:
            seen.work = work = Work(lease.manifest.task, lease)
            if kind is not None and work.task.kind != kind:
                raise TaskMismatch(f"'{lease.manifest.name}' does {work.task.kind}; use /v1/predict or its own route.")
            yield work

    async def _answer_all(self, work: Work, asked: Inputs) -> Prediction:
        """Answer every text; one that cannot be answered is reported in its place and costs the others nothing."""
        usage = Usage()
        return self._prediction(work, asked, await self._outputs(work, asked, usage), usage)

    async def _outputs(self, work: Work, asked: Inputs, usage: Usage) -> list[Any]:
        if asked.input is not None:
            return [await self._answer(work, asked.input, asked, usage)]
        return await _together(self._answer_or_error(work, text, asked, usage) for text in asked.texts)

    async def _answer_or_error(self, work: Work, text: str, asked: Inputs, usage: Usage) -> Any:
        try:
            return await self._answer(work, text, asked, usage)
        except Exception as error:
            told = from_lower(error)
            if told.status >= 500:
                # Not this text's fault, and no answer for the others either: the request as a whole failed.
                raise
            return ItemError(error=Problem.model_validate(told.problem()))

    async def _answer(self, work: Work, text: str, asked: Inputs, usage: Usage) -> Classification | Summary:
        if isinstance(work.task, SummarizationTask):
            async with aclosing(self._summaries(work, text, asked, usage, stream=False)) as summaries:
                return [summary async for summary in summaries][-1]
        async with aclosing(self._ask(work, text, asked, usage, stream=False)) as chunks:
            chunk, truncated = [answer async for answer in chunks][-1]
        output = work.task.read(Completion(logprobs=chunk.logprobs), {})
        name, version = self._metrics.bounded("version", *work.labels)
        label = output["label"] if work.lease else "zero-shot"
        self._metrics.predictions.labels(name, version, *self._metrics.bounded(f"label of {name}", label)).inc()
        self._metrics.confidence.labels(name, version).observe(output["score"])
        return Classification(**output, truncated=truncated or None)

    async def _summaries(
        self, work: Work, text: str, asked: Inputs, usage: Usage, *, stream: bool = True
    ) -> AsyncGenerator[Summary]:
        """Yield the summary as it grows. It stops where the caller's word limit does."""
        parameters, grown = asked.parameters.model_dump(), ""
        text, parts = await self._condensed(work, text, asked, usage)
        async with aclosing(self._ask(work, text, asked, usage, stream=stream)) as chunks:
            async for chunk, truncated in chunks:
                grown += chunk.text
                completion = Completion(text=grown, finish_reason=chunk.finish_reason or "stop")
                output = work.task.read(completion, parameters)
                yield Summary(**output, truncated=truncated or None, chunks=parts)
                if output["finish_reason"] == "length":
                    return

    async def _condensed(self, work: Work, text: str, asked: Inputs, usage: Usage) -> tuple[str, int | None]:
        """Return what is to be summarized in the place of a text that does not fit, and in how many parts it was read:
        the summaries of its parts, of these if they are still too many, and so on."""
        task, first = work.task, None
        if not isinstance(task, SummarizationTask) or (asked.parameters.long or task.long) == "cut":
            return text, None
        task = task.model_copy(update={"long": "chunks"})
        whole = asked.model_copy(update={"parameters": Parameters()})  # the word limit is for the last summary
        for _ in range(ROUNDS):
            self._check_length(text)
            parts = await asyncio.to_thread(task.parts, text, self._base.tokenizer, room=self._room(work))
            if len(parts) == 1:
                break
            first = first or len(parts)
            said = task.joined(await self._each(work, parts, whole, usage))
            if not said:
                break
            text = said
        return text, first

    async def _each(self, work: Work, parts: list[str], asked: Inputs, usage: Usage) -> list[str]:
        turns = asyncio.Semaphore(PARTS_AT_ONCE)

        async def summary(part: str) -> str:
            async with turns, aclosing(self._ask(work, part, asked, usage, stream=False)) as chunks:
                grown = "".join([chunk.text async for chunk, _ in chunks])
            return str(work.task.read(Completion(text=grown), {})["summary"])

        return await _together(summary(part) for part in parts)

    async def _ask(
        self, work: Work, text: str, asked: Inputs, usage: Usage, *, stream: bool
    ) -> AsyncGenerator[tuple[Chunk, bool]]:
        """Send one text to the engine when its turn comes; yield chunks, and whether the text was cut."""
        name, version = self._metrics.bounded("version", *work.labels)
        if len(asked.texts) * len(text) < INLINE_CHARS:
            prompt = self._prompt(work, text, asked)
        else:
            prompt = await asyncio.to_thread(self._prompt, work, text, asked)
        self._metrics.input_tokens.labels(name, version).observe(prompt.input_tokens)
        if prompt.truncated:
            self._metrics.truncated.labels(name, version).inc()
        usage.prompt_tokens += len(prompt.ids)
        self._metrics.prompt_tokens.labels(name, version).inc(len(prompt.ids))
        sampling = work.task.sampling(asked.parameters.model_dump())
        async with self._admission.turn(text):
            started = time.monotonic()
            async with aclosing(self._engine.generate(prompt.ids, sampling, work.engine_name, stream=stream)) as chunks:
                async for chunk in chunks:
                    usage.completion_tokens += chunk.tokens
                    self._metrics.completion_tokens.labels(name, version).inc(chunk.tokens)
                    yield chunk, prompt.truncated
            self._metrics.engine_seconds.labels(name, version).observe(time.monotonic() - started)

    def _prompt(self, work: Work, text: str, asked: Inputs) -> Any:
        self._check_length(text)
        return work.task.prompt(text, self._base.tokenizer, room=self._room(work), cut=asked.parameters.truncate)

    def _check_length(self, text: str) -> None:
        if not text.strip():
            raise InvalidRequest("The text is empty.")
        if len(text) > self._settings.max_input_chars:
            raise TooLong(f"The text has {len(text)} characters; the limit is {self._settings.max_input_chars}.")

    def _room(self, work: Work) -> int:
        return self._settings.max_model_len - (work.lease.manifest.virtual_tokens if work.lease else 0)

    async def _shadowed(self, lease: Lease, asked: Inputs) -> list[Any]:
        async with asyncio.timeout(self._settings.deadline_seconds):
            return await self._outputs(Work(lease.manifest.task, lease), asked, Usage())

    def _prediction(self, work: Work, asked: Inputs, outputs: list[Any], usage: Usage) -> Prediction:
        prediction_id = _prediction_id()
        if work.lease is not None:
            self.feedback.remember(prediction_id, work.lease, asked.texts, outputs)
        return Prediction(
            id=prediction_id,
            adapter=work.used,
            task=work.task.kind,
            model=self._base.name,
            outputs=outputs,
            usage=usage,
        )


@dataclass
class _Seen:
    """What became known of a request by the time its metrics are written."""

    work: Work | None = None


async def _together(work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return what all come to; the first that fails ends the others, and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _prediction_id() -> str:
    return f"pred_{ULID()}"
