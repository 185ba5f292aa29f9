"""The tasks of a recipe: its own, and those that are learnt along with it."""

from __future__ import annotations

import random
from itertools import chain, islice, repeat

from adapters.base_model import Base
from adapters.tasks import ClassificationTask, SummarizationTask
from adapters.tasks.base import BaseTask
from trainer.config import ClassificationRecipe, Recipe
from trainer.data import Row, Splits, labels_of
from trainer.long_documents import in_parts

Asked = tuple[Row, BaseTask]


def make_task(recipe: Recipe, splits: Splits, base: Base) -> ClassificationTask | SummarizationTask:
    """Return the Task that training, evaluation and the service will share."""
    settings = recipe.task.model_dump(exclude={"kind", "template", "labels"})
    if isinstance(recipe.task, ClassificationRecipe):
        labels = labels_of(recipe.task, splits.train)
        return ClassificationTask.of(recipe.task.template, labels, base.tokenizer, **settings)
    return SummarizationTask.of(recipe.task.template, **settings)


def mixed_tasks(recipe: Recipe, splits: Splits, base: Base) -> dict[str, BaseTask]:
    """Return the tasks of ``recipe.mix`` by their names."""
    return {name: make_task(recipe.part(name), part, base) for name, part in splits.mixed.items()}


def mixture(recipe: Recipe, splits: Splits, task: BaseTask, base: Base) -> list[Asked]:
    """Return the rows to train on, each with its task: all of the recipe's own, and of the others as many to one of
    these as their weights say, repeated where they are too few."""
    own = in_parts(splits.train, task, base)
    rows: list[Asked] = [(row, task) for row in own]
    for name, other in mixed_tasks(recipe, splits, base).items():
        theirs = in_parts(splits.mixed[name].train, other, base)
        count = max(1, round(len(own) * recipe.mix[name].weight))
        rows += [(row, other) for row in islice(chain.from_iterable(repeat(theirs)), count)]
    if splits.mixed:
        random.Random(recipe.seed).shuffle(rows)  # noqa: S311  # reproducible, not secret
    return rows
