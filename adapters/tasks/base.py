"""The contract between training, evaluation and serving: one Task per kind of work.

A task is data (it is stored in every version's manifest) and behaviour (prompt, reading, scoring), so
that a prompt can only ever be built in one place and train/serve skew cannot happen.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from adapters.errors import InputTooLong
from adapters.tokens import Tokenizer

SLOT = "{text}"
# An engine scores at most so many tokens in one forward pass: vLLM's MAX_LOGPROB_TOKEN_IDS.
SCORED_AT_ONCE = 128


def checked_template(text: str) -> str:
    """Return ``text`` if it can be a template; raise :class:`ValueError` saying why not."""
    if text.count(SLOT) != 1:
        raise ValueError(f"a template contains {SLOT} exactly once")
    if text.endswith((" ", SLOT)):
        raise ValueError(f"a template ends with the answer slot: a word or colon after {SLOT}, and no blank")
    return text


def normalized(text: str) -> str:
    """Return ``text`` in NFKC (Unicode Standard Annex 15), without control and format characters such as soft hyphens,
    and with single blanks and at most one empty line. Text that is so already stays as it is: training sees it twice.
    """
    kept = "".join(c for c in text if c in "\n\t" or unicodedata.category(c)[0] != "C")
    kept = unicodedata.normalize("NFKC", kept)
    return re.sub(r"\n{3,}", "\n\n", re.sub(r" ?\n ?", "\n", re.sub(r"[ \t]+", " ", kept))).strip()


def checked_message(text: str) -> str:
    """Return ``text`` if it can be what the user says; raise :class:`ValueError` saying why not."""
    if text.count(SLOT) != 1:
        raise ValueError(f"what the user says contains {SLOT} exactly once")
    return text


class Chat(BaseModel):
    """A prompt as a chat, in the form that the base was trained to answer: what the system says, if anything, and what
    the user says, with one ``{text}`` slot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    system: str | None = Field(default=None, min_length=1, max_length=10_000)
    user: Annotated[str, AfterValidator(checked_message)] = Field(default=SLOT, max_length=10_000)


class Template(BaseModel):
    """A prompt with one ``{text}`` slot.

    ``version`` names the rules by which the slot is filled, not the wording: version 1 encodes what
    stands before the slot, the text, and what stands after it one by one, and joins the ids. A blank
    before the slot goes with the text, as byte-pair vocabularies expect.

    Version 2 is a chat that the base's own chat template has written (:func:`adapters.chat.rendered`). Its special
    tokens count as such, those that a text spells out do not; all is encoded in one, with nothing added in front.

    An answer follows after ``lead`` and ends with the token ``end``; default: that which ends all of the base's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1, 2] = 1
    text: Annotated[str, AfterValidator(checked_template)] = Field(
        max_length=10_000, examples=["Review: {text}\nSentiment:"]
    )
    lead: Literal["", " "] = " "
    end: int | None = Field(default=None, ge=0)

    def encode(self, text: str, tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
        """Return the ids of what stands before ``text``, of the text, and of what stands behind it."""
        return self.encode_all([text], tokenizer)[0]

    def encode_all(self, texts: Sequence[str], tokenizer: Tokenizer) -> list[tuple[list[int], list[int], list[int]]]:
        """Return for each of ``texts`` what :meth:`encode` does, by one call of the tokenizer where it can be."""
        before, after = self.text.split(SLOT)
        if self.version == 2:
            return [tokenizer.encode_within(before, text, after) for text in texts]
        blank = " " if before.endswith(" ") else ""
        head, tail = _around(self.text, tokenizer)
        return [(head, body, tail) for body in tokenizer.encode_all([blank + text for text in texts])]

    def encode_answer(self, answer: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids of ``answer`` where it follows the prompt."""
        if self.version == 2:
            return tokenizer.encode_within(self.text.split(SLOT)[1], self.lead + answer, "")[1]
        return tokenizer.encode(self.lead + answer)


@dataclass(frozen=True)
class Prompt:
    """Token ids ready for the engine, and whether the text had to be cut to fit."""

    ids: list[int]
    truncated: bool
    input_tokens: int


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # true is none


