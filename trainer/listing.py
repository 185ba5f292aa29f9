"""The runs in a folder: what state each is in, and what it reached."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from adapters.errors import HotswapError
from trainer.evaluation import Evaluation
from trainer.recipe import IDENTITY
from trainer.run_record import RunRecord
from trainer.runs import EVALUATION, RUN, is_taken

STATE = "trainer_state.json"  # transformers' own, in each checkpoint
DAMAGED = (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError)


def runs_in(folder: Path) -> list[dict[str, Any]]:
    """Return a row for each run in ``folder``, by name. Raises :class:`HotswapError` where there is no such folder.

    ``state`` is training, begun (ended before its first checkpoint), interrupted, trained, evaluated or damaged;
    ``steps`` those done, ``of`` those planned where that is known; ``test`` and ``baseline`` the mean merit (accuracy,
    ROUGE-L) on the test rows; ``seconds`` those of the training.
    """
    if not folder.is_dir():
        raise HotswapError(f"{folder} is no folder; python -m trainer train makes the first run in runs/.")
    places = sorted(place for place in folder.iterdir() if not place.name.startswith("."))
    return [row_of(place) for place in places if (place / IDENTITY).is_file() or (place / RUN).is_file()]


MENDED = {RUN: "delete the folder and train again", EVALUATION: "evaluate again"}


def row_of(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = {"run": folder.name, "state": "begun"}
    for name, read in ((RUN, _trained), (EVALUATION, _evaluated)):
        if (folder / name).is_file():
            try:
                row |= read(json.loads((folder / name).read_bytes()))
            except DAMAGED:
                row |= {"state": "damaged", "problem": f"{folder / name} cannot be read; {MENDED[name]}"}
                break
    if row["state"] == "begun":
        row |= _unfinished(folder)
    if is_taken(folder):
        row["state"] = "training"
    return {**row, "when": _when(folder)}


def _trained(content: Any) -> dict[str, Any]:
    record = RunRecord.model_validate(content)
    return {
        "state": "trained",
        "steps": record.steps,
        "validation": record.best_validation_loss,
        "seconds": record.seconds,
    }


def _evaluated(content: Any) -> dict[str, Any]:
    if "scores" not in content:  # of a reward model
        return {"state": "evaluated", "test": float(content["accuracy"])}
    found = Evaluation.model_validate(content)
    reached = found.baseline or found.base
    return {
        "state": "evaluated",
        "test": reached.candidate if reached else None,
        "baseline": found.baseline.baseline if found.baseline else None,
    }


def _unfinished(folder: Path) -> dict[str, Any]:
    for note in _checkpoints(folder):
        try:
            state = json.loads(note.read_bytes())
            return {
                "state": "interrupted",
                "steps": int(state["global_step"]),
                "of": int(state["max_steps"]),
                "validation": state.get("best_metric"),
            }
        except DAMAGED:
            continue  # a kill left it incomplete; training goes on from the one before
    return {}


def _checkpoints(folder: Path) -> Iterator[Path]:
    """Give the state of each checkpoint, the newest first."""
    numbered = [(place.name.removeprefix("checkpoint-"), place / STATE) for place in folder.glob("checkpoint-*")]
    for _, note in sorted(((int(n), note) for n, note in numbered if n.isdecimal()), reverse=True):
        if note.is_file():
            yield note


def _when(folder: Path) -> str | None:
    """Return when something was last written that the row tells of, in local time."""
    times = []
    for path in (folder / IDENTITY, folder / RUN, folder / EVALUATION, *_checkpoints(folder)):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return datetime.fromtimestamp(max(times)).strftime("%Y-%m-%d %H:%M") if times else None
