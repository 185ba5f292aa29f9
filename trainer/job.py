"""What is to be made: a recipe, its rows, its task and its base."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.base_model import Base
from adapters.tasks import AnyTask
from trainer.codec import Codec
from trainer.data import Splits
from trainer.recipe import Recipe


@dataclass(frozen=True)
class Job:
    recipe: Recipe
    splits: Splits
    task: AnyTask
    base: Base

    @property
    def codec(self) -> Codec:
        return Codec(self.task, self.base)
