"""What every engine does, asked of the fake and of vLLM alike. The vLLM engine is real: nothing is mocked."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, aclosing, nullcontext
from pathlib import Path

import pytest

from adapters.base_model import Base
from adapters.tasks import ClassificationTask, Decoding, Sampling
from service.engine.base import Chunk, Engine, EngineDown, EngineRefused, Limits
from service.engine.fake import FakeEngine
from service.settings import Settings
from tests.conftest import MakeAdapter, write_adapter, write_prompt

pytestmark = pytest.mark.anyio
SETTINGS = Settings(max_loras=2, max_cpu_loras=2, max_lora_rank=8, max_model_len=256, kv_cache_gib=0.25)
LIMITS = Limits(SETTINGS.max_resident, 8, SETTINGS.max_model_len)
NAMES = iter(f"adapter@{n}" for n in range(1, 10_000))


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module", params=["fake", pytest.param("vllm", marks=pytest.mark.slow)])
async def engine(request: pytest.FixtureRequest, tiny: Base) -> AsyncIterator[Engine]:
    if request.param == "fake":
        made: Engine = FakeEngine(LIMITS, tiny)
    else:
        from service.engine.vllm import VllmEngine

        made = VllmEngine(SETTINGS, tiny)
    await made.start()
    yield made
    await made.stop()
    assert not made.alive


@pytest.fixture
async def loaded(engine: Engine, make_adapter: MakeAdapter) -> AsyncIterator[tuple[str, str]]:
    """Two resident adapters: every slot that the service may fill."""
    names = next(NAMES), next(NAMES)
    for seed, name in enumerate(names):
        await engine.load(name, make_adapter(seed=seed, scale=0.2))
    yield names
    for name in names:
        await engine.unload(name)


@pytest.fixture
def prompt(tiny: Base, sentiment_task: ClassificationTask) -> list[int]:
    return sentiment_task.prompt("A moving, beautifully acted film.", tiny.tokenizer).ids


async def answer(engine: Engine, prompt: list[int], sampling: Sampling, adapter: str | None = None) -> Chunk:
    async with aclosing(engine.generate(prompt, sampling, adapter)) as chunks:
        (chunk,) = [chunk async for chunk in chunks]
        return chunk


async def test_an_answer_is_the_same_again_unless_it_is_drawn(engine: Engine, prompt: list[int]) -> None:
    greedy, drawn = Sampling(max_tokens=8), Sampling(max_tokens=8, decoding=Decoding(temperature=2.0))
    assert len({(await answer(engine, prompt, greedy)).text for _ in range(3)}) == 1
    assert len({(await answer(engine, prompt, drawn)).text for _ in range(8)}) > 1


async def test_an_answer_ends_before_a_stop_text(engine: Engine, prompt: list[int]) -> None:
    whole = (await answer(engine, prompt, Sampling(max_tokens=8))).text
    stop = whole.split()[1] if len(whole.split()) > 1 else whole.strip()[1]
    ended = await answer(engine, prompt, Sampling(max_tokens=8, decoding=Decoding(stop=(stop,))))
    assert stop not in ended.text
    assert whole.startswith(ended.text.rstrip())
    assert ended.finish_reason == "stop"


def choices(task: ClassificationTask) -> Sampling:
    return task.sampling({})


async def test_choices_are_scored_in_one_token(engine: Engine, prompt, sentiment_task) -> None:
    chunk = await answer(engine, prompt, choices(sentiment_task))
    assert set(chunk.logprobs) == {label.token_id for label in sentiment_task.labels}
    assert all(logprob < 0 for logprob in chunk.logprobs.values())
    assert chunk.tokens == 1


async def test_a_hundred_choices_are_scored_at_once(engine: Engine, prompt) -> None:
    chunk = await answer(engine, prompt, Sampling(max_tokens=1, choices=tuple(range(100, 228))))
    assert len(chunk.logprobs) == 128


async def test_an_adapter_changes_the_answer_and_the_base_stays_as_it_was(
    engine: Engine, loaded, prompt, sentiment_task
) -> None:
    base = await answer(engine, prompt, choices(sentiment_task))
    adapted = [await answer(engine, prompt, choices(sentiment_task), name) for name in loaded]
    again = await answer(engine, prompt, choices(sentiment_task))
    values = [tuple(chunk.logprobs.values()) for chunk in (base, *adapted)]
    assert len(set(values)) == 3
    assert again.logprobs == pytest.approx(base.logprobs, abs=1e-4)


async def test_requests_of_different_adapters_and_the_base_in_one_batch_do_not_mix(
    engine: Engine, loaded, prompt, sentiment_task
) -> None:
    # Stock CPU kernels give base requests the last slot's weights when every slot is filled.
    asked = [None, *loaded] * 6
    alone = {name: (await answer(engine, prompt, choices(sentiment_task), name)).logprobs for name in set(asked)}
    together = await asyncio.gather(*(answer(engine, prompt, choices(sentiment_task), name) for name in asked))
    for name, chunk in zip(asked, together, strict=True):
        assert chunk.logprobs == pytest.approx(alone[name], abs=1e-4)


async def test_text_comes_whole_or_in_pieces_and_is_the_same(engine: Engine, loaded, prompt) -> None:
    sampling = Sampling(max_tokens=8)
    whole = await answer(engine, prompt, sampling, loaded[0])
    async with aclosing(engine.generate(prompt, sampling, loaded[0], stream=True)) as chunks:
        pieces = [chunk async for chunk in chunks]
    assert "".join(piece.text for piece in pieces).strip() == whole.text.strip()
    assert sum(piece.tokens for piece in pieces) == whole.tokens <= 8
    assert pieces[-1].finish_reason == whole.finish_reason
    assert all(piece.finish_reason is None for piece in pieces[:-1])


async def test_a_request_that_is_left_costs_the_others_nothing(engine: Engine, loaded, prompt) -> None:
    async def leave_early() -> str:
        async with aclosing(engine.generate(prompt, Sampling(max_tokens=150), loaded[0], stream=True)) as chunks:
            async for chunk in chunks:
                return chunk.text
        raise AssertionError("no chunk came")

    await asyncio.gather(*(leave_early() for _ in range(4)))
    assert (await answer(engine, prompt, Sampling(max_tokens=4), loaded[1])).tokens > 0


async def together(engine: Engine, prompts: list[list[int]], sampling: Sampling, adapter: str | None) -> list:
    answers: dict[int, Chunk | Exception] = {}
    async with engine.batch(sampling, adapter, answers.__setitem__) as batch:
        for place, prompt in enumerate(prompts):
            await batch.add(place, prompt)
        await batch.finish()
    return [answers[place] for place in range(len(prompts))]


async def test_a_batch_is_answered_as_each_prompt_by_itself_is(engine: Engine, loaded, prompt, sentiment_task) -> None:
    prompts = [prompt, prompt[:-1], [*prompt, *prompt]]
    for sampling in (choices(sentiment_task), Sampling(max_tokens=4)):
        for name in (None, loaded[0]):
            alone = [await answer(engine, each, sampling, name) for each in prompts]
            for one, chunk in zip(alone, await together(engine, prompts, sampling, name), strict=True):
                assert (chunk.text, chunk.tokens, chunk.finish_reason) == (one.text, one.tokens, one.finish_reason)
                assert chunk.logprobs == pytest.approx(one.logprobs, abs=1e-4)
    assert await together(engine, [], choices(sentiment_task), None) == []


async def test_a_prompt_of_a_batch_that_is_refused_costs_the_others_nothing(
    engine: Engine, loaded, prompt, sentiment_task
) -> None:
    too_long = prompt * 40
    first, refused, last = await together(engine, [prompt, too_long, prompt], choices(sentiment_task), loaded[0])
    assert isinstance(refused, EngineRefused)
    assert first.logprobs == pytest.approx(last.logprobs, abs=1e-4)
    with pytest.raises(EngineRefused):
        await together(engine, [prompt], choices(sentiment_task), "nobody")


async def test_a_batch_that_is_left_is_told_nothing_more(engine: Engine, loaded, prompt) -> None:
    told: list[int] = []
    async with engine.batch(Sampling(max_tokens=100), loaded[0], lambda place, _: told.append(place)) as batch:
        for place in range(3):
            await batch.add(place, prompt)
        before = len(told)
    assert (await answer(engine, prompt, Sampling(max_tokens=4), loaded[1])).tokens > 0
    assert len(told) == before


async def test_a_learnt_prompt_is_served_beside_adapters_and_the_base(
    engine: Engine, make_adapter: MakeAdapter, tmp_path: Path, prompt, sentiment_task, tiny: Base
) -> None:
    learnt, lora = next(NAMES), next(NAMES)
    folder = write_prompt(tmp_path / "prompt", tokens=3)
    await engine.load(learnt, folder)
    await engine.load(lora, make_adapter(seed=0, scale=0.2))
    sampling = sentiment_task.sampling({})
    alone = [await answer(engine, prompt, sampling, adapter) for adapter in (learnt, lora, None)]
    together = await asyncio.gather(*(answer(engine, prompt, sampling, a) for a in (learnt, lora, None) * 3))
    for one, other in zip(together, alone * 3, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    assert alone[0].logprobs != pytest.approx(alone[2].logprobs, abs=1e-2)
    if not isinstance(engine, FakeEngine):
        assert alone[0].logprobs == pytest.approx(in_front(folder, prompt, sampling, tiny), abs=1e-3)
    whole = await answer(engine, prompt, Sampling(max_tokens=8), learnt)
    assert whole.text == (await answer(engine, prompt, Sampling(max_tokens=8), learnt)).text
    for name in (learnt, lora):
        await engine.unload(name)
    with pytest.raises(EngineRefused):
        await answer(engine, prompt, sampling, learnt)


def in_front(folder: Path, prompt: list[int], sampling: Sampling, base: Base) -> dict[int, float]:
    """Return what transformers says to the vectors of ``folder`` and then ``prompt``."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base.folder)
    vectors = load_file(folder / "adapter_model.safetensors")["prompt_embeddings"].float()
    with torch.no_grad():
        text = model.get_input_embeddings()(torch.tensor(prompt))
        logprobs = model(inputs_embeds=torch.cat([vectors, text])[None]).logits[0, -1].log_softmax(-1)
    return {choice: float(logprobs[choice]) for choice in sampling.choices}


