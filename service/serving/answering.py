"""The use case: reference → choice → hold → prompt → engine → reading → answer. Knows no HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from pydantic import ValidationError
from ulid import ULID

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.reference import Reference
from adapters.tasks import AnyTask, ClassificationTask, Completion, Kind, Sampling, SummarizationTask
from adapters.tasks.base import Prompt
from adapters.tasks.summarization import ROUNDS
from service import tracing
from service.engine.base import Chunk, Engine, joined
from service.errors import (
    AdapterFailed,
    AdapterNotFound,
    ClientClosed,
    InvalidRequest,
    NotReady,
    ServiceError,
    TaskMismatch,
    TooLong,
    VersionNotFound,
    from_lower,
)
from service.http.keys import Caller
from service.http.schemas import (
    AdapterUsed,
    Classification,
    Generation,
    Inputs,
    ItemError,
    Parameters,
    Prediction,
    Problem,
    Summary,
    Usage,
)
from service.metrics import Metrics, Series
from service.rollout.evidence import Tally
from service.serving.admission import Admission, Turns, estimated_tokens
from service.serving.answer_cache import AnswerCache, Recall
from service.serving.residency import Held, Residency
from service.serving.routing import Choice, Routing
from service.settings import Settings
from service.tracing import span

logger = logging.getLogger("hotswap")
# A request with more than this is made into tokens in a thread: it would keep the event loop, and the probes, waiting.
INLINE_CHARS = 4000
# Of one long text; more would keep others' short ones waiting.
PARTS_AT_ONCE = 4
T = TypeVar("T")
Written = Summary | Generation
BASE = ("base", "0")  # the metrics' labels of the base model


@dataclass(frozen=True)
class Work:
    """Who answers: the version that a request holds, or the base model with a task made for the request."""

    task: AnyTask
    held: Held | None = None
    recall: Recall | None = None

    @property
    def engine_name(self) -> str | None:
        return self.held.loaded.engine_name if self.held else None

    @property
    def labels(self) -> tuple[str, str]:
        return (self.held.choice.name, str(self.held.choice.version)) if self.held else BASE

    @property
    def used(self) -> AdapterUsed | None:
        if self.held is None:
            return None
        choice = self.held.choice
        return AdapterUsed(
            name=choice.name, version=choice.version, channel=choice.channel, digest=self.held.loaded.digest
        )


@dataclass(frozen=True)
class Answered:
    """A request that a version has answered, for whoever learns from answers."""

    id: str
    caller: Caller
    held: Held
    inputs: Inputs
    outputs: Sequence[Any]


class Answering:
    """Answers requests; metrics of a request are written in one place, whatever became of it.

    ``find`` looks whether the store has an adapter that the catalogue lacks. ``listeners`` are called with every
    request that a version answered, ``observers`` with every text, its prompt, and what the task read from the answer.
    """

    def __init__(
        self,
        engine: Engine,
        routing: Routing,
        residency: Residency,
        admission: Admission,
        base: Base,
        settings: Settings,
        metrics: Metrics,
        tally: Tally,
        cache: AnswerCache,
        find: Callable[[str], Awaitable[bool]],
    ) -> None:
        self._engine, self._routing, self._residency, self._admission = engine, routing, residency, admission
        self._base, self._settings, self._metrics, self._tally = base, settings, metrics, tally
        self._cache, self._find = cache, find
        self.listeners: list[Callable[[Answered], None]] = []
        self.observers: list[Callable[[Held, str, Prompt, dict[str, Any]], None]] = []
        self.open = False

    async def predict(
        self, route: str, inputs: Inputs, reference: str, caller: Caller, kind: Kind | None
    ) -> Prediction:
        """Answer with an adapter. ``kind`` is the task that the route insists on, if it does."""
        async with (
            self._request(route) as outcome,
            self._work(outcome, reference, caller, inputs, kind) as work,
        ):
            return self._notify(work, inputs, caller, await self._answer_all(work, inputs))

    async def zero_shot(self, route: str, inputs: Inputs, labels: list[str]) -> Prediction:
        """Classify with the base model."""
        async with self._request(route) as outcome:
            outcome.labels = BASE
            try:
                task = ClassificationTask.zero_shot(labels, self._base.tokenizer)
            except (ValidationError, InvalidAdapter) as error:
                raise InvalidRequest("these labels cannot be told apart by the model; reword them.") from error
            async with self._admission.admit(inputs.texts):
                return await self._answer_all(Work(task), inputs)

    async def stream(
        self, route: str, inputs: Inputs, reference: str, caller: Caller, kind: Kind | None
    ) -> AsyncGenerator[tuple[Literal["delta"], str] | tuple[Literal["done"], Prediction]]:
        """Answer one text in words; yield ("delta", text) pieces, then ("done", the whole prediction)."""
        async with (
            self._request(route) as outcome,
            self._work(outcome, reference, caller, inputs, kind) as work,
        ):
            if work.task.closed:
                raise TaskMismatch(f"'{reference}' does {work.task.kind}, which is said at once; leave out 'stream'.")
            usage, sent = Usage(), ""
            async with aclosing(self._written(work, inputs.texts[0], inputs, usage)) as grown:
                async for output in grown:
                    if len(output.said) > len(sent):
                        yield "delta", output.said[len(sent) :]
                        sent = output.said
            yield "done", self._notify(work, inputs, caller, self._prediction(work, [output], usage))

    async def shadow(self, choice: Choice, inputs: Inputs) -> list[Any]:
        """Answer a copy of a request: nobody waits for it, and it is no request in the metrics."""
        async with asyncio.timeout(self._settings.deadline_seconds), self._residency.hold(choice) as held:
            return await self._outputs(Work(held.manifest.task, held), inputs, Usage())

    @asynccontextmanager
    async def _request(self, route: str) -> AsyncIterator[_Outcome]:
        """Bound in time, translate errors, and write the request's metrics."""
        outcome, started = _Outcome(), time.monotonic()
        try:
            if not self.open:
                raise NotReady("The service is starting or stopping; see /readyz.")
            async with asyncio.timeout(self._settings.deadline_seconds):
                yield outcome
        except (asyncio.CancelledError, GeneratorExit):
            outcome.code = ClientClosed.code
            raise
        except Exception as error:
            failure = from_lower(error)
            outcome.code, outcome.failed = failure.code, failure.status >= 500
            if outcome.failed:
                self._log(outcome, failure, error)
            if failure is error:
                raise
            raise failure from error
        finally:
            self._record(route, outcome, time.monotonic() - started)

    def _log(self, outcome: _Outcome, failure: ServiceError, error: Exception) -> None:
        if type(failure) is ServiceError:
            logger.error("a request to %s failed", outcome.choice or "the base model", exc_info=error)
        elif outcome.choice is not None:
            channel = outcome.choice.channel
            logger.info("a request to %s (%s) failed: %s %s", outcome.choice, channel, failure.code, failure.detail)

    def _record(self, route: str, outcome: _Outcome, seconds: float) -> None:
        choice = outcome.choice
        labels = (choice.name, str(choice.version)) if choice else outcome.labels
        series, channel = self._metrics.series(*labels), choice.channel if choice else "none"
        series.of(self._metrics.requests, route=route, channel=channel, outcome=outcome.code).inc()
        series.of(self._metrics.request_seconds, route=route).observe(seconds, tracing.exemplar())
        # A caller's own mistake, its leaving, or its own choice of a version says nothing about the version. Nor does
        # what was only remembered: a new version, of which nothing is, would look slow beside an old one.
        told = outcome.failed or (outcome.code == "ok" and not outcome.remembered)
        if choice and choice.routed and told:
            self._tally.answered(choice.name, choice.version, seconds, failed=outcome.failed)

    @asynccontextmanager
    async def lend(
        self, route: str, texts: Sequence[str], reference: str | None, caller: Caller, user: str | None
    ) -> AsyncIterator[Held | None]:
        """Yield who answers a request whose prompt is not ours to make: a version, or the base model for no reference.
        It is admitted, bound in time and counted as any other."""
        async with self._request(route) as outcome:
            if any(len(text) > self._settings.max_input_chars for text in texts):
                raise TooLong(f"A text has more than {self._settings.max_input_chars} characters, which is the limit.")
            if reference is None:
                outcome.labels = BASE
                async with self._admission.admit(texts):
                    yield None
            else:
                async with self._held(outcome, reference, caller, texts, user) as held:
                    yield held

    @asynccontextmanager
    async def _work(
        self, outcome: _Outcome, reference: str, caller: Caller, inputs: Inputs, kind: Kind | None
    ) -> AsyncIterator[Work]:
        async with self._held(outcome, reference, caller, inputs.texts, inputs.caller) as held:
            if caller.cache and held.manifest.task.sampling({}).repeatable:
                outcome.recall = self._cache.of(held.loaded.digest, held.choice.name, held.choice.version)
            work = Work(held.manifest.task, held, outcome.recall)
            if kind is not None and work.task.kind != kind:
                raise TaskMismatch(f"'{held.choice.name}' does {work.task.kind}; use /v1/predict or its own route.")
            yield work

    @asynccontextmanager
    async def _held(
        self, outcome: _Outcome, reference: str, caller: Caller, texts: Sequence[str], user: str | None
    ) -> AsyncIterator[Held]:
        with span("choice"):
            choice = outcome.choice = await self._choose(Reference.parse(reference), caller, user)
        tracing.note(adapter=choice.name, version=str(choice.version), channel=choice.channel)
        async with self._admission.admit(texts) as ticket, AsyncExitStack() as stack:
            with span("hold"):
                if self._residency.is_resident(*choice.key):
                    held = await stack.enter_async_context(self._residency.hold(choice))
                else:  # who waits for a version is no work for the engine yet
                    with ticket.aside():
                        held = await stack.enter_async_context(self._residency.hold(choice))
            yield held

    async def _choose(self, reference: Reference, caller: Caller, user: str | None) -> Choice:
        caller.need_adapter(reference.name)
        user = user or caller.name
        try:
            return self._routing.choose(reference, user)
        except (AdapterNotFound, VersionNotFound):
            # What the catalogue lacks may have been added a moment ago.
            if not await self._find(reference.name):
                raise
        return self._routing.choose(reference, user)

    def _notify(self, work: Work, inputs: Inputs, caller: Caller, prediction: Prediction) -> Prediction:
        if work.held is not None:
            answered = Answered(prediction.id, caller, work.held, inputs, prediction.outputs)
            _tell(self.listeners, work.held, answered)
        return prediction

    async def _answer_all(self, work: Work, inputs: Inputs) -> Prediction:
        """Answer every text; one that cannot be answered is reported in its place and costs the others nothing."""
        usage = Usage()
        return self._prediction(work, await self._outputs(work, inputs, usage), usage)

    async def _outputs(self, work: Work, inputs: Inputs, usage: Usage) -> list[Any]:
        if isinstance(work.task, ClassificationTask):
            outputs = await self._classified(work, inputs, usage)
        else:
            outputs = await together(self._whole(work, text, inputs, usage) for text in inputs.texts)
        for place, output in enumerate(outputs):
            if isinstance(output, Exception):
                outputs[place] = _in_its_place(output, alone=inputs.input is not None)
        return outputs

    async def _classified(self, work: Work, inputs: Inputs, usage: Usage) -> list[Any]:
        """Classify every text, with one call to the tokenizer and one to the engine; errors are in their texts'
        places."""
        outputs: list[Any] = [*await self._prompts(work, inputs)]
        asked = [place for place, made in enumerate(outputs) if isinstance(made, Prompt)]
        texts, prompts = [inputs.texts[place] for place in asked], [outputs[place] for place in asked]
        self._count_prompts(work, prompts, usage)
        answers = await self._scored(work, texts, prompts)
        series = self._metrics.series(*work.labels)
        for place, text, prompt, answer in zip(asked, texts, prompts, answers, strict=True):
            outputs[place] = answer
            if isinstance(answer, Chunk):
                self._count_chunk(series, answer, answer.tokens, usage)
                outputs[place] = self._read(work, series, text, prompt, answer)
        return outputs

    async def _scored(self, work: Work, texts: Sequence[str], prompts: Sequence[Prompt]) -> list[Chunk | Exception]:
        """Return the answer to each prompt: the engine's, or what it said before."""
        if work.recall is None:
            return await self._computed(work, texts, prompts)
        sampling = work.task.sampling({})
        answers: list[Any] = [work.recall.find(prompt.ids, sampling) for prompt in prompts]
        new = [place for place, answer in enumerate(answers) if answer is None]
        computed = await self._computed(work, [texts[place] for place in new], [prompts[place] for place in new])
        for place, answer in zip(new, computed, strict=True):
            answers[place] = answer
            if isinstance(answer, Chunk):
                work.recall.keep(prompts[place].ids, sampling, answer)
        return answers

    async def _computed(self, work: Work, texts: Sequence[str], prompts: Sequence[Prompt]) -> list[Chunk | Exception]:
        """Return the engine's answer to each prompt, in as many passes as it takes to score all labels."""
        passes = [await self._in_a_pass(work, texts, prompts, each) for each in work.task.sampling({}).passes()]
        return [_merged(answers) for answers in zip(*passes, strict=True)]

    async def _in_a_pass(
        self, work: Work, texts: Sequence[str], prompts: Sequence[Prompt], sampling: Sampling
    ) -> list[Chunk | Exception]:
        answers: dict[int, tuple[Chunk | Exception, float]] = {}

        def done(place: int, answer: Chunk | Exception) -> None:
            answers[place] = answer, turns.done(place) if isinstance(answer, Chunk) else 0.0

        if not prompts:
            return []
        with self._admission.turns([estimated_tokens([text]) for text in texts]) as turns:
            async with self._engine.batch(sampling, work.engine_name, done) as batch:
                while places := await _timed_next(turns):
                    for place in places:
                        await batch.add(place, prompts[place].ids)
                await batch.finish()
        engine_seconds = self._metrics.series(*work.labels).of(self._metrics.engine_seconds)
        for answer, seconds in answers.values():
            if isinstance(answer, Chunk):
                _check_finite(work, answer)
                engine_seconds.observe(seconds)
        return [answers[place][0] for place in range(len(prompts))]

    def _read(self, work: Work, series: Series, text: str, prompt: Prompt, chunk: Chunk) -> Classification:
        output = work.task.read(Completion(logprobs=chunk.logprobs), {})
        label = self._metrics.label(*series.labels, output["label"] if work.held else "zero-shot")
        series.of(self._metrics.predictions, label=label).inc()
        series.of(self._metrics.confidence).observe(output["score"])
        if work.held:
            _tell(self.observers, work.held, work.held, text, prompt, output)
        return Classification(**output, truncated=prompt.truncated or None)

    async def _whole(self, work: Work, text: str, inputs: Inputs, usage: Usage) -> Written | Exception:
        try:
            async with aclosing(self._written(work, text, inputs, usage, stream=False)) as grown:
                return [output async for output in grown][-1]
        except Exception as error:
            if from_lower(error).status >= 500:
                raise
            return error

    async def _written(
        self, work: Work, text: str, inputs: Inputs, usage: Usage, *, stream: bool = True
    ) -> AsyncGenerator[Written]:
        """Yield the answer as it grows. It stops where the caller's word limit does."""
        parameters, grown = inputs.parameters.model_dump(), ""
        read, parts = await self._condensed(work, text, inputs, usage)
        async with aclosing(self._ask(work, read, inputs, usage, stream=stream)) as chunks:
            async for chunk, prompt in chunks:
                grown += chunk.text
                completion = Completion(text=grown, finish_reason=chunk.finish_reason or "stop")
                output = work.task.read(completion, parameters)
                cut = prompt.truncated or None
                if work.task.kind == "summarization":
                    yield Summary(**output, truncated=cut, chunks=parts)
                else:
                    yield Generation(**output, truncated=cut)
                if output["finish_reason"] == "length" and chunk.finish_reason is None:
                    break
        if parts is not None:  # the prompt was of the parts' summaries
            tokens = await asyncio.to_thread(work.task.body, text, self._base.tokenizer)
            prompt = replace(prompt, input_tokens=len(tokens))
        if work.held:
            _tell(self.observers, work.held, work.held, text, prompt, output)

    async def _condensed(self, work: Work, text: str, inputs: Inputs, usage: Usage) -> tuple[str, int | None]:
        """Return what is to be summarized in the place of a text that does not fit, and in how many parts it was read:
        the summaries of its parts, of these if they are still too many, and so on."""
        task, first = work.task, None
        if not isinstance(task, SummarizationTask) or (inputs.parameters.long or task.long) == "cut":
            return text, None
        task = task.model_copy(update={"long": "chunks"})
        whole = inputs.model_copy(update={"parameters": Parameters()})  # the word limit is for the last summary
        for _ in range(ROUNDS):
            self._check_length(text)
            parts = await asyncio.to_thread(task.parts, text, self._base.tokenizer, room=self._room(work))
            if len(parts) == 1:
                break
            first = first or len(parts)
            summaries = task.joined(await self._each(work, parts, whole, usage))
            if not summaries:
                break
            text = summaries
        return text, first

    async def _each(self, work: Work, parts: list[str], inputs: Inputs, usage: Usage) -> list[str]:
        turns = asyncio.Semaphore(PARTS_AT_ONCE)

        async def summary(part: str) -> str:
            async with turns, aclosing(self._ask(work, part, inputs, usage, stream=False)) as chunks:
                grown = "".join([chunk.text async for chunk, _ in chunks])
            return str(work.task.read(Completion(text=grown), {})["summary"])

        return await together(summary(part) for part in parts)

    async def _ask(
        self, work: Work, text: str, inputs: Inputs, usage: Usage, *, stream: bool
    ) -> AsyncGenerator[tuple[Chunk, Prompt]]:
        """Yield the answer to one text in chunks, and the prompt that was made of it."""
        prompt = await self._short(len(inputs.texts) * len(text), self._prompt, work, text, inputs)
        self._count_prompts(work, [prompt], usage)
        sampling, recall = work.task.sampling(inputs.parameters.model_dump()), work.recall
        if recall and (known := recall.find(prompt.ids, sampling)):
            self._count_chunk(self._metrics.series(*work.labels), known, known.tokens, usage)
            yield known, prompt
            return
        said, tokens = list[Chunk](), 0
        async with aclosing(self._generated(work, text, prompt, sampling, stream=stream)) as chunks:
            async for chunk in chunks:
                said.append(chunk)
                tokens += chunk.tokens
                self._count_chunk(self._metrics.series(*work.labels), chunk, tokens, usage)
                yield chunk, prompt
        if recall:  # who leaves before the end, or stops at a word limit, has not heard the whole answer
            recall.keep(prompt.ids, sampling, joined(said))

    async def _generated(
        self, work: Work, text: str, prompt: Prompt, sampling: Sampling, *, stream: bool
    ) -> AsyncGenerator[Chunk]:
        """Send one text to the engine when its turn comes."""
        async with AsyncExitStack() as stack:
            with span("queue"):
                await stack.enter_async_context(self._admission.turn(estimated_tokens([text])))
            started = time.monotonic()
            async with aclosing(self._engine.generate(prompt.ids, sampling, work.engine_name, stream=stream)) as chunks:
                async for chunk in chunks:
                    _check_finite(work, chunk)
                    yield chunk
            series = self._metrics.series(*work.labels)
            series.of(self._metrics.engine_seconds).observe(time.monotonic() - started)

    def _count_prompts(self, work: Work, prompts: Sequence[Prompt], usage: Usage) -> None:
        series, tokens = self._metrics.series(*work.labels), sum(len(prompt.ids) for prompt in prompts)
        lengths = series.of(self._metrics.input_tokens)
        for prompt in prompts:
            lengths.observe(prompt.input_tokens)
        if cut := sum(prompt.truncated for prompt in prompts):
            series.of(self._metrics.truncated).inc(cut)
        usage.prompt_tokens += tokens
        series.of(self._metrics.prompt_tokens).inc(tokens)

    def _count_chunk(self, series: Series, chunk: Chunk, tokens: int, usage: Usage) -> None:
        """Count a piece of an answer that has so many tokens by now."""
        usage.completion_tokens += chunk.tokens
        series.of(self._metrics.completion_tokens).inc(chunk.tokens)
        if chunk.timing:
            tracing.engine(chunk.timing)
            self._metrics.timed(series, chunk.timing, tokens)

    async def _prompts(self, work: Work, inputs: Inputs) -> Sequence[Prompt | Exception]:
        return await self._short(sum(map(len, inputs.texts)), self._make_prompts, work, inputs)

    def _make_prompts(self, work: Work, inputs: Inputs) -> list[Prompt | Exception]:
        made: list[Prompt | Exception | None] = [self._length_error(text) for text in inputs.texts]
        fit = [place for place, error in enumerate(made) if error is None]
        texts, cut = [inputs.texts[place] for place in fit], inputs.parameters.truncate
        prompts = work.task.prompts(texts, self._base.tokenizer, room=self._room(work), cut=cut)
        for place, prompt in zip(fit, prompts, strict=True):
            made[place] = prompt
        return [each for each in made if each is not None]

    def _prompt(self, work: Work, text: str, inputs: Inputs) -> Prompt:
        self._check_length(text)
        return work.task.prompt(text, self._base.tokenizer, room=self._room(work), cut=inputs.parameters.truncate)

    @staticmethod
    async def _short(chars: int, make: Callable[..., T], *given: Any) -> T:
        """Make tokens of so many characters: in a thread, where that would keep others waiting."""
        return make(*given) if chars < INLINE_CHARS else await asyncio.to_thread(make, *given)

    def _check_length(self, text: str) -> None:
        if error := self._length_error(text):
            raise error

    def _length_error(self, text: str) -> ServiceError | None:
        if not text.strip():
            return InvalidRequest("The text is empty.")
        if len(text) > self._settings.max_input_chars:
            return TooLong(f"The text has {len(text)} characters; the limit is {self._settings.max_input_chars}.")
        return None

    def _room(self, work: Work) -> int:
        return self._settings.max_model_len - (work.held.manifest.virtual_tokens if work.held else 0)

    def _prediction(self, work: Work, outputs: list[Any], usage: Usage) -> Prediction:
        return Prediction(
            id=_prediction_id(),
            adapter=work.used,
            task=work.task.kind,
            model=self._base.name,
            outputs=outputs,
            usage=usage,
        )


