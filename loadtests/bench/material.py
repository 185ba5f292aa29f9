"""What every server is given: one base model, a store full of adapters, and real texts."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from adapters.base_model import Base, resolve_base
from adapters.intake import add_version
from adapters.packages import cache_folder
from adapters.releases import NewRelease
from adapters.seed import STARTER
from adapters.store import CONFIG, WEIGHTS, Store
from adapters.tasks import Task
from trainer.data import load_splits
from trainer.loading import load_recipe

RECIPES = Path(__file__).parents[2] / "trainer" / "recipes"
REVIEWS, DESCRIPTIONS = "sentiment", "one-line-summary"
# In the order of a first-come store: these are released, the others are stored and asked for by their version.
RELEASED = 4
NOISE = 0.02


@dataclass(frozen=True)
class Adapter:
    """A version in the store, whose folder is also a PEFT folder that any other server can load."""

    name: str
    folder: Path
    task: Task


@dataclass(frozen=True)
class Material:
    base: Base
    store: Path
    cache: Path
    classify: list[Adapter]
    summarize: list[Adapter]
    reviews: list[str]
    descriptions: list[str]


def make_material(folder: Path, classifiers: int) -> Material:
    """Fill ``folder`` with a store of ``classifiers`` adapters (and ``RELEASED`` for summaries), and read the texts."""
    cache = cache_folder()
    base = resolve_base(None, cache)
    store = Store(folder / "store")
    return Material(
        base=base,
        store=folder / "store",
        cache=_own_cache(folder / "cache", cache),
        classify=[_derive(store, base, REVIEWS, n) for n in range(classifiers)],
        summarize=[_derive(store, base, DESCRIPTIONS, n) for n in range(RELEASED)],
        reviews=_texts(REVIEWS, cache),
        descriptions=_texts(DESCRIPTIONS, cache),
    )


def _derive(store: Store, base: Base, starter: str, number: int) -> Adapter:
    """Store a copy of a shipped adapter whose trained weights differ a little from every other copy's."""
    original, _ = Store(STARTER).manifest(starter, 1)
    source = STARTER / starter / "versions" / "1"
    random = np.random.default_rng(number)
    tensors = load_file(source / WEIGHTS)
    for key, tensor in tensors.items():
        tensors[key] = tensor * (1 + NOISE * random.standard_normal(tensor.shape, dtype=np.float32))
    scratch = Path(store.place).parent / "scratch"
    scratch.mkdir(exist_ok=True)
    shutil.copy(source / CONFIG, scratch)
    save_file(tensors, scratch / WEIGHTS)
    name = f"bench-{starter}-{number:03d}"
    add_version(store, name, scratch, original.task, base)
    if number < RELEASED:
        store.release(name, NewRelease(stable=1))
    return Adapter(name, Path(store.place) / name / "versions" / "1", original.task)


def _own_cache(folder: Path, shared: Path) -> Path:
    """Return a cache that knows the base model, but whose hundreds of adapters go when the run does."""
    folder.mkdir()
    for entry in shared.iterdir():
        if entry.name != "adapters":
            (folder / entry.name).symlink_to(entry)
    return folder


def _texts(recipe: str, cache: Path) -> list[str]:
    """Return the recipe's held-out texts, in an order that is the same in every run."""
    splits = load_splits(load_recipe(RECIPES / f"{recipe}.yaml"), cache)
    return [row.text for row in chain(splits.test, splits.validation, *splits.extra_tests.values())]
