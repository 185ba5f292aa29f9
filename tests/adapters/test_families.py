"""Bases as they are on the Hub: whatever the family calls its modules, what PEFT makes for it passes lint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from adapters.architecture import Architecture
from adapters.base_model import resolve_base
from adapters.errors import HotswapError, InvalidAdapter
from adapters.intake import add_version
from adapters.lint import lint
from adapters.modules import base_shapes
from adapters.store import Store
from adapters.tasks import SummarizationTask
from service.engine import fitness
from service.engine.sizing import Model
from service.settings import Settings
from tests.bases import FAMILIES, as_packed, write_family


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {family: write_family(family, place / family, tiny_folder) for family in FAMILIES}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSWAP_CACHE", str(tmp_path / "cache"))


def write_lora(base: Path, folder: Path, *targets: str) -> Path:
    """Write a LoRA of ``base`` as PEFT does, on the modules of its language model that are so called; default: all."""
    kind: Any = getattr(transformers, FAMILIES[base.name][0])
    about: dict[str, Any] = {"target_modules": list(targets) or "all-linear"}
    if base.name == "gemma3":
        about["exclude_modules"] = r".*(vision_tower|multi_modal_projector).*"
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", init_lora_weights=False, **about)
    get_peft_model(kind.from_pretrained(base), config).save_pretrained(folder)
    return folder


# PEFT has a form of its own for all experts at once, which no engine reads.
BESIDE_EXPERTS = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_of_its_linear_layers_passes(bases: dict[str, Path], tmp_path: Path, family: str) -> None:
    targets = BESIDE_EXPERTS if "moe" in family else ()
    facts = lint(write_lora(bases[family], tmp_path / "lora", *targets), shapes=base_shapes(bases[family]))
    assert facts.rank == 4
    if family == "phi3":
        assert {"qkv_proj", "gate_up_proj"} < set(facts.target_modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_opened_measured_and_found_fit(bases: dict[str, Path], tmp_path: Path, family: str) -> None:
    resolve_base(str(bases[family]), tmp_path)
    fitness.check(Settings(), bases[family])
    model = Model.of(bases[family])
    assert (model.architecture.layers, model.architecture.hidden, model.architecture.longest) == (2, 64, 2048)
    assert model.a_rank > 0
    assert model.architecture.cached_numbers(10)


@pytest.mark.parametrize("how", ["gptq", "awq", "fp8", "compressed-tensors"])
def test_of_packed_weights_the_modules_are_the_models(
    bases: dict[str, Path], tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = as_packed(Path(shutil.copytree(bases["llama"], tmp_path / "packed")), how)
    plain, found = base_shapes(bases["llama"]), base_shapes(packed)
    assert plain.items() <= found.items()
    assert base_shapes(packed) == found  # as it was remembered
    monkeypatch.setattr(fitness, "is_cpu", lambda: False)  # a CPU computes some of them only
    fitness.check(Settings(), packed)


def test_an_adapter_for_other_shapes_is_refused_whatever_the_files_are(bases: dict[str, Path], tmp_path: Path) -> None:
    packed = as_packed(Path(shutil.copytree(bases["qwen2"], tmp_path / "packed")), "awq")
    adapter = write_lora(bases["phi3"], tmp_path / "lora", "qkv_proj")
    with pytest.raises(InvalidAdapter, match="qkv_proj is not a module of the base model"):
        lint(adapter, shapes=base_shapes(packed))


@pytest.mark.parametrize("noted", ["folder", "class"])
def test_an_adapter_of_another_family_is_refused_where_its_shapes_fit(
    bases: dict[str, Path], tmp_path: Path, noted: str, store: Store
) -> None:
    adapter = write_lora(bases["mistral"], tmp_path / "lora", "q_proj", "v_proj")
    config = json.loads((adapter / "adapter_config.json").read_text())
    if noted == "class":  # as PEFT does where it is told no task
        library = "transformers.models.mistral.modeling_mistral"
        about = {"auto_mapping": {"base_model_class": "MistralForCausalLM", "parent_library": library}}
        (adapter / "adapter_config.json").write_text(json.dumps(config | about | {"base_model_name_or_path": "x/y"}))
    llama = resolve_base(str(bases["llama"]), tmp_path / "cache")
    lint(adapter, shapes=base_shapes(llama.folder))
    with pytest.raises(InvalidAdapter, match="trained on a base of the family mistral, and llama is of llama"):
        add_version(store, "mood", adapter, SummarizationTask.of("{text}:"), llama)
    mistral = resolve_base(str(bases["mistral"]), tmp_path / "cache")
    assert add_version(store, "mood", adapter, SummarizationTask.of("{text}:"), mistral).version == 1


def test_beside_a_vision_tower_only_the_language_model_is_adapted(bases: dict[str, Path]) -> None:
    assert Architecture.of(bases["gemma3"]).is_nested
    names = base_shapes(bases["gemma3"])
    assert "model.language_model.layers.0.self_attn.q_proj" in names
    assert not any("vision" in name for name in names)


def test_a_base_that_transformers_cannot_build_is_told_so(tmp_path: Path, bases: dict[str, Path]) -> None:
    packed = as_packed(Path(shutil.copytree(bases["llama"], tmp_path / "packed")), "gptq")
    config = (packed / "config.json").read_text().replace('"llama"', '"no-such-family"')
    (packed / "config.json").write_text(config)
    with pytest.raises(HotswapError, match="cannot build the base") as refused:
        base_shapes(packed)
    assert "\n" not in str(refused.value)
