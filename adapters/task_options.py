"""What ``adapters add`` is told of the task that an adapter was trained for."""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from adapters.base_model import Base
from adapters.chat import asked, talks
from adapters.errors import HotswapError
from adapters.lint import TASK_FILE
from adapters.tasks import KINDS, AnyTask, Chat, ClassificationTask, GenerationTask, SummarizationTask, Task, Template
from adapters.tasks.base import SLOT
from adapters.validation import explained


def add_task_options(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--task", choices=sorted(KINDS))
    sub.add_argument("--labels", help='a row of CSV (a,"b, c"), in the order of training (this trainer sorts them)')
    sub.add_argument("--template", help="the prompt it was trained with; {text} marks the input, \\n a new line")
    sub.add_argument("--chat", action="store_true", help="--template (default {text}) is what the user says in a chat")
    sub.add_argument("--system", metavar="TEXT", help="with --chat: what the system says first")
    free = sub.add_argument_group("generation", "what holds where a request says nothing")
    free.add_argument("--max-tokens", type=int, metavar="N", help="of an answer (256)")
    free.add_argument("--temperature", type=float, help="0, the default, gives the same answer every time")
    free.add_argument("--top-p", type=float, help="the share of the likeliest tokens that is drawn from")
    free.add_argument("--stop", action="append", metavar="TEXT", help="ends an answer; several times for several")
    free.add_argument("--json-schema", type=Path, metavar="FILE", help="what its answers, which are JSON, keep to")


def task_of(options: argparse.Namespace, base: Base) -> AnyTask:
    """Return the task that the options, or the folder's own file, describe. Raises :class:`HotswapError`."""
    own = options.dir / TASK_FILE
    if options.task is None:
        if not own.is_file() or options.labels or options.template or options.chat or _settings(options):
            raise HotswapError(f"say what it does: --task classification --labels a,b (or put {TASK_FILE} beside it).")
        with explained(ClassificationTask, f"{own} is no task"):
            return TypeAdapter(Task).validate_json(own.read_bytes())
    settings = _settings(options)
    if settings and options.task != "generation":
        raise HotswapError("--max-tokens, --temperature, --top-p, --stop and --json-schema are for --task generation.")
    template = _template(options, base)
    if options.task == "generation":
        return GenerationTask.of(template, **settings)
    if options.task == "summarization":
        return SummarizationTask.of(template)
    labels = _labels(options.labels or "")
    if len(set(labels)) < 2 or len(set(labels)) < len(labels):
        raise HotswapError("a classification adapter needs two or more different labels: --labels a,b")
    return ClassificationTask.of(template, labels, base.tokenizer)


def _template(options: argparse.Namespace, base: Base) -> str | Template:
    given = options.template.replace("\\n", "\n") if options.template else None
    if options.system and not options.chat:
        raise HotswapError("--system is said in a chat: give --chat too, or write it into --template.")
    kind = KINDS[options.task]
    chat = options.chat or (kind.conversational and not given and talks(base.folder))
    if not chat:
        return given or kind.usual_template
    with explained(Chat, "--template is no prompt"):
        said = Chat(system=options.system, user=given or SLOT)
    return asked(said, base.folder, conversational=kind.conversational)


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the options say of answers, by the names of :class:`GenerationTask`."""
    decoding = {name: getattr(options, name) for name in ("temperature", "top_p", "stop")}
    decoding = {name: value for name, value in decoding.items() if value is not None}
    settings: dict[str, Any] = {"decoding": decoding} if decoding else {}
    if options.max_tokens is not None:
        settings["max_answer_tokens"] = options.max_tokens
    if options.json_schema is not None:
        try:
            settings["json_schema"] = json.loads(options.json_schema.read_bytes())
        except (OSError, ValueError, RecursionError):
            raise HotswapError(f"{options.json_schema} is no JSON schema: it cannot be read as JSON.") from None
    return settings


def _labels(text: str) -> list[str]:
    """Read ``a,"b, c"`` as a row of a CSV file."""
    try:
        cells = next(csv.reader([re.sub(r'" +(?=,|$)', '"', text)], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        raise HotswapError(f'--labels {text}: {error}; write it as a row of a CSV file: a,"b, c"') from None
    return [label.strip() for label in cells if label.strip()]