async def test_an_adapter_that_is_not_resident_is_refused(engine: Engine, prompt, sentiment_task) -> None:
    with pytest.raises(EngineRefused):
        await answer(engine, prompt, choices(sentiment_task), "nobody@1")


async def test_a_prompt_longer_than_the_context_is_refused(engine: Engine, prompt) -> None:
    with pytest.raises(EngineRefused):
        await answer(engine, prompt * 60, Sampling(max_tokens=4))
    assert engine.alive


@pytest.mark.parametrize("fault", ["rank", "empty folder", "no safetensors"])
async def test_an_adapter_that_cannot_be_loaded_is_refused_and_kills_nothing(
    engine: Engine, tmp_path: Path, prompt, sentiment_task, fault: str
) -> None:
    folder = tmp_path / "bad"
    folder.mkdir()
    if fault != "empty folder":
        write_adapter(folder, rank=16 if fault == "rank" else 4)
    if fault == "no safetensors":
        (folder / "adapter_model.safetensors").write_bytes(b"rubbish")
    with pytest.raises(EngineRefused):
        await engine.load("bad@1", folder)
    assert engine.alive
    assert (await answer(engine, prompt, choices(sentiment_task))).tokens == 1


async def test_one_adapter_more_than_fits_is_refused(engine: Engine, loaded, make_adapter: MakeAdapter) -> None:
    with pytest.raises(EngineRefused):
        await engine.load(next(NAMES), make_adapter(seed=7))


