"""Several workers beside each other, as on several GPUs: an adapter is loaded and unloaded on all of them.

On two CPU processes; the service itself refuses that, for one process with all cores is faster. Pipeline parallelism
cannot be tried so: without compiling, vLLM's CPU worker makes no buffers for what a later stage receives.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest

from adapters.base_model import Base
from adapters.store import Store
from service.engine.vllm import VllmEngine
from service.settings import Settings
from tests.service.test_families import by_peft

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
# Enough at once that every copy of the base gets some of them.
EACH = 6


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize("how", ["tensor_parallel", "data_parallel"])
async def test_every_worker_has_what_was_loaded_and_answers_as_peft_does(
    tmp_path: Path, tiny_folder: Path, tiny: Base, stocked: Store, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    settings = Settings(max_loras=2, max_cpu_loras=2, max_lora_rank=8, max_model_len=256, kv_cache_gib=0.25)
    folders = {f"mood@{version}": stocked.fetch("mood", version, tmp_path / "fetched") for version in (1, 2)}
    task = stocked.manifest("mood", 1)[0].task
    prompt, sampling = task.prompt("A moving film.", tiny.tokenizer).ids, task.sampling({})
    engine = VllmEngine(settings.model_copy(update={how: 2}), tiny)

    copies = engine._settings.data_parallel

    async def ask(name: str) -> dict[int, float]:
        async with aclosing(engine.generate(prompt, sampling, name)) as chunks:
            return [chunk async for chunk in chunks][-1].logprobs

    async def there() -> list[set[int]]:
        """Return what each copy of the base has; that all workers of one have the same is vLLM's own assertion."""
        return await engine._llm.engine_core.call_utility_all_async("list_loras")

    await engine.start()
    try:
        for again in range(2):
            for name, folder in folders.items():
                await engine.load(name, folder)
            assert [len(loras) for loras in await there()] == [2] * copies
            answers = await asyncio.gather(*(ask(name) for name in folders for _ in range(EACH)))
            for name in folders:
                await engine.unload(name)
            assert not any(await there())
            expected = [by_peft(tiny_folder, folder, prompt, sampling.choices) for folder in folders.values()]
            for number, scores in enumerate(answers):
                assert scores == pytest.approx(expected[number // EACH], abs=1e-3), f"round {again}"
    finally:
        await engine.stop()
