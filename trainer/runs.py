"""A recipe's run: its rows, its base, and the folder with what training and evaluation left."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from pydantic import TypeAdapter

from adapters.base_model import Base, resolve_base
from adapters.errors import HotswapError
from adapters.packages import cache_folder, file_digest
from adapters.store import CONFIG, WEIGHTS
from adapters.tasks import AnyTask, ClassificationTask, Task
from adapters.tasks.base import BaseTask
from adapters.validation import explained
from trainer.data import Splits, load_splits
from trainer.evaluation import Evaluation
from trainer.job import Job
from trainer.recipe import IDENTITY, Recipe
from trainer.run_record import RunRecord

RUN, EVALUATION, TASK, CHECKED = "run.json", "evaluation.json", "adapter/task.json", "data-check.json"
GLANCE = 0.2  # seconds that it takes another process to look whether a folder is taken
STOP = "stop"  # whoever makes this file in a run's folder ends its training after the next step
Shape = TypeVar("Shape")


class Run:
    """What one recipe works with, each part fetched when it is first asked for."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe, self.folder = recipe, recipe.run_folder

    @cached_property
    def splits(self) -> Splits:
        return load_splits(self.recipe, cache_folder())

    @cached_property
    def base(self) -> Base:
        return base_for(self.recipe)

    @property
    def task(self) -> AnyTask:
        """The task as it was trained, with its temperature. Raises :class:`HotswapError` before that."""
        with explained(ClassificationTask, f"{self.folder / TASK} is damaged; delete {self.folder} and train again"):
            return TypeAdapter(Task).validate_python(self._read(TASK, TypeAdapter(dict[str, Any]).validate_python))

    def is_finished(self) -> bool:
        identity = self.recipe.run_identity(self.splits.fingerprint, self.base.digest)
        return (self.folder / RUN).is_file() and identity_of(self.folder) == identity

    def record(self) -> RunRecord:
        """Return what the training was like. Raises :class:`HotswapError` where there was none."""
        return self._read(RUN, RunRecord.model_validate)

    def evaluation(self) -> Evaluation:
        """Return what the evaluation found. Raises :class:`HotswapError` where there was none."""
        return self._read(EVALUATION, Evaluation.model_validate)

    def job(self) -> Job:
        """Return what the adapter was trained for. Raises where rows, recipe or base have changed."""
        return Job(self.recipe, self.held_out(), self.task, self.base)

    def trained(self) -> RunRecord:
        """Return the record. Raises where recipe or base are not those that were trained."""
        run = self.record()
        if run.files is not None and digests(self.folder / "adapter") != run.files:
            raise HotswapError(
                f"{self.folder / 'adapter'} is not what was trained; delete {self.folder} and train again."
            )
        if self.base.digest != run.base:
            raise HotswapError(
                f"the adapter was trained on another base than {self.base.name}; set HOTSWAP_BASE_MODEL to it."
            )
        if identity_of(self.folder) != self.recipe.run_identity(run.data, run.base):
            raise HotswapError(
                f"the recipe is not the one that {self.folder} was trained with; give the same --set, or train again."
            )
        return run

    def held_out(self) -> Splits:
        """Return the rows that the adapter was trained and is tested on. Raises where they have changed."""
        if self.trained().data != self.splits.fingerprint:
            raise HotswapError("the data is not what the adapter was trained on; train again, then evaluate.")
        return self.splits

    def _read(self, name: str, shaped: Callable[[Any], Shape]) -> Shape:
        path = self.folder / name
        if not path.is_file():
            kept = f"; the run before it is kept in {aside}" if (aside := aside_of(self.folder)).exists() else ""
            raise HotswapError(f"{path} is missing: python -m trainer train comes first, with the same recipe{kept}.")
        try:
            return shaped(json.loads(path.read_bytes()))
        except (ValueError, RecursionError):
            remedy = "evaluate again" if name == EVALUATION else f"delete {self.folder} and train again"
            raise HotswapError(f"{path} is damaged; {remedy}.") from None

    def write_mixed(self, name: str, task: BaseTask) -> None:
        """Leave the adapter with one of the tasks of ``mix``, as ``python -m adapters add`` takes it in."""
        folder = self.folder / "mixed" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file in (WEIGHTS, CONFIG):
            shutil.copyfile(self.folder / "adapter" / file, folder / file)
        self.write(f"mixed/{name}/{Path(TASK).name}", task.model_dump(mode="json"))

    def write(self, name: str, content: Any) -> None:
        """Write all or nothing: a full disk, or a kill, leaves what was there."""
        write_whole(self.folder / name, json.dumps(content, indent=1, ensure_ascii=False))


def write_whole(path: Path, content: str) -> None:
    """Write all or nothing: a full disk, or a kill, leaves what was there."""
    scratch = path.with_suffix(".part")
    scratch.write_text(content, encoding="utf-8")
    scratch.replace(path)


def base_for(recipe: Recipe) -> Base:
    """Return the base that the recipe names, else ``HOTSWAP_BASE_MODEL``, else the default."""
    return resolve_base(recipe.base or os.environ.get("HOTSWAP_BASE_MODEL"))


def digests(adapter: Path) -> dict[str, str]:
    """Return the digest of each file that decides what an adapter answers."""
    return {name: file_digest(adapter / name) for name in (WEIGHTS, CONFIG) if (adapter / name).is_file()}


def aside_of(folder: Path) -> Path:
    """Return where a run is kept while another one is trained in its folder; training it again brings it back."""
    return folder.absolute().with_name(f".{folder.absolute().name}.before")


def lock_of(folder: Path) -> Path:
    """Return the file that is locked while a training is at work in a folder."""
    return folder.absolute().with_name(f".{folder.absolute().name}.lock")


def is_taken(folder: Path) -> bool:
    """Return whether a living process is training there."""
    if not lock_of(folder).is_file():
        return False
    try:
        with FileLock(lock_of(folder), timeout=GLANCE):
            return False
    except Timeout:
        return True
    except OSError:  # somebody else's
        return False


def identity_of(folder: Path) -> str | None:
    """Return the identity of the run in a folder; none where there is no run."""
    note = folder / IDENTITY
    return note.read_text(encoding="utf-8", errors="replace") if note.is_file() else None
