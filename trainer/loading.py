"""A recipe from its file: what the YAML says, the overrides, and where its paths lie."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from adapters.errors import HotswapError
from adapters.validation import explain
from trainer.origin import Data, Origin
from trainer.recipe import Recipe

LEAST_WORDS = 50  # of a text to measure forgetting on
AnyOrigin = TypeVar("AnyOrigin", bound=Origin)


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Read a recipe, apply ``key.path=value`` overrides (values are YAML), and check it.

    Paths in it are taken relative to the recipe's own folder if they exist there. Raises
    :class:`HotswapError` with the key at fault and the likely intention.
    """
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HotswapError(f"cannot read the recipe {path}: {error.strerror}.") from error
    except ValueError as error:  # UnicodeDecodeError too
        raise HotswapError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise HotswapError(f"{path} is not a recipe: it must be a mapping with name, task and data.")
    for override in overrides:
        _override(content, override)
    try:
        recipe = Recipe.model_validate(content)
    except ValidationError as error:
        raise HotswapError(f"{path}: {explain(error, Recipe)}") from error
    if recipe.evaluation.general_text is not None:
        general_text(recipe.evaluation.general_text)
    mix = {name: m.model_copy(update={"data": _all_beside(path, m.data)}) for name, m in recipe.mix.items()}
    return recipe.model_copy(update={"data": _all_beside(path, recipe.data), "mix": mix})


def parsed(text: str, at: tuple[str, ...] = ()) -> Any:
    """Return what a YAML text says, which stands at the key ``at`` of a recipe. Raises :class:`ValueError` for what is
    none, or has a key twice."""
    loader = _UniqueKeys(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _labels_as_written(node, at)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    finally:
        loader.dispose()


LABELS = re.compile(r"(mix\.[^.]+\.)?task\.labels")


def _labels_as_written(node: yaml.Node, at: tuple[str, ...]) -> None:
    """Make strings of what stands in ``task.labels``: to YAML ``no`` is false, ``1:30`` is 90."""
    if isinstance(node, yaml.SequenceNode) and LABELS.fullmatch(".".join(at)):
        node.value = [
            yaml.ScalarNode("tag:yaml.org,2002:str", item.value, item.start_mark, item.end_mark, item.style)
            if isinstance(item, yaml.ScalarNode)
            else item
            for item in node.value
        ]
    elif isinstance(node, yaml.MappingNode) and len(at) < 4:
        for key, value in node.value:
            _labels_as_written(value, at if key.value == "<<" else (*at, str(key.value)))


class _UniqueKeys(yaml.SafeLoader):
    """Of a key that is there twice, YAML's loaders take the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := next((key for n, key in enumerate(keys) if key in keys[:n]), None):
            raise ValueError(f"line {node.start_mark.line + 1}: the key '{twice}' is there twice")
        return super().construct_mapping(node, deep)


# Its own, for there are libraries that change the loader they share.
_UniqueKeys.add_constructor("tag:yaml.org,2002:timestamp", yaml.SafeLoader.construct_yaml_timestamp)  # type: ignore[type-var]


def general_text(path: Path) -> str:
    """Return a text to measure forgetting on. Raises :class:`HotswapError` where there is none, or too little."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise HotswapError(f"evaluation.general_text: cannot read {path}: {reason}.") from None
    if len(text.split()) < LEAST_WORDS:
        raise HotswapError(f"evaluation.general_text: {path} has fewer than {LEAST_WORDS} words; give running text.")
    return text


def _all_beside(recipe: Path, data: Data) -> Data:
    parts = {"extra_tests": data.extra_tests, "extra_train": data.extra_train}
    found = {part: {name: _beside(recipe, o) for name, o in origins.items()} for part, origins in parts.items()}
    return _beside(recipe, data).model_copy(update=found)


def _beside(recipe: Path, origin: AnyOrigin) -> AnyOrigin:
    """Return ``origin`` with its path taken from the recipe's folder, if it exists there."""
    if origin.path is None or origin.path.is_absolute() or not (recipe.parent / origin.path).exists():
        return origin
    return origin.model_copy(update={"path": recipe.parent / origin.path})


def _override(content: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *parents, last = key.split(".")
    if not separator or not last:
        raise HotswapError(f"--set {override}: write it as key=value, for example --set training.epochs=2")
    for parent in parents:
        below = content[parent] = {} if content.get(parent) is None else content[parent]
        if not isinstance(below, dict):
            raise HotswapError(f"--set {override}: '{parent}' holds a value, not further keys")
        content = below
    try:
        content[last] = parsed(value, tuple(key.split(".")))
    except ValueError:
        raise HotswapError(f"--set {override}: the value is not valid YAML; quote it") from None
