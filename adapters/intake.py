"""Take a PEFT adapter folder into the store: lint it, describe it, write it as the next version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapters.base_model import Base
from adapters.lint import base_shapes, lint
from adapters.manifest import BaseReference, File, Manifest
from adapters.packages import file_digest
from adapters.store import CONFIG, WEIGHTS, Store
from adapters.tasks import ClassificationTask, SummarizationTask

CARD = "README.md"


def add_version(
    store: Store,
    name: str,
    folder: Path,
    task: ClassificationTask | SummarizationTask,
    base: Base,
    **about: Any,
) -> Manifest:
    """Return the manifest of the new version; ``about`` are further fields of it (metrics, lineage, …).

    Raises :class:`~adapters.errors.InvalidAdapter` for a folder that could not be served on ``base``, and
    writes nothing then.
    """
    facts = lint(folder, shapes=base_shapes(base.folder))
    files = {
        file: File(bytes=(folder / file).stat().st_size, digest=file_digest(folder / file))
        for file in (CONFIG, WEIGHTS, CARD)
        if (folder / file).is_file()
    }

    def describe(version: int) -> Manifest:
        return Manifest(
            name=name,
            version=version,
            task=task,
            base=BaseReference(name=base.name, digest=base.digest),
            rank=facts.rank,
            alpha=facts.alpha,
            target_modules=facts.target_modules,
            files=files,
            **about,
        )

    describe(1)  # refuse a bad name or field before a version number is claimed
    return store.add(name, folder, describe)
