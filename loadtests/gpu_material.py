"""What ``loadtests.gpu`` asks, and whom: texts of its own, for no data is at hand everywhere, and adapters made of the
shipped ones."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from adapters.base_model import Base, resolve_base, weight_files
from adapters.intake import add_version
from adapters.packages import cache_folder
from adapters.releases import NewRelease
from adapters.seed import STARTER
from adapters.store import CONFIG, WEIGHTS, Store
from loadtests.bench.material import DESCRIPTIONS, REVIEWS, Adapter, Material

# Asked by name: the shipped adapters, one that changes under load, and a prompt whose vectors are those of words.
SWAPPED, LEARNT = "swapped", "learnt-prompt"
VERSIONS, SUMMARIZERS = 6, 4
INSTRUCTION = "Here is what somebody wrote about a film. Say whether they liked it."
NOISE = 0.02
THINGS = ("plot", "acting", "music", "camera work", "ending", "dialogue", "first act", "villain", "cast", "pace")
GOOD = (
    "moving",
    "sharp",
    "a delight",
    "full of wit",
    "worth the ticket",
    "beautifully done",
    "never dull",
    "a triumph",
)
BAD = ("a mess", "flat", "far too long", "hard to sit through", "without a spark", "clumsy", "a waste", "forgettable")
TOOLS = ("tool", "library", "daemon", "set of scripts", "plugin", "editor", "viewer", "client")
TASKS = ("reads mail from several accounts", "draws graphs of directed networks", "compresses large archives")
TASKS += ("converts images between formats", "watches folders for changes", "plays music from the command line")
TRAITS = ("needs no configuration", "runs on small machines", "can be scripted", "keeps its data in plain files")


def make_material(folder: Path, adapters: int) -> Material:
    """Fill ``folder`` with a store of ``adapters`` classifiers and what is asked by name, and a cache in which nothing
    is compiled yet."""
    base, store = resolve_base(None, cache_folder()), Store(folder / "store")
    for name in (REVIEWS, DESCRIPTIONS):
        _add(store, base, name, name, lambda tensors: None)
    for version in range(VERSIONS):
        _add(store, base, SWAPPED, REVIEWS, _swapped(version), release=version == 0)
    _add_learnt_prompt(store, base, folder / "learnt")
    made = Material(
        base=base,
        store=folder / "store",
        cache=folder / "cache",
        classify=[_add(store, base, f"gpu-{n:02d}", REVIEWS, _noisy(n)) for n in range(adapters)],
        summarize=[_add(store, base, f"gpu-sum-{n}", DESCRIPTIONS, _noisy(n)) for n in range(SUMMARIZERS)],
        reviews=[review(n) for n in range(8000)],
        descriptions=[description(n) for n in range(2000)],
    )
    made.cache.mkdir()
    (made.cache / "base").symlink_to(cache_folder() / "base")
    return made


def lengthened(material: Material, reviews: int) -> Material:
    """Return the same with longer texts, each of so many reviews."""
    return replace(material, reviews=[" ".join(review(n * reviews + k) for k in range(reviews)) for n in range(2000)])


def review(number: int) -> str:
    dice = random.Random(number)
    clauses = [
        f"the {dice.choice(THINGS)} is {dice.choice(dice.choice((GOOD, BAD)))}" for _ in range(dice.randint(1, 3))
    ]
    return f"In film {number} {', and '.join(clauses)}."


def description(number: int) -> str:
    dice = random.Random(number)
    what, traits = f"Package {number} is a {dice.choice(TOOLS)} that {dice.choice(TASKS)}", dice.sample(TRAITS, 3)
    return f"{what}. It {traits[0]}, {traits[1]}, and {traits[2]}. Many people use it every day, at home and at work."


def learnt_folder(material: Material) -> Path:
    return material.store / LEARNT / "versions" / "1"


def _noisy(number: int) -> Callable[[dict[str, np.ndarray]], None]:
    """Return a change that makes weights a little different from every other number's."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        dice = np.random.default_rng(number)
        for key, tensor in tensors.items():
            tensors[key] = tensor * (1 + NOISE * dice.standard_normal(tensor.shape, dtype=np.float32))

    return change


def _swapped(version: int) -> Callable[[dict[str, np.ndarray]], None]:
    """Return a change after which every second version pulls the other way: its answers cannot be taken for the
    last one's."""

    def change(tensors: dict[str, np.ndarray]) -> None:
        _noisy(100 + version)(tensors)
        for key in tensors:
            if version % 2 and ".lora_B." in key:
                tensors[key] = -tensors[key]

    return change


def _add(
    store: Store,
    base: Base,
    name: str,
    starter: str,
    change: Callable[[dict[str, np.ndarray]], None],
    *,
    release: bool = True,
) -> Adapter:
    """Store a copy of a shipped adapter whose weights were changed, as the next version."""
    source, scratch = STARTER / starter / "versions" / "1", Path(store.place).parent / "scratch"
    scratch.mkdir(exist_ok=True)
    tensors = load_file(source / WEIGHTS)
    change(tensors)
    shutil.copy(source / CONFIG, scratch)
    save_file(tensors, scratch / WEIGHTS)
    task = Store(STARTER).manifest(starter, 1)[0].task
    version = add_version(store, name, scratch, task, base).version
    if release:
        store.release(name, NewRelease(stable=version))
    return Adapter(name, Path(store.place) / name / "versions" / str(version), task)


def _add_learnt_prompt(store: Store, base: Base, folder: Path) -> None:
    ids = base.tokenizer.encode(INSTRUCTION)
    (weights,) = weight_files(base.folder)
    with safe_open(weights, "np") as file:
        rows = file.get_tensor("model.embed_tokens.weight")[ids]
    folder.mkdir()
    save_file({"prompt_embeddings": np.ascontiguousarray(rows)}, folder / WEIGHTS)
    config = {"peft_type": "PROMPT_TUNING", "task_type": "CAUSAL_LM", "num_virtual_tokens": len(ids)}
    (folder / CONFIG).write_text(json.dumps(config))
    add_version(store, LEARNT, folder, Store(STARTER).manifest(REVIEWS, 1)[0].task, base)
    store.release(LEARNT, NewRelease(stable=1))
