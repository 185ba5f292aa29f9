"""A disk that is full in the middle of a training costs the time since the last checkpoint."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.trainer.workplace import Workplace, furnish

REPOSITORY = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def train(place: Workplace, limit: int) -> tuple[int, str]:
    """Run the command where no file may be larger than ``limit`` bytes: the same calls fail as on a full disk."""

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    done = subprocess.run(
        [sys.executable, "-m", "trainer", "train", "mood.yaml"],
        cwd=place.folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "OMP_NUM_THREADS": "1",
            "HOTSWAP_BASE_MODEL": str(place.base),
            "HOTSWAP_CACHE": str(place.folder / "cache"),
        },
        preexec_fn=limited,  # no threads here
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("limit", [12_000, 24_000], ids=["weights", "optimizer"])
def test_it_is_said_and_the_run_goes_on_when_there_is_room(tmp_path: Path, tiny_folder: Path, limit: int) -> None:
    place = furnish(tmp_path, tiny_folder)
    assert place.run("train", "mood.yaml").status == 0
    adapter = place.run_folder / "adapter" / "adapter_model.safetensors"
    wanted = load_file(adapter)
    place.run_folder.rename(place.folder / "kept")
    status, said = train(place, limit)
    assert status == 1
    assert "no room left to write runs/mood; free some and run the same command again" in said.splitlines()[-1]
    assert "Traceback" not in said
    assert place.run("train", "mood.yaml").status == 0
    for name, weights in load_file(adapter).items():
        assert weights.equal(wanted[name]), name
