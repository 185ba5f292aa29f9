"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator


class Strict(BaseModel):
    """A model that takes nothing it does not know, and never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, given: Any) -> Any:
        """pydantic would take ``true`` for 1."""
        if isinstance(given, dict):
            for name, field in cls.model_fields.items():
                numeric = {int, float} & {field.annotation, *get_args(field.annotation)}
                if numeric and isinstance(given.get(name), bool):
                    raise ValueError(f"{name}: takes a number, not {str(given[name]).lower()}")
        return given
