"""One Task per kind of work, used unchanged by training, evaluation and serving."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from adapters.tasks.base import BaseTask, Chat, Completion, Decoding, Prompt, Sampling, Template
from adapters.tasks.classification import ClassificationTask
from adapters.tasks.free_text import FreeTextTask
from adapters.tasks.generation import GenerationTask
from adapters.tasks.summarization import SummarizationTask

AnyTask = ClassificationTask | SummarizationTask | GenerationTask
Task = Annotated[AnyTask, Field(discriminator="kind")]
Kind = Literal["classification", "summarization", "generation"]
KINDS: Mapping[str, type[ClassificationTask] | type[FreeTextTask]] = {
    "classification": ClassificationTask,
    "summarization": SummarizationTask,
    "generation": GenerationTask,
}

__all__ = [
    "KINDS",
    "AnyTask",
    "BaseTask",
    "Chat",
    "ClassificationTask",
    "Completion",
    "Decoding",
    "FreeTextTask",
    "GenerationTask",
    "Kind",
    "Prompt",
    "Sampling",
    "SummarizationTask",
    "Task",
    "Template",
]
