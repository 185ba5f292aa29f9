"""A task in the vocabulary of a base."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.base_model import Base
from adapters.tasks.base import BaseTask


@dataclass(frozen=True)
class Codec:
    """What a model of the base is asked and told: texts and answers as token ids, as the service spells them."""

    task: BaseTask
    base: Base

    def prompt(self, text: str) -> list[int]:
        return self.task.prompt(text, self.base.tokenizer).ids

    def target(self, answer: str) -> list[int]:
        """Return what training puts behind the prompt."""
        return self.task.target(answer, self.base.tokenizer, end=self.base.end_id)

    def parts(self, text: str) -> list[str]:
        """Return the pieces that ``text`` is read in, one after the other."""
        return self.task.parts(text, self.base.tokenizer)
