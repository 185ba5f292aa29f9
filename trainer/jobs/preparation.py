"""From uploaded rows to a recipe: which task they are, in which words it is put, and how it is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from adapters.base_model import Base
from adapters.errors import HotswapError
from adapters.jobs.rows import Example, check, read
from adapters.jsonl import write_rows
from adapters.store import Store
from adapters.tasks import KINDS, AnyTask, ClassificationTask
from adapters.tasks.base import SLOT
from trainer.commands.common import manifest_of
from trainer.jobs.order import RECIPE, ROWS, RUN, VALIDATION, Order
from trainer.loading import load_recipe
from trainer.recipe import Recipe, Training
from trainer.rows import BEFORE

# Answers are labels where there are few of them: each stands, on average, in so many rows, and is no longer than so.
MOST_LABELS, ROWS_OF_A_LABEL, LABEL_CHARS = 128, 3, 50
# Of few rows a larger share is held out, or nothing could be said of the adapter.
FEW_ROWS, LARGE_SHARE, USUAL_SHARE = 100, 0.2, 0.1
MOST_ANSWER_TOKENS = 512


class BadFile(HotswapError):
    """Nothing can be learnt of a file; ``param`` says of which."""

    def __init__(self, message: str, param: str = "training_file") -> None:
        super().__init__(message)
        self.param = param


def prepare(order: Order, folder: Path, store: Store, base: Base) -> Recipe:
    """Leave rows and recipe in the job's folder, and return the recipe. Raises :class:`BadFile`."""
    examples = _examples(order.training, "training_file", order)
    held_out = _examples(order.validation, "validation_file", order) if order.validation else []
    started = manifest_of(store, order.start_from).task if order.start_from else None
    kind = kind_of(examples, started)
    system = None if KINDS[kind].conversational else _common_system([*examples, *held_out])
    _write(folder / ROWS, examples, kind, order, system)
    if held_out:
        _write(folder / VALIDATION, held_out, kind, order, system)
    content = {
        "name": order.adapter,
        "seed": order.seed,
        "output": str(folder / RUN),
        "objective": order.objective,
        "task": _task(kind, system, started, examples, base),
        "data": _data(folder, examples, bool(held_out), order),
        "training": _training(order),
        "evaluation": {"similarity": False},  # its encoder would have to be fetched
        **({"start_from": order.start_from} if order.start_from else {}),
        **({"preference": {"beta": order.beta}} if order.beta is not None else {}),
    }
    (folder / RECIPE).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return load_recipe(folder / RECIPE)


def kind_of(examples: Sequence[Example], started: AnyTask | None = None) -> str:
    """Return ``classification`` where the answers are labels, ``summarization`` where rows have summaries, else
    ``generation``."""
    answers = {answer for each in examples for answer in (each.answer, each.rejected) if answer}
    if started is not None and (not started.closed or answers <= {*started.answers}):
        return started.kind
    if kinds := {each.kind for each in examples if each.kind}:
        return next((kind for kind, task in KINDS.items() if kinds == {task.answer_key}), "generation")
    few = len(answers) <= min(MOST_LABELS, len(examples) // ROWS_OF_A_LABEL)
    short = all(len(answer) <= LABEL_CHARS and "\n" not in answer for answer in answers)
    return "classification" if few and short else "generation"


def _examples(path: Path, param: str, order: Order) -> list[Example]:
    try:
        checked = check(path)
    except FileNotFoundError:
        raise BadFile("the file is gone", param) from None
    problems = list(checked.problems)
    if not problems and checked.paired != (order.objective == "dpo"):
        problems = [f"method {order.objective} takes rows with {'two answers' if not checked.paired else 'one answer'}"]
    if problems:
        raise BadFile("; ".join(problems), param)
    return [example for _, example, _ in read(path) if example is not None]


def _common_system(examples: Sequence[Example]) -> str | None:
    """Return what the system says in all rows, which is the template's to say; none where it is the rows' own."""
    said = {example.system for example in examples}
    system = next(iter(said)) if len(said) == 1 else None
    return None if system is None or SLOT in system or len(system) > 5000 else system


def _write(path: Path, examples: Sequence[Example], kind: str, order: Order, system: str | None) -> None:
    task = KINDS[kind]

    def row(example: Example) -> dict[str, Any]:
        answers = {task.answer_key: example.answer}
        if order.objective == "dpo":
            answers = {"chosen": example.answer, "rejected": example.rejected}
        if task.conversational:
            before = [{"role": role, "content": text} for role, text in example.turns]
            return {**({BEFORE: before} if before else {}), "text": example.text, **answers}
        own = example.system if system is None else ""
        return {"text": f"{own}\n\n{example.whole}" if own else example.whole, **answers}

    write_rows(path, map(row, examples))


def _task(
    kind: str, system: str | None, started: AnyTask | None, examples: Sequence[Example], base: Base
) -> dict[str, Any]:
    """Return the recipe's task: that of the version to go on from, where there is one that fits."""
    if started is not None and started.kind == kind:
        more = {"labels": list(started.answers)} if isinstance(started, ClassificationTask) else {}
        same = {"max_input_tokens", "normalize", "max_answer_tokens", "long", "decoding", "json_schema"}
        if started.conversational:
            return {"kind": kind, **started.model_dump(mode="json", include=same)}
        return {"kind": kind, "template": started.template.text, **more, **started.model_dump(include=same)}
    before = f"{system}\n\n" if system else ""
    if kind == "classification":
        return {"kind": kind, "template": f"{before}Text: {SLOT}\nLabel:"}
    longest = max(len(base.tokenizer.encode(example.answer)) for example in examples)
    tokens = min(MOST_ANSWER_TOKENS, max(16, longest + longest // 4))
    if kind == "generation":  # in the base's chat, as it is asked at /v1/chat/completions
        return {"kind": kind, "max_answer_tokens": tokens}
    return {"kind": kind, "template": f"{before}Text: {SLOT}\n\nSummary:", "max_answer_tokens": tokens}


def _data(folder: Path, examples: Sequence[Example], tested: bool, order: Order) -> dict[str, Any]:
    share = LARGE_SHARE if len(examples) < FEW_ROWS else USUAL_SHARE
    further = {"extra_tests": {"validation_file": {"path": str(folder / VALIDATION)}}} if tested else {}
    return {"path": str(folder / ROWS), "validation": share, "test": share, **further}


def _training(order: Order) -> dict[str, Any]:
    chosen: dict[str, Any] = {"report_to": []}
    if order.epochs is not None:
        chosen["epochs"] = order.epochs
    if order.batch_size is not None:
        chosen["batch_size"] = order.batch_size
    if order.learning_rate_multiplier is not None:
        usual = float(Training.model_fields["learning_rate"].default)
        chosen["learning_rate"] = usual * order.learning_rate_multiplier
    return chosen
