"""A user's folder, where ``python -m trainer`` is typed."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

import trainer.__main__ as commands
from adapters.store import Store
from tests.trainer.conftest import reviews, settings

GATE = {"test": {"accuracy": 0.9}}


@dataclass
class Result:
    status: int
    out: str
    err: str


@dataclass
class Workplace:
    """A user's folder: a recipe, rows, a store that begins empty, and the tiny model as base."""

    folder: Path
    base: Path

    def run(self, *arguments: object, base: Path | None = None) -> Result:
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            patch.chdir(self.folder)
            patch.setenv("HOTSWAP_BASE_MODEL", str(base or self.base))
            patch.setenv("HOTSWAP_STORE", str(self.folder / "store"))
            patch.setenv("HOTSWAP_CACHE", str(self.folder / "cache"))
            patch.setattr(sys, "argv", ["trainer", *map(str, arguments)])
            patch.setattr("getpass.getuser", lambda: "ann")
            try:
                status = commands.main()
            except SystemExit as stop:
                status = int(stop.code or 0)
        return Result(status, out.getvalue(), err.getvalue())

    def write_recipe(self, **changes: Any) -> Path:
        (self.folder / "mood.yaml").write_text(yaml.safe_dump(settings(**changes)))
        return self.folder / "mood.yaml"

    def copied(self, folder: Path) -> Workplace:
        shutil.copytree(self.folder, folder)
        return Workplace(folder, self.base)

    @property
    def store(self) -> Store:
        return Store(self.folder / "store")

    @property
    def run_folder(self) -> Path:
        return self.folder / "runs" / "mood"


def furnish(folder: Path, base: Path) -> Workplace:
    place = Workplace(folder, base)
    place.write_recipe(description="Moving or dull.", gate=GATE)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews(120)))
    return place


def trained(folder: Path, base: Path) -> Workplace:
    """Return a workplace whose recipe has been trained."""
    place = furnish(folder, base)
    assert place.run("train", "mood.yaml").status == 0
    return place
