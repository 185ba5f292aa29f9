"""The tasks of a recipe: its own, and those that are learnt along with it."""

from __future__ import annotations

import random
from itertools import chain, islice, repeat

from adapters.architecture import Architecture
from adapters.base_model import Base
from adapters.chat import asked, talks
from adapters.errors import HotswapError
from adapters.tasks import AnyTask, Chat, ClassificationTask
from adapters.tasks.base import BaseTask
from trainer.codec import Codec
from trainer.data import Splits, labels_of
from trainer.job import Job
from trainer.long_documents import in_parts
from trainer.recipe import PROMPTS, Recipe
from trainer.robustness import disturbed
from trainer.rows import Row
from trainer.task_recipe import ClassificationRecipe

Asked = tuple[Row, BaseTask]


def make_task(recipe: Recipe, splits: Splits, base: Base) -> AnyTask:
    """Return the Task that training, evaluation and the service will share."""
    settings = recipe.task.model_dump(exclude={"kind", "template", "labels"})
    task: AnyTask
    makes = recipe.task.makes
    template = asked(_wording(recipe, splits, base), base.folder, conversational=makes.conversational)
    if isinstance(recipe.task, ClassificationRecipe):
        labels = labels_of(recipe.task, splits.train)
        task = ClassificationTask.of(template, labels, base.tokenizer, **settings)
    else:
        task = makes.of(template, **settings)
    _check_context(task, recipe, base)
    _check_conversations(task, recipe, splits, base)
    return task


def _wording(recipe: Recipe, splits: Splits, base: Base) -> str | Chat:
    """Return how a text is asked: as the recipe says, else in a chat, with what the system says in all the rows."""
    if recipe.task.template is not None:
        return recipe.task.template
    if not talks(base.folder):
        return recipe.task.makes.usual_template
    said = {row.before[0][1] if row.before and row.before[0][0] == "system" else "" for row in splits.train}
    return Chat(system=next(iter(said)) or None) if len(said) == 1 else Chat()


def _check_conversations(task: BaseTask, recipe: Recipe, splits: Splits, base: Base) -> None:
    """Raise for what was said before a text where the base cannot be told it, or the objective passes it over."""
    codec = Codec(task, base)
    for row in chain(splits.train, splits.validation, splits.test, *splits.extra_tests.values()):
        if not row.before:
            continue
        if recipe.objective in ("reward", "grpo"):
            raise HotswapError(f"objective {recipe.objective} takes texts, and row {row.number} is a conversation.")
        try:
            codec.made(row.text, row.before)
        except HotswapError as error:
            raise HotswapError(f"row {row.number}: {error}") from error


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
