"""pydantic's errors, said so that a person can mend their file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from adapters.errors import InvalidAdapter, printable

# To what a stored record has that this version does not know.
NEWER = "; if a newer hotswap wrote it, upgrade."
Place = Callable[[tuple[Any, ...]], str]


class Strict(BaseModel):
    """What is stored: nothing is misspelt, nothing is changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def dotted(location: tuple[Any, ...]) -> str:
    """Return where in a file a mistake stands."""
    return ".".join(map(str, location))


def explain(
    error: ValidationError | Sequence[Any],
    model: type[BaseModel] | None = None,
    *,
    place: Place = dotted,
    with_input: bool = False,
) -> str:
    """Return one printable clause per mistake: where it stands, what is wrong, and the likely intention.

    ``error`` is pydantic's, or some of its ``errors()``. A ``model`` is for hints at its keys; ``place`` says where a
    location is, in the words of whoever wrote what is wrong; ``with_input`` repeats what they wrote.
    """
    details = error.errors() if isinstance(error, ValidationError) else error
    return printable("; ".join(_clause(detail, model, place, with_input) for detail in details))


def by_a_newer_version(error: ValidationError) -> bool:
    """Whether a stored record has something that this version has no name for."""
    return any(detail["type"] in ("extra_forbidden", "union_tag_invalid") for detail in error.errors())


@contextmanager
def explained(model: type[BaseModel], what: str) -> Iterator[None]:
    """Turn pydantic's error about a ``model`` into an :class:`InvalidAdapter` that begins with ``what``."""
    try:
        yield
    except ValidationError as error:
        raise InvalidAdapter(f"{what}: {explain(error, model)}") from error


def _clause(detail: Any, model: type[BaseModel] | None, place: Place, with_input: bool) -> str:
    where, hint = place(detail["loc"]), _hint(detail, model, place) if model else None
    if hint:
        return hint
    if detail["type"] == "missing":
        return f"{where}: is required"
    clause = f"{where}: {_message(detail)}" if where else _message(detail)
    return f"{clause} (got {detail['input']!r})" if with_input and where else clause


def _hint(detail: Any, model: type[BaseModel], place: Place) -> str | None:
    """Return what is best said by who knows the model, if anything."""
    where = place(detail["loc"])
    if detail["type"] == "extra_forbidden":
        known = _keys(model, detail["loc"][:-1])
        close = get_close_matches(str(detail["loc"][-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key; {hint}"
    if detail["type"] in ("model_type", "model_attributes_type"):
        return f"{where}: takes keys of its own: {', '.join(_keys(model, detail['loc']))}"
    if detail["type"] == "union_tag_not_found":
        return f"{where}.{_tag(detail)}: is required"
    if detail["type"] == "union_tag_invalid":
        given, known = detail["ctx"]["tag"], detail["ctx"]["expected_tags"]
        return f"{where}.{_tag(detail)}: '{given}' is unknown; one of {known}"
    if detail["type"] == "tuple_type":
        return f"{where}: takes a list"
    return None


def _tag(detail: Any) -> str:
    """Return the key that says which member of a union is meant."""
    return str(detail["ctx"]["discriminator"]).strip("'")


def _message(detail: Any) -> str:
    return str(detail["msg"]).removeprefix("Value error, ")


def _keys(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Return the keys that the object at ``path`` of ``model`` knows."""
    level: list[type[BaseModel]] = [model]
    for part in path:
        below = [m for at in level if part in at.model_fields for m in _models(at.model_fields[part].annotation)]
        # Of a union, pydantic puts into the path which member's tag was given.
        tagged = [at for at in level if any(part in get_args(field.annotation) for field in at.model_fields.values())]
        level = below or tagged or level
    return sorted({name for at in level for name in at.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
