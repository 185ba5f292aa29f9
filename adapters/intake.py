"""Take a PEFT adapter folder into the store: lint it, make it plain, describe it, write it as the next version."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.kinship import check_family
from adapters.lint import CARD, READ, REPORT, Examined, examine
from adapters.manifest import BaseReference, File, Manifest
from adapters.modules import base_shapes
from adapters.packages import file_digest
from adapters.plain import write_plain
from adapters.signing import Signer
from adapters.store import CONFIG, WEIGHTS, Store
from adapters.tasks import AnyTask
from adapters.validation import explained


def add_version(
    store: Store,
    name: str,
    folder: Path,
    task: AnyTask,
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
    examined = examine(folder, shapes=base_shapes(base.folder))
    check_family(folder, base.folder)
    facts = examined.facts
    _check_label_tokens(task, base)
    with _plain(folder, examined) as ready:
        files = {
            file: File(bytes=(ready / file).stat().st_size, digest=file_digest(ready / file))
            for file in (CONFIG, WEIGHTS, CARD, *([REPORT] if with_report else []))
            if (ready / file).is_file()
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
        return store.add(name, ready, describe, signer=signer)


@contextmanager
def _plain(folder: Path, examined: Examined) -> Iterator[Path]:
    """Give a folder whose LoRA is plain: the one at hand, or one beside it for as long as it is needed."""
    if examined.plan is None or examined.plan.is_plain:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        ready = Path(scratch)
        for file in READ:
            if file not in (CONFIG, WEIGHTS) and (folder / file).is_file():
                shutil.copy(folder / file, ready)
        write_plain(examined.plan, examined.header, folder / WEIGHTS, ready)
        yield ready


def _check_label_tokens(task: AnyTask, base: Base) -> None:
    """Refuse a task made with a larger vocabulary: the engine has no logits for its labels."""
    last = max(base.tokenizer.vocabulary().values())
    beyond = [name for name, token in zip(task.answers, task.sampling({}).choices, strict=True) if token > last]
    if beyond:
        raise InvalidAdapter(f"labels {', '.join(beyond)} have tokens that {base.name} lacks; make the task anew.")
