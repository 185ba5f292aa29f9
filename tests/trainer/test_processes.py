"""Training in two processes, over gloo: the recipe's batches are shared, and the adapter is that of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.trainer.workplace import Workplace, furnish

REPOSITORY = Path(__file__).parents[2]
FSDP = yaml.safe_load((REPOSITORY / "trainer/fsdp.yaml").read_text())["fsdp_config"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Workplace:
    place = furnish(tmp_path_factory.mktemp("workplace"), tiny_folder)
    rows = (place.folder / "rows.jsonl").read_text().splitlines(keepends=True)
    (place.folder / "rows.jsonl").write_text("".join(rows[:104]))  # 64 to train on: eight whole batches
    exact = ("training.precision=float32", "output=runs/one")  # as several processes on CPUs always are
    assert place.run("train", "mood.yaml", *(part for change in exact for part in ("--set", change))).status == 0
    return place


def trained(place: Workplace, run: str, *program: str, **environment: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *program]
    done = subprocess.run(
        [*command, "train", "mood.yaml", "--set", f"output=runs/{run}"],
        cwd=place.folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "HOTSWAP_BASE_MODEL": str(place.base),
            "HOTSWAP_CACHE": str(place.folder / "cache"),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def sharded() -> dict[str, str]:
    """Return what ``accelerate launch --config_file trainer/fsdp.yaml`` puts into the environment."""
    settings = {key.upper(): value if isinstance(value, str) else str(value).lower() for key, value in FSDP.items()}
    return {"ACCELERATE_USE_FSDP": "true", **settings}


@pytest.mark.parametrize("how", ["each with the whole base", "sharded"])
def test_two_processes_make_the_adapter_of_one(place: Workplace, how: str) -> None:
    program = ["-m", "trainer"] if how != "sharded" else [str(REPOSITORY / "tests/trainer/fsdp_worker.py")]
    run = how.split()[0]
    environment = {} if how != "sharded" else sharded()
    status, said = trained(place, run, *program, **environment)
    assert status == 0, said
    assert said.count("trained 3,584 parameters") == 1
    one, two = (load_file(place.folder / f"runs/{r}/adapter/adapter_model.safetensors") for r in ("one", run))
    assert one.keys() == two.keys()
    for name, weights in one.items():
        assert (weights.float() - two[name].float()).abs().max() < 2e-2, name
    history = [json.loads((place.folder / f"runs/{r}/run.json").read_text())["history"][0] for r in ("one", run)]
    assert history[0]["loss"] == pytest.approx(history[1]["loss"], rel=1e-4)


def test_a_batch_that_cannot_be_shared_is_refused(place: Workplace) -> None:
    recipe = yaml.safe_load((place.folder / "mood.yaml").read_text())
    recipe["training"]["batch_size"] = 7
    (place.folder / "mood.yaml").write_text(yaml.safe_dump(recipe))
    status, said = trained(place, "seven", "-m", "trainer")
    assert status != 0
    assert "shared by 2 processes: make it a multiple of 2" in said
