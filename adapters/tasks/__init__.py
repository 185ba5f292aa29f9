"""One Task per kind of work, used unchanged by training, evaluation and serving."""

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

from adapters.tasks.base import BaseTask, Chat, Completion, Prompt, Sampling, Template
from adapters.tasks.classification import ClassificationTask
from adapters.tasks.summarization import SummarizationTask

AnyTask = ClassificationTask | SummarizationTask
Task = Annotated[AnyTask, Field(discriminator="kind")]
KINDS: Mapping[str, type[BaseTask]] = {"classification": ClassificationTask, "summarization": SummarizationTask}

__all__ = [
    "KINDS",
    "AnyTask",
    "BaseTask",
    "Chat",
    "ClassificationTask",
    "Completion",
    "Prompt",
    "Sampling",
    "SummarizationTask",
    "Task",
    "Template",
]
