"""A base model that costs nothing beside the code in front of it: two layers, 64 wide, random, with an adapter."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from adapters.base_model import Base, resolve_base
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import ClassificationTask
from loadtests.bench.material import Adapter, Material

LAYERS, HIDDEN, HEADS, VOCABULARY, RANK = 2, 64, 2, 2000, 4
NAME, LABELS = "mood", ("positive", "negative")
TEMPLATE = "Review: {text}\nSentiment:"
WORDS = (
    "a moving film with dull scenes and slow plot that actors play as well beautifully quite never again the story "
    "of one long evening between friends who lost more than they knew good bad great awful loud quiet ending score"
)
TEXTS, WORDS_A_TEXT = 4096, 20


def make_small(folder: Path) -> Material:
    """Fill ``folder`` with the base and a store of one released classifier; return them with texts to classify."""
    random = np.random.default_rng(0)
    texts = [" ".join(random.choice(WORDS.split(), WORDS_A_TEXT)).capitalize() + "." for _ in range(TEXTS)]
    cache = folder / "cache"
    cache.mkdir(parents=True)
    base = resolve_base(str(_write_base(folder / "base", texts)), cache)
    task = ClassificationTask.of(TEMPLATE, LABELS, base.tokenizer)
    store = Store(folder / "store")
    add_version(store, NAME, _write_adapter(folder / "adapter", random), task, base)
    store.release(NAME, NewRelease(stable=1))
    adapter = Adapter(NAME, folder / "store" / NAME / "versions" / "1", task)
    return Material(base, folder / "store", cache, [adapter], [], texts, [])


def make_variants(folder: Path, count: int) -> tuple[Base, ClassificationTask, list[Path], list[str]]:
    """Return the base, the task, so many adapters that differ, and eight texts."""
    random = np.random.default_rng(1)
    texts = [" ".join(random.choice(WORDS.split(), WORDS_A_TEXT)).capitalize() + "." for _ in range(8)]
    base = resolve_base(str(_write_base(folder / "base", texts)), folder)
    task = ClassificationTask.of(TEMPLATE, LABELS, base.tokenizer)
    return base, task, [_write_adapter(folder / f"adapter-{place}", random) for place in range(count)], texts


def _write_base(folder: Path, texts: list[str]) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    start, end = "<|start|>", "<|end|>"
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[start, end],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEMPLATE, *LABELS, *texts], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=start, eos_token=end).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=2048,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _write_adapter(folder: Path, random: np.random.Generator) -> Path:
    tensors = {}
    for layer in range(LAYERS):
        for module in ("q_proj", "v_proj"):
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{key}.lora_A.weight"] = random.normal(0, 0.3, (RANK, HIDDEN)).astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = random.normal(0, 0.3, (HIDDEN, RANK)).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "small", "bias": "none"}
    about |= {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    return folder