class Decoding(BaseModel):
    """How each next token is chosen, in the words of OpenAI's API and vLLM's. Default: the likeliest one, so that the
    same request gives the same answer."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    temperature: Number = Field(default=0.0, ge=0, le=2)
    top_p: Number = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0, le=1_000_000, strict=True, description="0: all tokens")
    min_p: Number = Field(default=0.0, ge=0, le=1)
    repetition_penalty: Number = Field(default=1.0, gt=0, le=2)
    presence_penalty: Number = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: Number = Field(default=0.0, ge=-2, le=2)
    stop: tuple[Annotated[str, Field(min_length=1, max_length=100)], ...] = Field(
        default=(), max_length=16, description="texts that end an answer, and are no part of it"
    )


GREEDY = Decoding()


@dataclass(frozen=True)
class Sampling:
    """How the engine is to answer a prompt.

    ``choices`` are token ids to be scored at the first position instead of free text; ``stop`` are ids that end an
    answer besides those that end all of the base's.
    """

    max_tokens: int
    choices: tuple[int, ...] = ()
    stop: tuple[int, ...] = ()
    decoding: Decoding = GREEDY

    @property
    def repeatable(self) -> bool:
        """Whether the same prompt gets the same answer again."""
        return self.decoding.temperature == 0

    def passes(self) -> list[Sampling]:
        """Return it in parts, each of which scores as many of the ``choices`` as an engine does at once."""
        starts = range(0, len(self.choices) or 1, SCORED_AT_ONCE)
        return [replace(self, choices=self.choices[at : at + SCORED_AT_ONCE]) for at in starts]


@dataclass(frozen=True)
class Completion:
    """What an engine, or a transformers model in evaluation, gave back for one prompt.

    ``logprobs`` holds the natural-log probability of each of the ``Sampling.choices``.
    """

    text: str = ""
    finish_reason: str = "stop"
    logprobs: Mapping[int, float] = field(default_factory=dict)


class BaseTask(BaseModel):
    """What all kinds share: the template, and where a long text is cut. What else is asked of a kind is declared here
    and answered in its own file, so that nobody has to know which kinds there are."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    closed: ClassVar[bool]  # an answer is one of a set, read off one position; else it is free text
    answer_key: ClassVar[str]  # where :meth:`read` puts the answer, and the column that rows have it in
    gate_metrics: ClassVar[tuple[str, ...]]  # more of it is better, and 1 is the most there can be
    merit_name: ClassVar[str]  # what :meth:`merits` measures
    merit_metric: ClassVar[str]  # what :meth:`score` calls the mean of it
    pipeline_tag: ClassVar[str]  # the kind as Hugging Face calls it
    headings: ClassVar[tuple[str, str]]  # over the worst answers, and over the best
    usual_template: ClassVar[str]  # the prompt where nobody says another
    conversational: ClassVar[bool] = False  # a row may be a conversation, and the prompt is the base's own chat

    template: Template
    max_input_tokens: int = Field(default=1024, ge=8, description="texts are cut to this many tokens")
    normalize: bool = Field(
        default=False, description="bring texts into Unicode's NFKC, without control characters and runs of blanks"
    )

    def prompt(self, text: str, tokenizer: Tokenizer, *, room: int | None = None, cut: bool = True) -> Prompt:
        """Return the prompt for ``text``.

        ``room`` is how many tokens the engine can take for prompt and answer together; the text is cut
        (never the instruction or the answer slot) to fit it and ``max_input_tokens``. Raises
        :class:`InputTooLong` where ``cut`` is false and the text would not fit.
        """
        (made,) = self.prompts([text], tokenizer, room=room, cut=cut)
        if isinstance(made, InputTooLong):
            raise made
        return made

    def prompts(
        self, texts: Sequence[str], tokenizer: Tokenizer, *, room: int | None = None, cut: bool = True
    ) -> list[Prompt | InputTooLong]:
        """Return for each of ``texts`` what :meth:`prompt` would return or raise."""
        made: list[Prompt | InputTooLong] = []
        for head, body, tail in self.template.encode_all([self._tidied(text) for text in texts], tokenizer):
            try:
                limit = self._limit(len(head) + len(tail), room)
            except InputTooLong as error:
                made.append(error)
                continue
            truncated = len(body) > limit
            if truncated and not cut:
                told = f"the text has {len(body)} tokens and {limit} fit; shorten it or let it be cut."
                made.append(InputTooLong(told))
                continue
            kept = self.cut(body, limit) if truncated else body
            made.append(Prompt(ids=[*head, *kept, *tail], truncated=truncated, input_tokens=len(body)))
        return made

    def body(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """Return the ids that stand in the slot for ``text``."""
        return self.template.encode(self._tidied(text), tokenizer)[1]

    def _tidied(self, text: str) -> str:
        return normalized(text) if self.normalize else text.strip()

    def limit(self, tokenizer: Tokenizer, room: int | None = None) -> int:
        """Return how many tokens of a text fit. Raises :class:`InputTooLong` where none do."""
        head, _, tail = self.template.encode("", tokenizer)
        return self._limit(len(head) + len(tail), room)

    def _limit(self, around: int, room: int | None) -> int:
        if room is None:
            return self.max_input_tokens
        limit = min(self.max_input_tokens, room - around - self.answer_tokens)
        if limit < 1:
            raise InputTooLong(f"the instruction alone fills the context of {room} tokens; raise the model length.")
        return limit

    def parts(self, text: str, tokenizer: Tokenizer, *, room: int | None = None) -> list[str]:
        """Return the pieces that ``text`` is read in, one after the other; itself, where it is read at once or cut."""
        return [text]

    @staticmethod
    def joined(answers: Sequence[str]) -> str:
        """Return what is read in the place of a text whose parts have these answers; nothing, where all are empty:
        then the text itself is read, cut."""
        return "\n".join(filter(None, answers))

    def cut(self, ids: list[int], limit: int) -> list[int]:
        """Return ``limit`` of ``ids``: the part of a text that this kind of task needs most."""
        raise NotImplementedError

    @property
    def answer_tokens(self) -> int:
        """How many tokens an answer may take."""
        raise NotImplementedError

    @property
    def answers(self) -> tuple[str, ...]:
        """The answers there are to choose from; none, where it is free text."""
        return ()

    def probe_choices(self, vocabulary: int, count: int) -> tuple[int, ...]:
        """Return token ids whose log-probabilities at the answer slot tell versions apart: ``count`` of them spread
        over a ``vocabulary`` of that size, where the answers are not scored there themselves."""
        if choices := self.sampling({}).choices:
            return choices[:SCORED_AT_ONCE]
        return tuple(range(vocabulary // (2 * count), vocabulary, vocabulary // count))[:count]

    def target(self, answer: str, tokenizer: Tokenizer, *, end: int) -> list[int]:
        """Return the ids that training puts behind the prompt; ``end`` is the end-of-sequence id."""
        raise NotImplementedError

    def sampling(self, parameters: Mapping[str, Any]) -> Sampling:
        """Return how to ask the engine, given a request's ``parameters``."""
        raise NotImplementedError

    def defaults(self) -> dict[str, Any]:
        """Return what holds where a request in OpenAI's shape says nothing, by OpenAI's and vLLM's names."""
        return {}

    def read(self, completion: Completion, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer as the service gives it out."""
        raise NotImplementedError

    def saying(self, answer: str) -> dict[str, Any]:
        """Return what :meth:`read` would give of a model that surely gives this answer."""
        return {self.answer_key: answer}

    def answer(self, output: Mapping[str, Any]) -> str:
        """Return the bare answer of what :meth:`read` gave."""
        return str(output[self.answer_key])

    def merits(self, outputs: Sequence[Mapping[str, Any]], references: Sequence[str]) -> list[float]:
        """Return how good each output is, between 0 and 1: right or wrong, where there is nothing between."""
        return [float(self.answer(o) == reference) for o, reference in zip(outputs, references, strict=True)]

    def score(self, outputs: Sequence[Mapping[str, Any]], references: Sequence[str]) -> dict[str, Any]:
        """Return the metrics of ``outputs`` (as :meth:`read` gives them) against ``references``."""
        raise NotImplementedError


@lru_cache(1024)
def _around(template: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the ids in front of a template's slot and behind it."""
    before, after = template.split(SLOT)
    return tokenizer.encode(before.removesuffix(" "), start=True), tokenizer.encode(after)
