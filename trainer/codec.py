"""A task in the vocabulary of a base."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from adapters.architecture import Architecture
from adapters.base_model import Base
from adapters.chat import Turn, conversation
from adapters.errors import HotswapError, InputTooLong
from adapters.tasks.base import BaseTask, Prompt

Turns = tuple[Turn, ...]
_conversation = lru_cache(1024)(conversation)


@dataclass(frozen=True)
class Codec:
    """What a model of the base is asked and told: texts and answers as token ids, as the service spells them.

    ``before`` is what was said before a text, where it is a turn of a conversation: it stands as it is, the system's
    turn or none, and the task's own template, system and all, is for texts that nothing was said before.
    """

    task: BaseTask
    base: Base

    def prompt(self, text: str, before: Turns = ()) -> list[int]:
        return self.made(text, before).ids

    def made(self, text: str, before: Turns = ()) -> Prompt:
        """Return the prompt. Raises :class:`HotswapError` for a conversation that the base cannot read."""
        if not before:
            return self.task.prompt(text, self.base.tokenizer)
        try:
            room = Architecture.of(self.base.folder).longest
            return self._in(before).prompt(text, self.base.tokenizer, room=room)
        except InputTooLong as error:
            raise HotswapError(
                f"the conversation that ends with '{text[:60]}' is longer than {self.base.name} reads; shorten it."
            ) from error

    def is_usual(self, before: Turns) -> bool:
        """Whether a text that this was said before is asked as one that nothing was."""
        return not before or self._in(before).template == self.task.template

    def _in(self, before: Turns) -> BaseTask:
        return self.task.model_copy(update={"template": _conversation(before, self.base.folder)})

    def target(self, answer: str) -> list[int]:
        """Return what training puts behind the prompt."""
        return self.task.target(answer, self.base.tokenizer, end=self.base.end_id)

    def parts(self, text: str) -> list[str]:
        """Return the pieces that ``text`` is read in, one after the other."""
        return self.task.parts(text, self.base.tokenizer)
