"""What a run's folder keeps so that its training can go on by name: the recipe as it was resolved, and the base."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from adapters.base_model import resolve_base
from adapters.errors import HotswapError
from trainer.loading import load_recipe
from trainer.origin import origins_in
from trainer.recipe import Recipe
from trainer.runs import Run, identity_of, write_whole

RECIPE, BASE = "recipe.yaml", "base.json"


def keep(recipe: Recipe) -> None:
    """Write what :func:`kept` reads."""
    base = recipe.base or os.environ.get("HOTSWAP_BASE_MODEL")
    if base is not None and Path(base).is_dir():
        base = str(Path(base).absolute())
    for name, content in ((RECIPE, as_yaml(recipe)), (BASE, json.dumps(base))):
        write_whole(recipe.run_folder / name, content)


def as_yaml(recipe: Recipe) -> str:
    """Return the recipe as a file that means the same wherever it is read."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    content["output"] = str(recipe.run_folder.absolute())
    for origin in origins_in(content):
        _absolute(origin, "path")
    _absolute(content.get("evaluation", {}), "general_text")
    _absolute(content.get("reinforce", {}), "reward_model")
    if Path(content.get("base") or "").is_dir():
        _absolute(content, "base")
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _absolute(content: dict[str, Any], key: str) -> None:
    if content.get(key) is not None:
        content[key] = str(Path(content[key]).absolute())


def kept(folder: Path) -> Run:
    """Return the run in a folder as it was begun. Raises :class:`HotswapError` where there is none, or the rows or the
    base have changed since."""
    if identity_of(folder) is None:
        raise HotswapError(f"{folder} is not a run of this trainer; python -m trainer runs lists them.")
    if not (folder / RECIPE).is_file():
        raise HotswapError(f"{folder} does not say its recipe; python -m trainer train RECIPE.yaml goes on with it.")
    run = Run(load_recipe(folder / RECIPE).model_copy(update={"output": folder}))
    try:
        base = json.loads((folder / BASE).read_bytes())
    except (OSError, ValueError):
        base = None
    if isinstance(base, str):
        run.base = resolve_base(base)
    if identity_of(folder) != run.recipe.run_identity(run.splits.fingerprint, run.base.digest):
        raise HotswapError(
            f"the rows or the base are not those that {folder} was begun with; python -m trainer train "
            f"{folder / RECIPE} starts afresh."
        )
    return run
