"""The folder of a run, taken by one training at a time; what was there before is kept until the new run is done."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import get_last_checkpoint

from adapters.errors import HotswapError
from adapters.progress import say
from trainer.progress import Diverged
from trainer.recipe import IDENTITY
from trainer.runs import GLANCE, STOP, aside_of, identity_of, lock_of


@contextmanager
def occupied(folder: Path, identity: str, first: bool = True) -> Iterator[str | None]:
    """Hold the folder for the run with this identity, and give the checkpoint to go on from, if it has one.

    Of several processes the ``first`` does the work. A run of another identity is set aside, and put back where the
    new one diverges, or ends before its first checkpoint. Raises :class:`HotswapError` where another training is at
    work there, or the folder holds something else.
    """
    if not first:
        yield get_last_checkpoint(str(folder))
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = aside_of(folder)
    try:
        with FileLock(lock_of(folder), timeout=GLANCE):
            _make_room(folder, aside, identity)
            (folder / STOP).unlink(missing_ok=True)  # meant for an earlier training
            try:
                yield get_last_checkpoint(str(folder))
            except BaseException as error:
                if aside.exists() and (isinstance(error, Diverged) or not get_last_checkpoint(str(folder))):
                    shutil.rmtree(folder)
                    aside.rename(folder)
                    say(f"the earlier run in {folder} is as it was")
                raise
            finally:
                (folder / STOP).unlink(missing_ok=True)
            shutil.rmtree(aside, ignore_errors=True)
    except Timeout:
        raise HotswapError(f"another training is at work in {folder}; wait for it, or set output.") from None


def _make_room(folder: Path, aside: Path, identity: str) -> None:
    if identity_of(aside) == identity and identity_of(folder) != identity:
        shutil.rmtree(folder, ignore_errors=True)  # begun after it, and never finished
        aside.rename(folder)
    if identity_of(folder) == identity:
        for checkpoint in folder.glob("checkpoint-*"):
            if not (checkpoint / TRAINER_STATE_NAME).is_file():  # written last: a kill left this one incomplete
                shutil.rmtree(checkpoint)
        return
    if identity_of(folder) is not None:
        if aside.exists():
            shutil.rmtree(folder)
        else:
            folder.rename(aside)
            say(f"the earlier run in {folder} is kept until this one is trained")
    elif folder.exists() and any(folder.iterdir()):
        raise HotswapError(f"{folder} is not empty and not a run of this trainer; set output to another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IDENTITY).write_text(identity)
