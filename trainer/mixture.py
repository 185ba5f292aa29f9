"""The tasks of a recipe: its own, and those that are learnt along with it."""

from __future__ import annotations

import random
from itertools import chain, islice, repeat

from adapters.architecture import Architecture
from adapters.base_model import Base
from adapters.chat import asked
from adapters.errors import HotswapError
from adapters.tasks import AnyTask, ClassificationTask, SummarizationTask
from adapters.tasks.base import BaseTask
from trainer.data import Splits, labels_of
from trainer.job import Job
from trainer.long_documents import in_parts
from trainer.recipe import PROMPTS, ClassificationRecipe, Recipe
from trainer.robustness import disturbed
from trainer.rows import Row

Asked = tuple[Row, BaseTask]


def make_task(recipe: Recipe, splits: Splits, base: Base) -> AnyTask:
    """Return the Task that training, evaluation and the service will share."""
    settings = recipe.task.model_dump(exclude={"kind", "template", "labels"})
    task: AnyTask
    template = asked(recipe.task.template, base.folder)
    if isinstance(recipe.task, ClassificationRecipe):
        labels = labels_of(recipe.task, splits.train)
        task = ClassificationTask.of(template, labels, base.tokenizer, **settings)
    else:
        task = SummarizationTask.of(template, **settings)
    _check_context(task, recipe, base)
    return task


def _check_context(task: BaseTask, recipe: Recipe, base: Base) -> None:
    """Raise where longer texts would be trained on than the base can read: the service would cut them."""
    room = Architecture.of(base.folder).longest
    if room is None:
        return
    fits = task.limit(base.tokenizer, room - (recipe.soft_prompt.tokens if recipe.method in PROMPTS else 0))
    if fits < task.max_input_tokens:
        raise HotswapError(
            f"task.max_input_tokens is {task.max_input_tokens}; {base.name} reads {room} tokens in all, and {fits} of "
            "them are left for a text: set it to that or less."
        )


def make_job(recipe: Recipe, splits: Splits, base: Base) -> Job:
    return Job(recipe, splits, make_task(recipe, splits, base), base)


def mixed_jobs(job: Job) -> dict[str, Job]:
    """Return a job for each task of ``mix``, by their names."""
    return {name: make_job(job.recipe.part(name), part, job.base) for name, part in job.splits.mixed.items()}


def mixture(job: Job) -> list[Asked]:
    """Return the rows to train on, each with its task: all of the recipe's own, and of the others as many to one of
    these as their weights say, repeated where they are too few."""
    own = _learnt(job)
    rows: list[Asked] = [(row, job.task) for row in own]
    for name, other in mixed_jobs(job).items():
        theirs = _learnt(other)
        count = max(1, round(len(own) * job.recipe.mix[name].weight))
        rows += [(row, other.task) for row in islice(chain.from_iterable(repeat(theirs)), count)]
    if job.splits.mixed:
        random.Random(job.recipe.seed).shuffle(rows)  # noqa: S311  # reproducible, not secret
    return rows


def _learnt(job: Job) -> list[Row]:
    return disturbed(in_parts(job.splits.train, job.codec), job.recipe.data.disturb, job.recipe.seed)
