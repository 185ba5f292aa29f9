"""Take a PEFT adapter folder into the store: lint it, describe it, write it as the next version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.lint import base_shapes, lint
from adapters.manifest import BaseReference, File, Manifest
from adapters.packages import file_digest
from adapters.signing import Signer
from adapters.store import CONFIG, WEIGHTS, Store
from adapters.tasks import ClassificationTask, SummarizationTask
from adapters.validation import explained

CARD, REPORT = "README.md", "report.html"


def add_version(
    store: Store,
    name: str,
    folder: Path,
    task: ClassificationTask | SummarizationTask,
    base: Base,
    *,
    signer: Signer | None = None,
    with_report: bool = False,
    **about: Any,
) -> Manifest:
    """Return the manifest of the new version; ``about`` are further fields of it (metrics, lineage, …);
    ``with_report`` takes a ``report.html`` along, which quotes test rows.

    Raises :class:`~adapters.errors.InvalidAdapter` for a folder that could not be served on ``base``, and
    writes nothing then.
    """
    facts = lint(folder, shapes=base_shapes(base.folder))
    _check_label_tokens(task, base)
    files = {
        file: File(bytes=(folder / file).stat().st_size, digest=file_digest(folder / file))
        for file in (CONFIG, WEIGHTS, CARD, *([REPORT] if with_report else []))
        if (folder / file).is_file()
    }

    def describe(version: int) -> Manifest:
        return Manifest(
            name=name,
            version=version,
            task=task,
            base=BaseReference(name=base.name, digest=base.digest),
            method="soft_prompt" if facts.virtual_tokens else "lora",
            virtual_tokens=facts.virtual_tokens,
            rank=facts.rank,
            alpha=facts.alpha,
            target_modules=facts.target_modules,
            files=files,
            **about,
        )

    with explained(Manifest, "nothing is stored"):
        describe(1)  # refuse a bad name or field before a version number is claimed
    return store.add(name, folder, describe, signer=signer)


def _check_label_tokens(task: ClassificationTask | SummarizationTask, base: Base) -> None:
    """Refuse a task made with a larger vocabulary: the engine has no logits for its labels."""
    if isinstance(task, ClassificationTask):
        last = max(base.tokenizer.vocabulary().values())
        beyond = [label.name for label in task.labels if label.token_id > last]
        if beyond:
            raise InvalidAdapter(f"labels {', '.join(beyond)} have tokens that {base.name} lacks; make the task anew.")