async def test_a_slot_is_used_again_by_the_next_adapter(
    engine: Engine, make_adapter: MakeAdapter, prompt, sentiment_task
) -> None:
    seen = set()
    for seed in range(5):
        name = next(NAMES)
        await engine.load(name, make_adapter(seed=seed, scale=0.2))
        chunk = await answer(engine, prompt, choices(sentiment_task), name)
        seen.add(tuple(round(value, 4) for value in chunk.logprobs.values()))
        await engine.unload(name)
    assert len(seen) == 5


async def test_what_is_not_running_says_so(tiny: Base, prompt, sentiment_task) -> None:
    with pytest.raises(EngineDown):
        await answer(FakeEngine(LIMITS, tiny), prompt, choices(sentiment_task))


class Counted:
    """Lets every generation in, and counts."""

    def __init__(self) -> None:
        self.prompt = self.completion = 0

    def turn(self, tokens: int, answers: int = 1) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    def count(self, prompt: int, completion: int) -> None:
        self.prompt, self.completion = self.prompt + prompt, self.completion + completion

    def fail(self, error: Exception) -> None:
        raise error


async def test_openais_api_says_what_the_engine_does_with_the_same_tokens_and_adapter(
    engine: Engine, loaded, prompt
) -> None:
    api, sampling = await engine.openai(), Sampling(max_tokens=6)

    async def said(adapter: str | None, stream: bool) -> str:
        meter = Counted()
        document = {"model": "x", "prompt": prompt, "max_tokens": 6, "temperature": 0, "stream": stream}
        told = await api.answer("completions", api.parse("completions", document), adapter, meter)
        if isinstance(told, dict):
            assert told["usage"]["completion_tokens"] == meter.completion
            return told["choices"][0]["text"]
        events = [json.loads(event[6:]) async for event in told if "[DONE]" not in event]
        return "".join(event["choices"][0]["text"] for event in events)

    asked = [(name, stream) for name in (None, *loaded) for stream in (False, True)] * 2
    answers = await asyncio.gather(*(said(name, stream) for name, stream in asked))
    for (name, _), text in zip(asked, answers, strict=True):
        assert text.strip() == (await answer(engine, prompt, sampling, name)).text.strip()


async def test_a_shape_is_kept_by_an_adapter_too(engine: Engine, loaded) -> None:
    if isinstance(engine, FakeEngine):
        return  # which has no grammar to keep to
    api = await engine.openai()
    shape = {"type": "object", "properties": {"mood": {"enum": ["good", "bad"]}}, "required": ["mood"]}
    form = {"type": "json_schema", "json_schema": {"name": "mood", "schema": shape}}
    document = {"model": "x", "messages": [{"role": "user", "content": "A film."}], "response_format": form}
    told = await api.answer("chat", api.parse("chat", document | {"max_tokens": 60}), loaded[0], Counted())
    assert isinstance(told, dict)
    assert json.loads(told["choices"][0]["message"]["content"])["mood"] in ("good", "bad")
