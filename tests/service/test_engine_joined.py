"""An engine that a second process has joined, asked of the fake and of vLLM alike; both sides are in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from adapters.base_model import Base
from adapters.tasks import ClassificationTask, Sampling
from service.engine.base import Engine, EngineDown, EngineRefused, Limits
from service.engine.fake import FakeEngine
from service.settings import Settings
from tests.conftest import MakeAdapter, write_prompt
from tests.service.test_engine_contract import answer, choices

pytestmark = pytest.mark.anyio
SETTINGS = Settings(
    max_loras=2, max_cpu_loras=3, max_lora_rank=8, max_model_len=256, kv_cache_gib=0.25, api_processes=2
)
LIMITS = Limits(SETTINGS.max_resident, 8, SETTINGS.max_model_len)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=pytest.mark.slow)])
async def owner(request: pytest.FixtureRequest, tiny: Base, tmp_path_factory: Any) -> AsyncIterator[Engine]:
    if request.param == "fake":
        made: Engine = FakeEngine(LIMITS, tiny, tmp_path_factory.mktemp("shared"))
    else:
        from service.engine.vllm import VllmEngine

        made = VllmEngine(SETTINGS, tiny)
    await made.start()
    yield made
    await made.stop()
    assert not made.alive


@pytest.fixture
async def seat(owner: Engine) -> Any:
    return owner.seat()


@pytest.fixture
async def guest(owner: Engine, seat: Any, tiny: Base) -> AsyncIterator[Engine]:
    made: Engine = FakeEngine(LIMITS, tiny)
    if not isinstance(owner, FakeEngine):
        from service.engine.vllm import VllmEngine

        made = VllmEngine(SETTINGS, tiny)
    await made.join(seat)
    yield made
    await made.stop()
    assert owner.alive


@pytest.fixture
def prompt(tiny: Base, sentiment_task: ClassificationTask) -> list[int]:
    return sentiment_task.prompt("A moving, beautifully acted film.", tiny.tokenizer).ids


async def test_what_is_lent_answers_as_it_does_there(
    owner: Engine, guest: Engine, prompt: list[int], sentiment_task: ClassificationTask, make_adapter: MakeAdapter
) -> None:
    sampling = choices(sentiment_task)
    await owner.load("a@1", make_adapter(seed=1, scale=0.2))
    with pytest.raises(EngineRefused):
        await answer(guest, prompt, sampling, "a@1")
    await guest.borrow("a@1", owner.lent("a@1"))
    for adapter in (None, "a@1"):
        mine, theirs = [await answer(engine, prompt, sampling, adapter) for engine in (guest, owner)]
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    await guest.check()
    guest.give_back("a@1")
    with pytest.raises(EngineRefused):
        await answer(guest, prompt, sampling, "a@1")
    await owner.unload("a@1")


@pytest.mark.slow
async def test_a_learnt_prompt_is_lent_as_well(
    owner: Engine, guest: Engine, prompt: list[int], sentiment_task: ClassificationTask, tmp_path: Path
) -> None:
    sampling = choices(sentiment_task)
    await owner.load("p@1", write_prompt(tmp_path / "prompt"))
    await guest.borrow("p@1", owner.lent("p@1"))
    mine, theirs = [await answer(engine, prompt, sampling, "p@1") for engine in (guest, owner)]
    assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-4)
    await owner.unload("p@1")


async def test_an_engine_that_is_lost_fails_what_was_asked_of_it_here_alone(
    owner: Engine, guest: Engine, prompt: list[int]
) -> None:
    long = asyncio.create_task(answer(guest, prompt, Sampling(max_tokens=200)))
    await asyncio.sleep(0)
    if isinstance(owner, FakeEngine):
        await long
    guest.lost()
    assert not guest.alive
    if not isinstance(owner, FakeEngine):
        with pytest.raises(EngineDown):
            await long
    with pytest.raises(EngineDown):
        await answer(guest, prompt, Sampling(max_tokens=2))
    assert (await answer(owner, prompt, Sampling(max_tokens=2))).tokens == 2


# Of the fake, nothing goes on without its process.
@pytest.mark.slow
@pytest.mark.parametrize("owner", ["vllm"], indirect=True, scope="module")
async def test_what_a_process_had_asked_ends_with_it(
    owner: Engine, guest: Engine, seat: Any, prompt: list[int], make_adapter: MakeAdapter
) -> None:
    await owner.load("b@1", make_adapter(seed=2, scale=0.2))
    await guest.borrow("b@1", owner.lent("b@1"))
    tasks = [asyncio.create_task(answer(guest, prompt, Sampling(max_tokens=200), "b@1")) for _ in range(8)]
    running = guest._llm.output_processor.request_states  # type: ignore[attr-defined]

    def made() -> list[int]:
        return [state.stats.num_generation_tokens for state in running.values()]

    while len(made()) < len(tasks) or not all(made()):
        await asyncio.sleep(0)
    await owner.left(seat)
    await answer(owner, prompt, Sampling(max_tokens=2))
    before = made()
    await answer(owner, prompt, Sampling(max_tokens=16))
    assert made() == before
    assert len(before) == len(tasks)  # none has come to its end
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await owner.unload("b@1")
    assert (await answer(owner, prompt, Sampling(max_tokens=2))).tokens == 2


# The fake has as many as are asked for.
@pytest.mark.slow
@pytest.mark.parametrize("owner", ["vllm"], indirect=True, scope="module")
async def test_places_run_out(owner: Engine) -> None:
    owner._seats.clear()  # type: ignore[attr-defined]
    with pytest.raises(EngineDown, match="have died"):
        owner.seat()
