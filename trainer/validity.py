"""Answers that are to be JSON: whether they are, and keep to their schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean

from adapters.tasks.base import BaseTask
from adapters.tasks.shapes import is_json, is_structure, keeps_to
from trainer.rows import Row


def validity(said: Sequence[str], rows: Sequence[Row], task: BaseTask) -> dict[str, float]:
    """Return ``json_valid``, the share of answers that are JSON of those whose reference is an object or a list, or
    that have a schema; and ``schema_valid``, the share that keeps to the row's own schema or the task's. Nothing where
    no row is to be JSON."""
    usual = getattr(task, "json_schema", None)
    schemas = [json.loads(row.schema) if row.schema else usual for row in rows]
    shaped = [schema is not None or is_structure(row.answer) for schema, row in zip(schemas, rows, strict=True)]
    valid = [is_json(answer) for answer, wanted in zip(said, shaped, strict=True) if wanted]
    kept = [keeps_to(answer, schema) for answer, schema in zip(said, schemas, strict=True) if schema is not None]
    found = {"json_valid": valid, "schema_valid": kept}
    return {name: mean(map(float, each)) for name, each in found.items() if each}
