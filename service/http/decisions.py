"""Questions about a text, and their answers, as OpenAI's client sends and reads them (``client.decisions``)."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr, model_validator

from service.errors import InvalidRequest

QUESTIONS, CHOICES = 400, 255
Words = Annotated[StrictStr, Field(max_length=10_000)]
Value = Annotated[StrictStr, Field(min_length=1, max_length=1000)] | StrictBool


class Part(BaseModel):
    """A piece of what is said: text, or a JSON value."""

    type: Literal["input_text", "output_text", "refusal", "input_json"]
    text: str = ""
    refusal: str = ""
    data: dict[str, Any] | list[Any] | None = None

    def __str__(self) -> str:
        return self.text or self.refusal or ("" if self.data is None else json.dumps(self.data, ensure_ascii=False))


class Asked(BaseModel):
    """What every question has."""

    model_config = ConfigDict(extra="forbid")

    instructions: Words | Annotated[list[Part], Field(min_length=1)]
    name: Annotated[str, Field(max_length=200)] | None = None

    @property
    def wording(self) -> str:
        return self.instructions if isinstance(self.instructions, str) else "\n".join(map(str, self.instructions))


class Predicate(Asked):
    type: Literal["predicate"]


class Option(BaseModel):
    model_config = ConfigDict(extra="forbid")

    value: Value
    description: Words = ""


class Choice(Asked):
    type: Literal["choice"]
    choices: Annotated[list[Option], Field(min_length=2, max_length=CHOICES)]

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        # true and "true" are two values.
        if len({(type(option.value), option.value) for option in self.choices}) < len(self.choices):
            raise ValueError("'choices' must differ")
        return self


class Level(BaseModel):
    model_config = ConfigDict(extra="forbid")

    label: Annotated[StrictStr, Field(min_length=1, max_length=1000)]
    description: Words = ""


class Score(Asked):
    type: Literal["score"]
    levels: Annotated[list[Level], Field(min_length=2, max_length=CHOICES)]


Question = Annotated[Predicate | Choice | Score, Field(discriminator="type")]


class DecisionRequest(BaseModel):
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "SmolLM2-135M-Instruct",
                    "input": "The parcel came late, and the box was open.",
                    "questions": [
                        {"type": "predicate", "instructions": "The customer complains."},
                        {
                            "type": "choice",
                            "instructions": "What is it about?",
                            "choices": [{"value": "shipping"}, {"value": "billing"}],
                        },
                    ],
                }
            ]
        }
    )

    model: str
    input: Annotated[str, Field(min_length=1)] | Annotated[list[dict[str, Any]], Field(min_length=1, max_length=1000)]
    questions: Annotated[list[Question], Field(min_length=1, max_length=QUESTIONS)]
    safety_identifier: Annotated[str, Field(max_length=200)] | None = None
    prompt_cache_key: str | None = Field(None, description="taken, and of no effect: what was read is reused anyway")
    prompt_cache_options: dict[str, Any] | None = Field(None, description="as `prompt_cache_key`")

    @property
    def text(self) -> str:
        """What the questions are about, as one text. Raises :class:`InvalidRequest` for what is no text."""
        if isinstance(self.input, str):
            return self.input
        return "\n".join(filter(None, map(_line, self.input)))


def _line(item: dict[str, Any]) -> str:
    """Return a message, a call or its output as a line that says who spoke."""
    kind = item.get("type", "message")
    if kind == "message":
        return f"{item.get('role', 'user')}: {_said(item.get('content'))}"
    if kind in ("function_call", "custom_tool_call"):
        return f"call of {item.get('name')}: {_said(item.get('arguments', item.get('input')))}"
    if kind in ("function_call_output", "custom_tool_call_output"):
        return f"output: {_said(item.get('output'))}"
    raise InvalidRequest(f"'input' takes messages, calls and their outputs; '{str(kind)[:40]}' is none.", param="input")


def _said(content: Any) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest("'input' has a message without 'content'.", param="input")
    try:
        return "\n".join(str(Part.model_validate(part)) for part in content)
    except ValueError:
        raise InvalidRequest("'input' takes text and JSON alone; images are not read.", param="input") from None
