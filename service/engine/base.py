"""The engine as the service sees it: a frozen base model, and adapters by names that never mean other weights."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from adapters.tasks import Sampling

if TYPE_CHECKING:
    from service.engine.openai import OpenAI

# Measured: 1e-4 against PEFT on transformers in float32; up to 0.27 in bfloat16 against float32 (loadtests.dtypes).
FLOAT32_TOLERANCE, HALF_TOLERANCE = 0.02, 0.5


class EngineDown(Exception):
    """The engine cannot answer: it is not started, stopped, or has died."""


class EngineRefused(Exception):
    """The engine took the call and said no: an adapter it cannot load, a prompt that is too long."""


@dataclass(frozen=True)
class Limits:
    """What the engine was started for: ``max_resident`` adapters at once, of any rank up to ``max_lora_rank``.

    ``tolerance``: how far apart, in nats, two sound computations of one log-probability may be.
    """

    max_resident: int
    max_lora_rank: int
    max_model_len: int
    tolerance: float = FLOAT32_TOLERANCE


@dataclass(frozen=True)
class Timing:
    """Seconds that an answer took in the engine: until it was first in a batch, from then to its first token, and from
    that to its last one. ``cached_tokens`` of the prompt were not computed again."""

    queued: float
    prefill: float
    decode: float
    cached_tokens: int = 0


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer; the last one has a ``finish_reason`` (``stop`` or ``length``), and a ``timing`` where the
    engine measures.

    ``logprobs`` are natural logs over the whole vocabulary, for the ids in ``Sampling.choices``.
    """

    text: str = ""
    tokens: int = 0
    finish_reason: str | None = None
    logprobs: Mapping[int, float] = field(default_factory=dict)
    timing: Timing | None = None


def joined(chunks: Sequence[Chunk]) -> Chunk:
    """Return an answer that came in pieces as one."""
    text, tokens = "".join(chunk.text for chunk in chunks), sum(chunk.tokens for chunk in chunks)
    return replace(chunks[-1], text=text, tokens=tokens)


# Called between two steps of the event loop, maybe by the task that answers everybody: it must not raise.
Done = Callable[[int, Chunk | Exception], None]


class Batch(Protocol):
    """Prompts that are answered together."""

    async def add(self, place: int, prompt: list[int]) -> None:
        """Have one more prompt answered."""

    async def finish(self) -> None:
        """Wait until all that were added are answered, or one has failed with more than :class:`EngineRefused`."""


class Engine(Protocol):
    """Started, then used from one event loop. After :meth:`stop` it can be started again, with nothing resident."""

    limits: Limits

    async def start(self) -> None:
        """Load the base model. Raises :class:`EngineDown` where that fails."""

    async def stop(self) -> None:
        """Free everything; requests in flight end with :class:`EngineDown`."""

    @property
    def alive(self) -> bool:
        """Whether the engine can answer now."""

    @property
    def loading(self) -> bool:
        """Whether an adapter is being read: the engine may wait for a disk."""

    async def check(self) -> None:
        """Go through the engine's own process and back: it answers between two steps. Raises :class:`EngineDown`."""

    def work_seconds(self) -> float:
        """Return how long its processes have calculated so far: one that does not answer may be in a long step."""

    async def kill(self) -> None:
        """End an engine that does not answer, without asking it: requests in flight end with :class:`EngineDown`."""

    async def load(self, name: str, folder: Path) -> None:
        """Make the PEFT adapter in ``folder``, a LoRA or a learnt prompt, resident as ``name``, which has never meant
        other weights.

        Raises :class:`EngineRefused`; nothing is resident then.
        """

    async def unload(self, name: str) -> None:
        """Free an adapter that no request uses. Unknown names are ignored."""

    def seat(self) -> Any:
        """Return what another process joins this engine by, once. Raises :class:`EngineDown` where none is left."""

    async def join(self, seat: Any) -> None:
        """Use the engine that another process has started, in the place of :meth:`start`. Raises
        :class:`EngineDown`."""

    def lost(self) -> None:
        """Take note that the engine that was joined is gone: requests in flight end with :class:`EngineDown`."""

    async def left(self, seat: Any) -> None:
        """End what a process that is gone had asked of this engine by its ``seat``."""

    def lent(self, name: str) -> Any:
        """Return what another process needs to use a resident adapter."""

    async def borrow(self, name: str, lent: Any) -> None:
        """Use an adapter that the process which started the engine has loaded."""

    def give_back(self, name: str) -> None:
        """Use it no more."""

    @property
    def measured(self) -> float:
        """When this process was last told the engine's own gauges (of :func:`time.monotonic`)."""

    async def openai(self) -> OpenAI:
        """Return OpenAI's API over this engine. Raises :class:`EngineDown`."""

    def generate(
        self, prompt: list[int], sampling: Sampling, adapter: str | None, *, stream: bool = False
    ) -> AsyncGenerator[Chunk]:
        """Answer ``prompt`` (token ids) with ``adapter``, or the base model for ``None``.

        Without ``stream`` there is one chunk. Leaving the iterator, or cancelling the task that waits in it,
        aborts the request and frees what it holds. Raises :class:`EngineDown`, :class:`EngineRefused`.
        """

    def batch(self, sampling: Sampling, adapter: str | None, done: Done) -> AbstractAsyncContextManager[Batch]:
        """Answer many prompts, each whole, as :meth:`generate` does without ``stream``, and with less work around each.

        ``done`` is called with a prompt's place, and its answer or what was raised instead. Leaving the context aborts
        what is not answered.
        """
