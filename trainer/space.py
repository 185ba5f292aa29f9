"""What a sweep may try of a setting."""

from __future__ import annotations

import re
from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from trainer.strict import Strict


class Range(Strict):
    """What a sweep may try between ``low`` and ``high``: whole numbers only, or evenly in the logarithm."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    @model_validator(mode="after")
    def _rising(self) -> Self:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError("low must be below high, and above 0 where log is true")
        if self.whole and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError("low and high must be whole numbers where whole is true")
        return self


Choices = Annotated[tuple[str | int | float | bool, ...], Field(min_length=1)]
# A trial is judged by its validation loss: what would change the rows, the prompt or the loss cannot be swept.
SWEPT = re.compile(r"(training|lora|soft_prompt)\..+|method|last_layers|data\.(keep(\..+)?|train_rows)|mix\..+\.weight")


def _kind_of_space(given: Any) -> str | None:
    return "range" if isinstance(given, dict | Range) else "list" if isinstance(given, list | tuple) else None


Space = Annotated[
    Annotated[Range, Tag("range")] | Annotated[Choices, Tag("list")],
    Discriminator(
        _kind_of_space,
        custom_error_type="space",
        custom_error_message="takes a list of values, or {low, high} with log and whole",
    ),
]
