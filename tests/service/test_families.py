"""Bases of several families in the real engine: an adapter of all their linear layers answers as it does with PEFT."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from adapters.base_model import resolve_base
from adapters.chat import rendered
from adapters.intake import add_version
from adapters.store import Store
from adapters.tasks import Chat, ClassificationTask
from service.engine.vllm import VllmEngine
from service.settings import Settings
from tests.adapters.test_families import write_lora
from tests.bases import FAMILIES, with_chat_template, write_family

TEXT = "A moving, beautifully acted film."
SETTINGS = Settings(max_loras=2, max_cpu_loras=2, max_lora_rank=8, max_model_len=256, kv_cache_gib=0.25)
pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


def by_peft(base: Path, adapter: Path, prompt: list[int], choices: tuple[int, ...]) -> dict[int, float]:
    import transformers
    from peft import PeftModel

    kind = getattr(transformers, FAMILIES.get(base.name, ("AutoModelForCausalLM",))[0])
    model = PeftModel.from_pretrained(kind.from_pretrained(base, dtype=torch.float32), adapter).eval()
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    return {choice: float(logits[choice]) for choice in choices}


def by_transformers(base: Path) -> list[int]:
    said = [{"role": "user", "content": TEXT}]
    tokenizer = AutoTokenizer.from_pretrained(base)
    return list(tokenizer.apply_chat_template(said, add_generation_prompt=True)["input_ids"])


@pytest.mark.parametrize(("family", "chat"), [("phi3", False), ("gemma3_text", True)])
async def test_an_adapter_answers_as_with_peft(tmp_path: Path, tiny_folder: Path, family: str, chat: bool) -> None:
    folder = with_chat_template(write_family(family, tmp_path / family, tiny_folder), "bos")
    base = resolve_base(str(folder), tmp_path / "cache")
    template = rendered(Chat(), folder) if chat else "Review: {text}\nSentiment:"
    task = ClassificationTask.of(template, ["positive", "negative"], base.tokenizer)
    adapter = await asyncio.to_thread(write_lora, folder, tmp_path / "lora")
    add_version(Store(tmp_path / "store"), "mood", adapter, task, base)
    stored = tmp_path / "store" / "mood" / "versions" / "1"
    prompt = task.prompt(TEXT, base.tokenizer).ids
    sampling = task.sampling({})
    engine = VllmEngine(SETTINGS, base)
    await engine.start()
    try:
        await engine.load("mood@1", stored)
        async with aclosing(engine.generate(prompt, sampling, "mood@1")) as chunks:
            (chunk,) = [chunk async for chunk in chunks]
    finally:
        await engine.stop()
    theirs = await asyncio.to_thread(by_transformers, folder) if chat else prompt
    assert chunk.logprobs == pytest.approx(by_peft(folder, stored, theirs, sampling.choices), abs=1e-3)
