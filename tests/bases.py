"""Tiny random bases of many families, as transformers makes them and the Hub has them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

SIZES = {
    "vocab_size": 600,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
    "initializer_range": 0.2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
# Family → the class that transformers saves, and what differs from SIZES.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", {"tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2": ("Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3ForCausalLM", {}),
    "gemma2": ("Gemma2ForCausalLM", {}),
    "gemma3_text": ("Gemma3ForCausalLM", {"layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": ("Phi3ForCausalLM", {}),
    "granite": ("GraniteForCausalLM", {}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", EXPERTS),
    "gemma3": ("Gemma3ForConditionalGeneration", {}),
    "gpt2": ("GPT2LMHeadModel", {"n_positions": 2048}),
}


def write_family(family: str, folder: Path, tokenizer: Path) -> Path:
    """Write a base of ``family``, with the tokenizer of the folder ``tokenizer``."""
    import torch
    import transformers

    kind, differing = FAMILIES[family]
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    if family == "gemma3":
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
        vision |= {"image_size": 28, "patch_size": 14}
        text = SIZES | {"layer_types": ["sliding_attention", "full_attention"]}
        config = transformers.Gemma3Config(text_config=text, vision_config=vision, eos_token_id=2)
    else:
        config = model_class.config_class(**SIZES | differing)
    model_class(config).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tokenizer / file, folder)
    return folder


def as_packed(folder: Path, how: str) -> Path:
    """Make a checkpoint look as GPTQ, AWQ and their like store it: integers under other names."""
    import numpy as np
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        rows, columns = tensors.pop(name).shape
        stem = name.removesuffix(".weight")
        tensors[f"{stem}.qweight"] = np.zeros((columns // 8, rows), np.int32)
        tensors[f"{stem}.scales"] = np.ones((columns // 32, rows), np.float16)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": how, "bits": 4, "group_size": 32}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
NEXT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# Forms that bases have: with and without what opens a sequence, the answer after a line or after a blank.
CHAT_TEMPLATES = {
    "chatml": TURNS + NEXT,
    "bos": "{{ bos_token }}" + TURNS + NEXT,
    "instruct": "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}",
}
ODD_TEMPLATES = {
    "other-end": TURNS.replace("<|im_end|>", "<|endoftext|>") + NEXT,
    "raises": "{{ raise_exception('Conversation roles must alternate') }}",
    "broken": "{% for m in messages %}",
    "no-system": "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    + TURNS,
    "forgets": "{{ messages[-1].content }}:",
}


def with_chat_template(folder: Path, name: str) -> Path:
    """Give the base in ``folder`` one of the chat templates above."""
    (folder / "chat_template.jinja").write_text((CHAT_TEMPLATES | ODD_TEMPLATES)[name])
    return folder
