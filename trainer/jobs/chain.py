"""One job from rows to a published version, in a process of its own.

It tells what it does as JSON lines on stderr, and listens on stdin: for leave to publish, and for its end, which says
that the worker is gone. What the worker did not live to see done is done once all the same: training goes on from its
checkpoint, and a version that says this job made it is not made again.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
from pathlib import Path

from filelock import FileLock

from adapters import cli
from adapters.base_model import resolve_base
from adapters.errors import GenerationConflict, HotswapError, StoreUnavailable
from adapters.manifest import Manifest
from adapters.progress import json_lines, tell
from adapters.releases import Guard, NewRelease, Share
from adapters.seed import open_store
from adapters.store import Store
from trainer.commands.publish import evaluation_of
from trainer.commands.train import complete
from trainer.evaluation import Evaluation
from trainer.jobs.order import RECIPE, Order
from trainer.jobs.preparation import BadFile, prepare
from trainer.loading import load_recipe
from trainer.run_record import RunRecord
from trainer.runs import Run

GO = "go"
CANARY_PERCENT, GUARDED_PERCENT = 10, 5


class Leave:
    """What the worker says: that the version may be published. Its silence for ever is the end of this process."""

    def __init__(self) -> None:
        self._given = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def wait(self) -> None:
        tell("ready")
        self._given.wait()

    def _listen(self) -> None:
        for line in sys.stdin:
            if line.strip() == GO:
                self._given.set()
        os._exit(1)  # whoever renews the lease is gone: another worker goes on, and two must not


def run(folder: Path, leave: Leave | None = None) -> int:
    """Do the job in ``folder``; return the exit status."""
    leave = leave or Leave()
    with json_lines(True):
        try:
            _do(Order.read(folder), folder, leave)
        except BadFile as error:
            return _failed(f"invalid_{error.param}", str(error), error.param)
        except (StoreUnavailable, OSError) as error:
            tell("later", message=_reason(error))
            return 1
        except HotswapError as error:
            if isinstance(error.__cause__, OSError):  # no room left: there may be some later
                tell("later", message=str(error))
                return 1
            return _failed("training_failed", str(error))
    return 0


def _do(order: Order, folder: Path, leave: Leave) -> None:
    store, base = open_store(order.store), resolve_base(os.environ.get("HOTSWAP_BASE_MODEL"))
    done = _published(store, order)
    if done is None:
        run = _checked(order, folder, store, Run(prepare(order, folder, store, base)))
        tell("begin")
        asked = argparse.Namespace(recipe=folder / RECIPE, set=[], store=order.store, json=True)
        complete(run, asked)
        evaluation = evaluation_of(run, store)
        _tell_scores(evaluation)
        if not _passes(run, evaluation):
            return
        leave.wait()
        done = _publish(order, folder, store, run, evaluation)
    _tell_done(folder, done, _release(order, store, done))


def _checked(order: Order, folder: Path, store: Store, run: Run) -> Run:
    """Return the run if its rows can be trained on. Raises :class:`BadFile` with what is wrong with them."""
    from trainer.mixture import make_task

    try:
        make_task(run.recipe, run.splits, run.base)
    except HotswapError as error:
        named = "validation_file" if "validation_file" in str(error) else "training_file"
        raise BadFile(str(error), named) from error
    return run


def _passes(run: Run, evaluation: Evaluation) -> bool:
    from trainer.publish import check_gate

    try:
        check_gate(run.recipe, evaluation)
    except HotswapError as error:
        _failed("gate_closed", str(error))
        return False
    return True


def _published(store: Store, order: Order) -> Manifest | None:
    """Return the version that this job has made before, if it has."""
    for version in reversed(store.versions(order.adapter)):
        manifest = store.manifest(order.adapter, version)[0]
        if manifest.lineage.get("job") == order.id:
            return manifest
    return None


def _publish(order: Order, folder: Path, store: Store, run: Run, evaluation: Evaluation) -> Manifest:
    """Return the one version of this job, made now unless somebody was faster."""
    from trainer.publish import publish

    signer = cli.signer_of(argparse.Namespace(sign=os.environ.get("HOTSWAP_SIGNING_KEY")))
    with FileLock(folder / "publish.lock"):
        if (before := _published(store, order)) is not None:
            return before
        made_by = {"job": order.id, "asked_by": order.owner}
        trained = run.trained()
        # Without the report, which quotes rows: they are the tenant's.
        return publish(
            run.recipe, store, run.task, run.base, trained, evaluation, signer, with_report=False, made_by=made_by
        )


def _release(order: Order, store: Store, made: Manifest) -> str:
    """Release the version as the setting says; return how, in words."""
    if order.release == "none":
        return "not released: ask for it by its number, or release it"
    if any(made.version in release.versions for release in store.history(made.name)):
        return "released"
    served = store.released(made.name)
    if served is not None and served.under_way:
        return "not released: another version is being tried out"
    new = NewRelease(stable=made.version, by=order.owner, why=f"fine-tuning job {order.id}")
    if served is not None:
        percent = GUARDED_PERCENT if order.release == "guarded" else CANARY_PERCENT
        guard = Guard() if order.release == "guarded" else None
        share = Share(version=made.version, percent=percent)
        new = new.model_copy(update={"stable": served.stable, "canary": share, "guard": guard})
    try:
        store.release(made.name, new, expected_generation=served.generation if served else 0)
    except GenerationConflict:
        return "not released: somebody else released at the same time"
    return "released to everyone: it is the first" if served is None else f"released as a canary of {percent} %"


def _tell_scores(evaluation: Evaluation) -> None:
    for test, both in evaluation.scores.items():
        values = {name: round(value, 4) for name, value in both.adapter.values.items() if value is not None}
        tell("scores", test=test, values=values)


def _tell_done(folder: Path, made: Manifest, released: str) -> None:
    record: RunRecord = Run(load_recipe(folder / RECIPE)).record()
    tell(
        "done",
        model=f"{made.name}@{made.version}",
        released=released,
        steps=record.steps,
        train_loss=record.train_loss,
        valid_loss=record.best_validation_loss,
        tokens=round(record.tokens_per_second * record.seconds),
    )


def _failed(code: str, message: str, param: str | None = None) -> int:
    tell("failed", code=code, message=message, param=param)
    return 1


def _reason(error: Exception) -> str:
    return f"{error.strerror or error}" if isinstance(error, OSError) else str(error)
