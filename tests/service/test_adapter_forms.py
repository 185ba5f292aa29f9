"""Whatever form an adapter comes in, the engine answers with it as PEFT does. The engine is real."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from adapters.base_model import Base
from adapters.intake import add_version
from adapters.store import CONFIG, WEIGHTS, Store
from adapters.tasks import ClassificationTask
from service.engine.base import EngineRefused
from service.engine.vllm import VllmEngine
from service.settings import Settings
from tests.conftest import write_prompt

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
ATTENTION = ["q_proj", "v_proj"]
# As PEFT is told to make them.
PEFT_FORMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "ranks-by-pattern": {"rank_pattern": {r".*\.layers\.1\..*": 8, "v_proj": 2}},
    "alphas-by-pattern": {"alpha_pattern": {"layers.0.self_attn.q_proj": 1, "v_proj": 30}},
    "both-rslora": {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 5}, "use_rslora": True},
    "embeddings": {"target_modules": [*ATTENTION, "embed_tokens"]},
    "head": {"target_modules": [*ATTENTION, "lm_head"]},
    "embeddings-and-head-by-pattern": {
        "target_modules": [*ATTENTION, "embed_tokens", "lm_head"],
        "alpha_pattern": {"embed_tokens": 3, "lm_head": 2},
        "rank_pattern": {"lm_head": 2},
    },
}


def renamed(change: Callable[[str], str]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        save_file({change(key): tensor for key, tensor in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)

    return edit


def configured(**settings: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / CONFIG).read_bytes())
        (folder / CONFIG).write_text(json.dumps(config | settings))

    return edit


# As others leave the plain one.
OTHER_FORMS: dict[str, Callable[[Path], None]] = {
    "no prefix": renamed(lambda key: key.removeprefix("base_model.model.")),
    "an adapter's name": renamed(lambda key: key.replace(".weight", ".default.weight")),
    "a compiled model's": renamed(lambda key: key.replace("base_model.model.", "base_model.model._orig_mod.")),
    "a rank of 4.0": configured(r=4.0, lora_alpha=8.0),
    "LoRA-GA": configured(init_lora_weights="lora_ga"),
    "MiCA": configured(init_lora_weights="mica"),
    "fan in, fan out": configured(fan_in_fan_out=True),
}


def made_by_peft(base: Base, folder: Path, settings: dict[str, Any]) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ATTENTION, "init_lora_weights": False}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base.folder), LoraConfig(**options | settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def by_peft(base: Base, folder: Path, prompt: list[int], choices: tuple[int, ...]) -> dict[int, float]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base.folder), folder)
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    return {choice: float(logprobs[choice]) for choice in choices}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(tiny: Base) -> AsyncIterator[VllmEngine]:
    settings = Settings(max_loras=16, max_cpu_loras=16, max_lora_rank=8, max_model_len=256, kv_cache_gib=0.25)
    engine = VllmEngine(settings, tiny)
    await engine.start()
    yield engine
    await engine.stop()


async def answer(engine: VllmEngine, prompt: list[int], task: ClassificationTask, adapter: str | None) -> Any:
    async with aclosing(engine.generate(prompt, task.sampling({}), adapter)) as chunks:
        (chunk,) = [chunk async for chunk in chunks]
        return chunk.logprobs


async def test_every_form_that_is_taken_in_is_served_as_peft_has_it(
    engine: VllmEngine, tiny: Base, store: Store, sentiment_task: ClassificationTask, tmp_path: Path
) -> None:
    prompt = sentiment_task.prompt("A moving, beautifully acted film.", tiny.tokenizer).ids
    choices = sentiment_task.sampling({}).choices
    expected = {}
    for form, settings in PEFT_FORMS.items():
        folder = made_by_peft(tiny, tmp_path / form, settings)
        expected[form] = by_peft(tiny, folder, prompt, choices)
    for form, edit in OTHER_FORMS.items():
        shutil.copytree(tmp_path / "plain", tmp_path / form)
        edit(tmp_path / form)
        expected[form] = expected["plain"]
    for number, form in enumerate(expected, 1):
        add_version(store, "mood", tmp_path / form, sentiment_task, tiny)
        stored = store.fetch("mood", number, tmp_path / "cache")
        assert by_peft(tiny, stored, prompt, choices) == pytest.approx(expected[form], abs=1e-4), form
        await engine.load(form, stored)
    # Together: no form may change what is answered beside it.
    forms = [*expected, None] * 2
    served = await asyncio.gather(*(answer(engine, prompt, sentiment_task, form) for form in forms))
    alone = await answer(engine, prompt, sentiment_task, None)
    for form, logprobs in zip(forms, served, strict=True):
        reference = expected[form] if form else alone
        assert logprobs == pytest.approx(reference, abs=1e-3), form
        assert form is None or logprobs != pytest.approx(alone, abs=1e-2), form
    # vLLM looks up the rows of texts alone where a learnt prompt is in the batch, and takes them for other rows' LoRA.
    with pytest.raises(EngineRefused, match="embed_tokens"):
        await engine.load("learnt", write_prompt(tmp_path / "learnt"))
    for form in ("embeddings", "embeddings-and-head-by-pattern"):
        await engine.unload(form)
    await engine.load("learnt", write_prompt(tmp_path / "learnt"))
    with pytest.raises(EngineRefused, match="learnt prompt"):
        await engine.load("embeddings", store.fetch("mood", list(expected).index("embeddings") + 1, tmp_path / "cache"))