@dataclass
class _Outcome:
    """What became of a request: ``choice`` as soon as it is made, whatever happens to it then."""

    choice: Choice | None = None
    labels: tuple[str, str] = ("none", "0")
    recall: Recall | None = None
    code: str = "ok"
    failed: bool = False

    @property
    def remembered(self) -> bool:
        """Whether the engine was not asked."""
        return self.recall is not None and not self.recall.missed


def _tell(learners: Iterable[Callable[..., None]], held: Held, *answered: Any) -> None:
    for learner in learners:
        try:
            learner(*answered)
        except Exception:  # who learns from answers costs nobody theirs
            logger.exception("an answer of %s could not be learnt from", held.choice)


def _merged(answers: Sequence[Chunk | Exception]) -> Chunk | Exception:
    """Return what several passes over one prompt say together; what went wrong in one of them, if anything did."""
    whole = answers[0]
    for answer in answers[1:]:
        if isinstance(whole, Exception) or isinstance(answer, Exception):
            return next(each for each in (whole, answer) if isinstance(each, Exception))
        whole = replace(whole, logprobs={**whole.logprobs, **answer.logprobs})
    return whole


def _check_finite(work: Work, chunk: Chunk) -> None:
    """An answer that is no number is none: it would be read as some label, and is not JSON."""
    if not all(map(math.isfinite, chunk.logprobs.values())):
        who = str(work.held.choice) if work.held else "The base model"
        raise AdapterFailed(f"{who} does not answer with numbers to this text; train it again at a lower rate.")


def _in_its_place(error: Exception, *, alone: bool) -> ItemError:
    """Return what is said of one text of many. Raises what is no fault of this text, and so no answer for the others
    either: the request as a whole failed."""
    failure = from_lower(error)
    if alone or failure.status >= 500:
        raise error
    return ItemError(error=Problem.model_validate(failure.problem()))


async def _timed_next(turns: Turns) -> range:
    with span("queue"):
        return await turns.next()


async def together(work: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Return what all come to; the first that fails ends the others, and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _prediction_id() -> str:
    return f"pred_{ULID()}"
