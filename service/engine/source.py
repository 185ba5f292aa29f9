"""What the installed vLLM takes and knows, read from its source text: importing it would take ten seconds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

ARGUMENTS = "vllm.engine.arg_utils"
REGISTRY = "vllm.model_executor.models.registry"
KINDS: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "list": (list,),
    "set": (list,),
    "dict": (dict,),
}


@cache
def arguments() -> dict[str, ast.expr]:
    """Return the fields of vLLM's ``AsyncEngineArgs`` with their annotations; none where there is no vLLM."""
    classes = {node.name: node for node in _body(ARGUMENTS) if isinstance(node, ast.ClassDef)}
    return {
        field.target.id: field.annotation
        for name in ("EngineArgs", "AsyncEngineArgs")
        for field in (classes[name].body if name in classes else ())
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and field.target.id[0] != "_"
    }


@cache
def architectures() -> frozenset[str]:
    """Return the classes of ``config.json`` that vLLM has a model of its own for, and that write text."""
    tables = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS")
    return frozenset(
        key.value
        for node in _body(REGISTRY)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict)
        if any(isinstance(target, ast.Name) and target.id in tables for target in node.targets)
        for key in node.value.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    )


def fits(value: object, annotation: ast.expr) -> bool:
    """Whether a value from JSON can be what a field is annotated with; where the source does not say, it may be."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            return fits(value, left) or fits(value, right)
        case ast.Constant(value=None):
            return value is None
        case ast.Constant(value=str(text)):
            return fits(value, ast.parse(text, mode="eval").body)
        case ast.Subscript(value=ast.Name(id="Literal")):
            return value in _literal(annotation)
        case ast.Subscript(value=ast.Name(id=name)) | ast.Name(id=name) if name in KINDS:
            return isinstance(value, KINDS[name]) and (name == "bool" or not isinstance(value, bool))
        case ast.Name(id=name):
            return value in known if (known := named(name)) else True
    return True


def wanted(annotation: ast.expr) -> str:
    """Return in words what a field takes."""
    match annotation:
        case ast.BinOp(left=left, right=right):
            return " or ".join(dict.fromkeys((wanted(left), wanted(right))))
        case ast.Constant(value=str(text)):
            return wanted(ast.parse(text, mode="eval").body)
        case ast.Subscript(value=ast.Name(id="Literal")):
            return ", ".join(map(str, _literal(annotation)))
        case ast.Name(id=name) if name not in KINDS and (known := named(name)):
            return ", ".join(map(str, known))
    return {"None": "null", "str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}.get(
        ast.unparse(annotation), ast.unparse(annotation)
    )


@cache
def named(name: str) -> tuple[object, ...]:
    """Return what a type's name stands for, where that is a list of values; nothing otherwise."""
    for module in (*_places(name), ARGUMENTS):
        for node in _body(module):
            match node:
                case ast.Assign(targets=[ast.Name(id=found)], value=ast.Subscript() as value) if found == name:
                    return _literal(value)
                case ast.ClassDef(name=found, body=body, bases=[ast.Name(id="Enum"), *_]) if found == name:
                    members = [node for node in body if isinstance(node, ast.Assign)]
                    return tuple(target.id for m in members for target in m.targets if isinstance(target, ast.Name))
    return ()


def _literal(node: ast.Subscript) -> tuple[object, ...]:
    parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    return tuple(part.value for part in parts if isinstance(part, ast.Constant))


def _places(name: str) -> Iterator[str]:
    """Yield the module that vLLM's arguments import a name from."""
    for node in ast.walk(ast.Module([*_body(ARGUMENTS)], [])):
        if isinstance(node, ast.ImportFrom) and any(alias.name == name for alias in node.names):
            yield node.module or ""


@cache
def _body(module: str) -> tuple[ast.stmt, ...]:
    spec = find_spec(module.partition(".")[0])  # of a package inside another, it would import that
    if spec is None or not spec.submodule_search_locations:
        return ()
    path = Path(spec.submodule_search_locations[0], *module.split(".")[1:])
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return tuple(ast.parse(file.read_text(encoding="utf-8")).body)
    return ()
