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

    Several processes can use one: what is true of it then lies in files in ``shared``. A version that is unloaded is
    gone for all at that moment, also for who is still being answered; ``held`` there closes the gate for all.
    """

    def __init__(self, limits: Limits, base: Base, shared: Path | None = None) -> None:
        self.limits, self._base = limits, base
        self._shared = _Shared(shared) if shared else None
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
        if self._shared:
            self._shared.begin()

    async def stop(self) -> None:
        if self._shared and self._alive:
            self._shared.end()
        self._alive = False
        self.gate.set()

    def die(self) -> None:
        """Be as a killed vLLM: requests in flight fail, and nothing works any more."""
        if self._shared:
            self._shared.end()
        self._alive = self._hung = False
        self.gate.set()

    def seat(self) -> Path:
        assert self._shared is not None
        return self._shared.folder

    async def join(self, seat: Path) -> None:
        self.resident.clear()
        self._life += 1
        self._shared, self._alive = _Shared(seat, guest=True), True

    def lost(self) -> None:
        self._alive = False

    async def left(self, seat: Path) -> None:
        """What was asked has ended with its process."""

    def lent(self, name: str) -> Path:
        return self.resident[name]

    async def borrow(self, name: str, lent: Path) -> None:
        self.resident[name] = lent

    def give_back(self, name: str) -> None:
        self.resident.pop(name, None)

    def hang(self) -> None:
        """Be as a stopped vLLM process: it lives, and answers nothing."""
        self._hung = True
        self.gate.clear()

    @property
    def alive(self) -> bool:
        return self._alive and (self._shared is None or self._shared.alive)

    @property
    def is_open(self) -> bool:
        """Whether requests pass at once."""
        return self.gate.is_set() and not (self._shared and self._shared.is_held)

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
        if self._shared:
            self._shared.add(name)

    async def unload(self, name: str) -> None:
        self._check_alive()
        self.resident.pop(name, None)
        if self._shared:
            self._shared.remove(name)

    @property
    def measured(self) -> float:
        return 0.0

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
                while self._shared and self._shared.is_held:
                    self._check_alive(life)
                    await asyncio.sleep(0.002)
            self._check_alive(life)
            if self._shared:
                self._check_ready(adapter)
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
        if adapter is None:
            return
        if adapter not in self.resident or (self._shared and not self._shared.has(adapter)):
            raise EngineRefused(f"{adapter} is not resident")

    def _check_alive(self, life: int | None = None) -> None:
        """What was begun in an earlier life is never finished in the next."""
        if not self.alive or life not in (None, self._life):
            raise EngineDown("the engine is not running")


class _Batch:
    def __init__(self, engine: FakeEngine, sampling: Sampling, adapter: str | None, done: Done) -> None:
        self._engine, self._sampling, self._adapter, self._done = engine, sampling, adapter, done
        self.tasks: list[asyncio.Task[None]] = []

    async def add(self, place: int, prompt: list[int]) -> None:
        answer = self._answer(place, prompt)
        if self._engine.is_open:
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


class _Shared:
    """One engine's state, in files: those of a life are of no use in the next."""

    def __init__(self, folder: Path, *, guest: bool = False) -> None:
        self.folder, self._alive, self._held = folder, folder / "alive", folder / "held"
        self._guest, self._life = guest, self._alive.read_text() if guest else ""

    @property
    def alive(self) -> bool:
        try:
            return self._alive.read_text() == self._life
        except OSError:
            return False

    @property
    def is_held(self) -> bool:
        return self._held.exists()

    def begin(self) -> None:
        for file in self.folder.glob("*:*"):
            file.unlink()
        self._life = str(time.monotonic())
        self._alive.write_text(self._life)

    def end(self) -> None:
        if not self._guest:
            self._alive.unlink(missing_ok=True)

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def add(self, name: str) -> None:
        (self.folder / name).touch()

    def remove(self, name: str) -> None:
        (self.folder / name).unlink(missing_ok=True)


def _timing(began: float) -> Timing:
    return Timing(queued=0.0, prefill=time.monotonic() - began, decode=0.0)


def _noise(prompt: list[int], adapter: str | None, salt: int) -> float:
    digest = hashlib.sha256(f"{prompt}{adapter}{salt}".encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
