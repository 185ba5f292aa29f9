"""What a recipe says of the task: kind by kind, with the defaults of training."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, field_validator

from adapters.tasks import ClassificationTask, Decoding, GenerationTask, SummarizationTask
from adapters.tasks.base import GREEDY, Chat, checked_template
from adapters.tasks.shapes import checked_schema
from adapters.tasks.summarization import Long
from trainer.strict import Strict


def _checked(template: str | Chat) -> str | Chat:
    return checked_template(template) if isinstance(template, str) else template


# A text, or a chat as {system: …, user: …}.
AnyTemplate = Annotated[
    Annotated[str, Tag("text")] | Annotated[Chat, Tag("chat")],
    Discriminator(lambda given: "text" if isinstance(given, str) else "chat"),
    AfterValidator(_checked),
]


class ClassificationRecipe(Strict):
    makes: ClassVar = ClassificationTask
    kind: Literal["classification"]
    template: AnyTemplate = "Text: {text}\nLabel:"
    labels: tuple[str, ...] | None = Field(default=None, description="default: those in the data, sorted")
    max_input_tokens: int = Field(default=512, ge=8)
    head_share: float = Field(
        default=0.75,
        ge=0,
        le=1,
        description="of a text that is longer: so much of what is kept is its beginning, the rest its end",
    )
    normalize: bool = False

    @field_validator("labels", mode="before")
    @classmethod
    def _as_text(cls, labels: Any) -> Any:
        """Rows name a label by its text, so that 1 is ``1``; of a recipe's file the text is taken as it is written."""
        if not isinstance(labels, list | tuple):
            return labels
        return tuple(
            label.strip() if isinstance(label, str) else str(label) if type(label) in (int, float) else label
            for label in labels
        )


class SummarizationRecipe(Strict):
    makes: ClassVar = SummarizationTask
    kind: Literal["summarization"]
    template: AnyTemplate = "Text: {text}\n\nSummary:"
    max_input_tokens: int = Field(default=1024, ge=8)
    max_answer_tokens: int = Field(default=128, ge=1)
    normalize: bool = False
    long: Long = "cut"


class GenerationRecipe(Strict):
    makes: ClassVar = GenerationTask
    kind: Literal["generation"]
    template: AnyTemplate | None = Field(
        default=None,
        description="how a text alone is asked; default: a chat of the base, with what the system says in all rows",
    )
    max_input_tokens: int = Field(default=1024, ge=8)
    max_answer_tokens: int = Field(default=256, ge=1, le=4096)
    normalize: bool = False
    decoding: Decoding = GREEDY
    json_schema: Annotated[dict[str, Any], AfterValidator(checked_schema)] | None = None


TaskRecipe = Annotated[ClassificationRecipe | SummarizationRecipe | GenerationRecipe, Field(discriminator="kind")]
