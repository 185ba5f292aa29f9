"""An engine without a model, for tests and for wiring clients: deterministic, and as strict as the real one."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.lint import lint
from adapters.probes import TEXTS
from adapters.tasks import Sampling
from adapters.tasks.base import SCORED_AT_ONCE
from service.engine.base import Batch, Chunk, Done, EngineDown, EngineRefused, Limits, Timing
from service.engine.openai import OpenAI


class FakeEngine:
    """Answers depend on prompt and adapter, nothing else (at a temperature, on chance); limits are enforced where vLLM
    enforces them.

    ``gate`` can be cleared to hold every request in the engine, and ``active`` shows how many it holds. What a
    version is probed with passes: versions can change while requests are held.
    """

    def __init__(self, limits: Limits, base: Base) -> None:
        self.limits, self._base = limits, base
        self.resident: dict[str, Path] = {}
        self.gate = asyncio.Event()
        self.gate.set()
        self.active = self._life = 0
        self._alive = self._hung = self.loading = False
        self._openai: OpenAI | None = None
        self._making = asyncio.Lock()
        self._drawn = itertools.count(1)  # where an answer is drawn, no two are the same

    async def start(self) -> None:
        self.resident.clear()
        self._life += 1
        self._alive, self._hung = True, False

    async def stop(self) -> None:
        self._alive = False
        self.gate.set()

    def die(self) -> None:
        """Be as a killed vLLM: requests in flight fail, and nothing works any more."""
        self._alive = self._hung = False
        self.gate.set()

    def hang(self) -> None:
        """Be as a stopped vLLM process: it lives, and answers nothing."""
        self._hung = True
        self.gate.clear()

    @property
    def alive(self) -> bool:
        return self._alive

    async def check(self) -> None:
        self._check_alive()
        while self._hung:
            await asyncio.sleep(0.01)

    def work_seconds(self) -> float:
        return 0.0

    async def kill(self) -> None:
        self.die()

    async def load(self, name: str, folder: Path) -> None:
        self._check_alive()
        if name in self.resident or len(self.resident) >= self.limits.max_resident:
            raise EngineRefused(f"{name} does not fit")
        try:
            lint(folder, max_rank=self.limits.max_lora_rank)
        except InvalidAdapter as error:
            raise EngineRefused(str(error)) from error
        self.resident[name] = folder

    async def unload(self, name: str) -> None:
        self._check_alive()
        self.resident.pop(name, None)

    async def openai(self) -> OpenAI:
        self._check_alive()
        async with self._making:
            if self._openai is None:
                self._openai = await asyncio.to_thread(self._api)
        return self._openai

    def _api(self) -> OpenAI:
        from service.engine.fake_client import FakeClient

        client = FakeClient(self, self._base)
        return OpenAI(client, self._base.name, client.adapters)

    async def generate(
        self, prompt: list[int], sampling: Sampling, adapter: str | None, *, stream: bool = False
    ) -> AsyncGenerator[Chunk]:
        self._check_ready(adapter)
        if len(prompt) >= self.limits.max_model_len:
            raise EngineRefused("the prompt is longer than the context")
        if len(sampling.choices) > SCORED_AT_ONCE:
            raise EngineRefused(f"at most {SCORED_AT_ONCE} tokens are scored at once")
        self.active += 1
        life, began = self._life, time.monotonic()
        try:
            if not any(text in self._base.tokenizer.decode(prompt) for text in TEXTS):
                await self.gate.wait()
            self._check_alive(life)
            if sampling.choices:
                logprobs = self._logprobs(prompt, sampling, adapter)
                yield Chunk(tokens=1, finish_reason="length", logprobs=logprobs, timing=_timing(began))
                return
            words = self._words(prompt, adapter, sampling)
            kept, reason = words[: sampling.max_tokens], "stop" if len(words) < sampling.max_tokens else "length"
            if not stream:
                yield Chunk(text=" ".join(kept), tokens=len(kept), finish_reason=reason, timing=_timing(began))
                return
            for index, word in enumerate(kept):
                await asyncio.sleep(0)
                self._check_alive(life)
                last = index == len(kept) - 1
                timing = _timing(began) if last else None
                yield Chunk(text=f" {word}", tokens=1, finish_reason=reason if last else None, timing=timing)
        finally:
            self.active -= 1

    @asynccontextmanager
    async def batch(self, sampling: Sampling, adapter: str | None, done: Done) -> AsyncIterator[Batch]:
        self._check_ready(adapter)
        batch = _Batch(self, sampling, adapter, done)
        try:
            yield batch
        finally:
            for task in batch.tasks:
                task.cancel()
            await asyncio.gather(*batch.tasks, return_exceptions=True)

    def _logprobs(self, prompt: list[int], sampling: Sampling, adapter: str | None) -> dict[int, float]:
        weights = {choice: 1 + _noise(prompt, adapter, choice) for choice in sampling.choices}
        # As in a vocabulary: the choices have a part of the probability, not all of it.
        total = 2 * sum(weights.values())
        return {choice: math.log(weight / total) for choice, weight in weights.items()}

    def _words(self, prompt: list[int], adapter: str | None, sampling: Sampling) -> list[str]:
        text = self._base.tokenizer.decode(prompt).split()
        length = 3 + int(5 * _noise(prompt, adapter, 0))
        drawn = [] if sampling.repeatable else [f"<{next(self._drawn)}>"]
        words = [f"[{(adapter or 'base').split(':')[0]}]", *drawn, *text[:length]]
        ends = [n for n, word in enumerate(words) if any(stop in word for stop in sampling.decoding.stop)]
        return words[: ends[0]] if ends else words

    def _check_ready(self, adapter: str | None) -> None:
        self._check_alive()
        if adapter is not None and adapter not in self.resident:
            raise EngineRefused(f"{adapter} is not resident")

    def _check_alive(self, life: int | None = None) -> None:
        """What was begun in an earlier life is never finished in the next."""
        if not self._alive or life not in (None, self._life):
            raise EngineDown("the engine is not running")


class _Batch:
    def __init__(self, engine: FakeEngine, sampling: Sampling, adapter: str | None, done: Done) -> None:
        self._engine, self._sampling, self._adapter, self._done = engine, sampling, adapter, done
        self.tasks: list[asyncio.Task[None]] = []

    async def add(self, place: int, prompt: list[int]) -> None:
        answer = self._answer(place, prompt)
        if self._engine.gate.is_set():
            await answer  # at once: as vLLM, it needs no task for each
        else:
            self.tasks.append(asyncio.create_task(answer))

    async def finish(self) -> None:
        await asyncio.gather(*self.tasks)

    async def _answer(self, place: int, prompt: list[int]) -> None:
        answer: Chunk | Exception = EngineDown("no answer")
        try:
            async with aclosing(self._engine.generate(prompt, self._sampling, self._adapter)) as chunks:
                async for chunk in chunks:
                    answer = chunk
        except EngineRefused as error:
            answer = error
        self._done(place, answer)


def _timing(began: float) -> Timing:
    return Timing(queued=0.0, prefill=time.monotonic() - began, decode=0.0)


def _noise(prompt: list[int], adapter: str | None, salt: int) -> float:
    digest = hashlib.sha256(f"{prompt}{adapter}{salt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
