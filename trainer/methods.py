"""What of a base model is trained, and how: each method as PEFT has it, with the recipe's settings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptEncoderConfig,
    PromptTuningConfig,
    get_peft_model,
    prepare_model_for_kbit_training,
)
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from transformers.utils.logging import disable_progress_bar

from adapters.base_model import Base
from adapters.chat import wording
from adapters.errors import HotswapError
from adapters.progress import say
from adapters.tasks.base import SLOT
from trainer.recipe import PROMPTS, Recipe

LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")


def load_base(base: Base, recipe: Recipe) -> Any:
    """Return the base model in float32; for QLoRA (Dettmers et al. 2023, arXiv:2305.14314) with its matrices in 4-bit
    NormalFloat, quantized twice."""
    disable_progress_bar()  # its bar of a second would stand between ours
    options: dict[str, Any] = {}
    if recipe.method == "qlora":
        options = {"quantization_config": _four_bit(), "device_map": "cuda:0" if torch.cuda.is_available() else "cpu"}
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32, **options)
    model.config.use_cache = False
    return model


def _four_bit() -> BitsAndBytesConfig:
    try:
        import bitsandbytes  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        raise HotswapError(f"method qlora needs bitsandbytes, which does not work here ({error}); use lora.") from None
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
    )


def adapt(model: Any, recipe: Recipe, base: Base, steps: int, start: Path | None = None) -> Any:
    """Return ``model`` with only those weights trainable that the recipe's method trains; ``steps`` are how many
    optimizer steps there will be, ``start`` the folder of a LoRA to go on from. Raises :class:`HotswapError` where the
    base has not what the recipe names."""
    layers = layers_of(model, recipe)
    if recipe.method == "full":
        return _unfrozen(model, layers)
    if recipe.method == "qlora":
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if start is not None:
        if recipe.last_layers is not None or recipe.lora.model_fields_set - {"plus"}:
            say(f"note: rank, matrices and layers are those of {recipe.start_from}: it goes on with its LoRA")
        return PeftModel.from_pretrained(model, start, is_trainable=True)
    adapted = get_peft_model(model, CONFIGS[recipe.method](model, recipe, layers, steps))
    if recipe.method == "prompt_tuning":
        _begin_with_words(adapted, recipe, base)
    return adapted


@torch.no_grad()
def _begin_with_words(model: Any, recipe: Recipe, base: Base) -> None:
    """Words are a better beginning than noise (Lester et al. 2021, section 3.2)."""
    usual = wording(recipe.task.template or recipe.task.makes.usual_template)
    words = recipe.soft_prompt.start or usual.replace(SLOT, " ")
    ids = base.tokenizer.encode(words)
    table, prompt = model.get_base_model().get_input_embeddings().weight, model.prompt_encoder["default"].embedding
    prompt.weight.copy_(table[[ids[n % len(ids)] for n in range(recipe.soft_prompt.tokens)]])


def layers_of(model: Any, recipe: Recipe) -> list[int] | None:
    """Return the numbers of the layers to adapt; None for all."""
    if recipe.last_layers is None:
        return None
    count = model.config.get_text_config().num_hidden_layers
    if recipe.last_layers > count:
        raise HotswapError(f"last_layers is {recipe.last_layers}; this base has {count} layers.")
    return list(range(count - recipe.last_layers, count))


def _unfrozen(model: Any, layers: list[int] | None) -> Any:
    """Train every matrix of the layers; embeddings and norms stay, because LoRA could not carry their change."""
    model.requires_grad_(False)
    for name, module in model.named_modules():
        layer = LAYER.search(f".{name}.")
        if isinstance(module, torch.nn.Linear) and layer and (layers is None or int(layer[1]) in layers):
            module.weight.requires_grad_(True)
    return model


def _lora(model: Any, recipe: Recipe, layers: list[int] | None, steps: int) -> PeftConfig:
    lora = recipe.lora
    return LoraConfig(
        r=lora.rank,
        use_rslora=lora.rslora,
        use_dora=recipe.method == "dora",
        **low_rank(model, recipe, layers),
    )


def _adalora(model: Any, recipe: Recipe, layers: list[int] | None, steps: int) -> PeftConfig:
    """AdaLoRA (Zhang et al. 2023, arXiv:2303.10512) begins with one and a half times the rank and ends with it on
    average, after the first tenth of the steps and until the last third."""
    if steps < 10:
        raise HotswapError(f"adalora needs 10 steps and more to choose ranks, this run has {steps}; train for longer.")
    schedule = {"tinit": steps // 10, "tfinal": steps // 3, "total_step": steps, "deltaT": max(1, steps // 100)}
    rank = recipe.lora.rank
    return AdaLoraConfig(
        init_r=max(rank + 1, rank * 3 // 2), target_r=rank, **schedule, **low_rank(model, recipe, layers)
    )


def low_rank(model: Any, recipe: Recipe, layers: list[int] | None) -> dict[str, Any]:
    lora = recipe.lora
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    if (targets := lora.target_modules) is None:  # PEFT's "all-linear" cannot be had of some layers only
        targets = tuple(sorted({name.rsplit(".", 1)[-1] for name in linear if LAYER.search(f".{name}.")}))
    unknown = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
    if unknown or not targets:
        names = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in linear}))
        what = f"this base has no {', '.join(unknown)}" if unknown else "name one at least"
        raise HotswapError(f"lora.target_modules: {what}; it has: {names}.")
    return {
        "task_type": "CAUSAL_LM",
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "layers_to_transform": layers,
        "target_modules": list(targets),
    }


def _ia3(model: Any, recipe: Recipe, layers: list[int] | None, steps: int) -> PeftConfig:
    """(IA)³ scales keys, values and the feed-forward's inner activations (Liu et al. 2022, arXiv:2205.05638)."""
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    scaled = [
        name
        for name in linear
        if name.endswith(("k_proj", "v_proj", "down_proj"))
        and (layers is None or int(LAYER.search(f".{name}.")[1]) in layers)  # type: ignore[index]
    ]
    inner = [name for name in scaled if name.endswith("down_proj")]
    if not scaled or not inner:
        raise HotswapError("method ia3 knows bases with k_proj, v_proj and down_proj; use lora for this one.")
    return IA3Config(task_type="CAUSAL_LM", target_modules=scaled, feedforward_modules=inner)


def _prompt(model: Any, recipe: Recipe, layers: list[int] | None, steps: int) -> PeftConfig:
    """Prompt tuning (Lester et al. 2021, arXiv:2104.08691), P-tuning (Liu et al. 2021, arXiv:2103.10385) or prefix
    tuning (Li and Liang 2021, arXiv:2101.00190)."""
    common = {"task_type": "CAUSAL_LM", "num_virtual_tokens": recipe.soft_prompt.tokens}
    if recipe.method == "prefix_tuning":
        return PrefixTuningConfig(**common)
    if recipe.method == "p_tuning":
        return PromptEncoderConfig(encoder_hidden_size=recipe.soft_prompt.encoder_width, **common)
    return PromptTuningConfig(**common)


CONFIGS: dict[str, Callable[[Any, Recipe, list[int] | None, int], PeftConfig]] = {
    "lora": _lora,
    "qlora": _lora,
    "dora": _lora,
    "adalora": _adalora,
    "ia3": _ia3,
} | dict.fromkeys(PROMPTS, _prompt)
