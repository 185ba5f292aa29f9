"""Answers that are JSON: read, compared, held against a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from jsonschema.exceptions import SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

MOST_CHARS = 32_768


def checked_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return ``schema`` if answers can be held against it; raise :class:`ValueError` saying why not."""
    try:
        if len(json.dumps(schema)) > MOST_CHARS:
            raise ValueError(f"a schema has at most {MOST_CHARS:,} characters")
        validator_for(schema, default=validator_for({})).check_schema(schema)
        for reference in _references(schema):
            # Its address is a stranger's: nothing is fetched.
            if not reference.startswith("#"):
                raise ValueError(f"'$ref': {reference[:100]!r} is elsewhere; write what it means into the schema")
            _resource(schema).lookup(reference)
    except SchemaError as error:
        where = "/".join(map(str, error.absolute_path)) or "it"
        raise ValueError(f"it is no JSON schema: {where}: {error.message[:200]}") from None
    except Unresolvable as error:
        raise ValueError(f"'$ref': {error.ref[:100]!r} is not in the schema") from None
    except (TypeError, AttributeError, re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no JSON schema: {str(error)[:200]}") from None
    return schema


def parsed(text: str) -> Any:
    """Return what ``text`` says as JSON. Raises :class:`ValueError` where it is none."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise ValueError("nested too deep") from None


def is_json(text: str) -> bool:
    try:
        parsed(text)
    except ValueError:
        return False
    return True


def is_structure(text: str) -> bool:
    """Whether ``text`` is a JSON object or list: a bare word or number is JSON by chance."""
    return text.lstrip()[:1] in ("{", "[") and is_json(text)


def same(one: str, other: str) -> bool:
    """Whether two answers are the same: as they are written, or in what they say as JSON."""
    if one.strip() == other.strip():
        return True
    return is_structure(one) and is_structure(other) and bool(parsed(one) == parsed(other))


def keeps_to(text: str, schema: dict[str, Any]) -> bool:
    """Whether ``text`` is JSON as a ``schema`` that was checked wants it."""
    try:
        return bool(_validator(schema).is_valid(parsed(text)))
    except (ValueError, re.error, RecursionError, Unresolvable):
        return False


def _validator(schema: dict[str, Any]) -> Validator:
    made: Validator = validator_for(schema, default=validator_for({}))(schema, registry=Registry())
    return made


def _resource(schema: dict[str, Any]) -> Any:
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    return Registry().with_resource("", resource).resolver()


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            if name in ("$ref", "$dynamicRef") and isinstance(inner, str):
                yield inner
            else:
                yield from _references(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _references(inner)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
