"""Several builds of one manifest as one Helm template: what differs between them stands under conditions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

Tree = Any  # what YAML can say, with the classes below in it
MISSING = object()
# What tells the items of a list apart, in Kubernetes' own lists.
KEYS = ("mountPath", "name", "topologyKey", "key")


class Code(str):
    """A scalar with template code in it, written as it is."""


@dataclass(frozen=True)
class Either:
    """The value under the first condition that holds, or ``otherwise``; MISSING is none."""

    branches: tuple[tuple[str, Tree], ...]
    otherwise: Tree


@dataclass(frozen=True)
class Rest:
    """In a map (as a key of MISSING) or a list: what the expression holds is added. ``always``: it is not empty."""

    expression: str
    always: bool = False


@dataclass(frozen=True)
class Block:
    """A map or a list that the expression holds."""

    expression: str


def merged(first: Tree, others: dict[str, Tree]) -> Tree:
    """Return ``first`` with what ``others`` have instead, each under its condition."""
    others = {condition: tree for condition, tree in others.items() if tree != first}
    if not others:
        return first
    if all(isinstance(tree, dict) for tree in (first, *others.values())):
        return {
            key: merged(first.get(key, MISSING), {c: tree.get(key, MISSING) for c, tree in others.items()})
            for key in _in_order(list(first), [list(tree) for tree in others.values()])
        }
    if all(isinstance(tree, list) for tree in (first, *others.values())):
        known, *rest = ({identity(item): item for item in tree} for tree in (first, *others.values()))
        return [
            merged(known.get(key, MISSING), dict(zip(others, (tree.get(key, MISSING) for tree in rest), strict=True)))
            for key in _in_order(list(known), [list(tree) for tree in rest])
        ]
    return Either(tuple(others.items()), first)


def identity(item: Tree) -> str:
    """Return what an item of a list is known by."""
    if isinstance(item, dict):
        for key in KEYS:
            if key in item:
                return f"{key}={item[key]}"
    return json.dumps(item, sort_keys=True)


def _in_order(first: list[str], others: list[list[str]]) -> list[str]:
    """Return all keys: those of ``first``, the rest each behind the one that it is behind in its own list."""
    keys = list(first)
    for other in others:
        for place, key in enumerate(other):
            if key not in keys:
                keys.insert(keys.index(other[place - 1]) + 1 if place else 0, key)
    return keys


def scalars(tree: Tree) -> Iterator[Tree]:
    """Yield all that is no map and no list, under whatever condition."""
    match tree:
        case dict():
            parts = list(tree.values())
        case list():
            parts = tree
        case Either():
            parts = [*(value for _, value in tree.branches), tree.otherwise]
        case _:
            yield tree
            return
    for part in parts:
        yield from scalars(part)


def put(tree: Tree, path: str, value: Tree) -> Tree:
    """Return ``tree`` with ``value`` at ``path``; a function makes it of what is there.

    In ``spec/ports/0/port`` names choose in lists too, and ``~`` is a slash. Raises :class:`KeyError` where the place
    has no parent."""
    step, _, rest = path.partition("/")
    step = step.replace("~", "/")
    if isinstance(tree, list):
        places = {item.get("name"): place for place, item in enumerate(tree) if isinstance(item, dict)}
        place = int(step) if step.isdigit() else places[step]
        return [*tree[:place], _changed(tree[place], rest, value), *tree[place + 1 :]]
    if rest and step not in tree:
        raise KeyError(path)
    return {**tree, step: _changed(tree.get(step, MISSING), rest, value)}


def _changed(old: Tree, rest: str, value: Tree) -> Tree:
    if rest:
        return put(old, rest, value)
    return value(old) if callable(value) else value


def any_of(conditions: list[str]) -> str:
    return _joined("or", conditions)


def all_of(conditions: list[str]) -> str:
    return _joined("and", conditions)


def _joined(word: str, conditions: list[str]) -> str:
    return conditions[0] if len(conditions) == 1 else f"{word} {' '.join(f'({each})' for each in conditions)}"


def text(tree: Tree, indent: int = 0) -> str:
    return "".join(f"{line}\n" for line in _lines(tree, indent))


def _lines(tree: Tree, indent: int) -> list[str]:
    if isinstance(tree, dict):
        return [line for key, value in tree.items() for line in _entry(key, value, indent)]
    return [line for item in tree for line in _item(item, indent)]


def _entry(key: Any, value: Tree, indent: int) -> list[str]:
    pad = " " * indent
    if isinstance(key, Rest):
        return _rest(key, indent)
    if isinstance(value, Either):
        return _chosen(value, lambda tree: _entry(key, tree, indent))
    if isinstance(value, Block):
        return [f"{pad}{key}:", f"{pad}  {{{{- toYaml {value.expression} | nindent {indent + 2} }}}}"]
    if isinstance(value, dict | list) and value:
        inner = _lines(value, indent + 2)
        return _unless_empty(value, [f"{pad}{key}:", *inner])
    return _scalar(f"{pad}{key}: ", value, indent)


def _item(item: Tree, indent: int) -> list[str]:
    pad = " " * indent
    if isinstance(item, Rest):
        return _rest(item, indent)
    if isinstance(item, Either):
        return _chosen(item, lambda tree: _item(tree, indent))
    if isinstance(item, dict) and item:
        # The dash stands before the first key that is there whatever is chosen.
        sure = next(key for key, value in item.items() if not isinstance(key, Rest) and not _conditions(value))
        lines = _lines({sure: item[sure]} | item, indent + 2)
        return [f"{pad}- {lines[0].lstrip()}", *lines[1:]]
    return _scalar(f"{pad}- ", item, indent)


def _rest(rest: Rest, indent: int) -> list[str]:
    inner = f"{' ' * indent}{{{{- {rest.expression} | nindent {indent} }}}}"
    if rest.always:
        return [inner]
    code = f"{' ' * indent}{{{{- toYaml {rest.expression} | nindent {indent} }}}}"
    return [f"{{{{- if {rest.expression} }}}}", code, "{{- end }}"]


def _scalar(head: str, value: Tree, indent: int) -> list[str]:
    if isinstance(value, str) and "\n" in value:
        chomp = "" if value.endswith("\n") else "-"
        inner = value.removesuffix("\n").split("\n")
        return [f"{head}|{chomp}", *(f"{' ' * (indent + 2)}{line}" if line else "" for line in inner)]
    if isinstance(value, Code):
        return [head + value]
    return [
        head + yaml.safe_dump(value, width=10_000, default_flow_style=True).removesuffix("\n").removesuffix("\n...")
    ]


def _chosen(either: Either, write: Any) -> list[str]:
    lines: list[str] = []
    branches, otherwise = list(either.branches), either.otherwise
    while branches:
        condition, tree = branches.pop(0)
        word = "else if" if lines else "if"
        if tree is not MISSING:
            lines += [f"{{{{- {word} {condition} }}}}", *write(tree)]
        elif branches or otherwise is not MISSING:
            nothing = [condition]
            while branches and branches[0][1] is MISSING:
                nothing.append(branches.pop(0)[0])
            inner = _chosen(Either(tuple(branches), otherwise), write) if branches else write(otherwise)
            return [*lines, f"{{{{- {word} not ({any_of(nothing)}) }}}}", *inner, "{{- end }}"]
    if otherwise is not MISSING:
        lines += ["{{- else }}", *write(otherwise)]
    return [*lines, "{{- end }}"] if lines else []


def _conditions(tree: Tree) -> list[str]:
    """Return when there is something of ``tree``; nothing: always."""
    if isinstance(tree, Rest):
        return [] if tree.always else [tree.expression]
    if isinstance(tree, Either):
        if any(value is MISSING for _, value in tree.branches) and tree.otherwise is not MISSING:
            first = [condition for condition, value in tree.branches if value is MISSING]
            return [f"not ({any_of(first)})"]
        return [condition for condition, _ in tree.branches] if tree.otherwise is MISSING else []
    if not isinstance(tree, dict | list) or not tree:
        return []
    parts = [key if isinstance(key, Rest) else value for key, value in tree.items()] if isinstance(tree, dict) else tree
    found = [_conditions(part) for part in parts]
    return [each for conditions in found for each in conditions] if all(found) else []


def _unless_empty(tree: Tree, lines: list[str]) -> list[str]:
    conditions = list(dict.fromkeys(_conditions(tree)))
    if not conditions:
        return lines
    return [f"{{{{- if {any_of(conditions)} }}}}", *lines, "{{- end }}"]
