"""One Task per kind of work, used unchanged by training, evaluation and serving."""

from typing import Annotated

from pydantic import Field

from adapters.tasks.base import Completion, Prompt, Sampling, Template
from adapters.tasks.classification import ClassificationTask
from adapters.tasks.summarization import SummarizationTask

Task = Annotated[ClassificationTask | SummarizationTask, Field(discriminator="kind")]

__all__ = ["ClassificationTask", "Completion", "Prompt", "Sampling", "SummarizationTask", "Task", "Template"]
