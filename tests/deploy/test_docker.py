"""The image: lint, who it runs as, and settings that the server knows."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# What is in each image beside the environment: the stage `runtime`, and its own.
RUNTIME, TRAINER, SERVICE = re.findall(r"^FROM \S+ AS (?:runtime|\w+-cpu)\n(.+?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert hadolint is not None, "it comes with the extra dev"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("stage", [TRAINER, SERVICE])
def test_runs_as_a_numbered_user_that_is_not_root(stage: str) -> None:
    assert re.findall(r"^USER (.+)$", stage, re.MULTILINE) == ["10001:10001"]
    assert "--uid 10001" in RUNTIME


def test_sets_only_settings_that_the_server_knows() -> None:
    given = dict(re.findall(r"\b(HOTSWAP_[A-Z_]+)=(\S+)", RUNTIME + SERVICE))
    settings = Settings.read(given)
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert f"EXPOSE {settings.port}" in SERVICE


@pytest.mark.parametrize(("stage", "program"), [(TRAINER, "trainer"), (SERVICE, "service")])
def test_imports_nothing_from_a_folder_that_its_user_writes_to(stage: str, program: str) -> None:
    (folder,) = re.findall(r"^WORKDIR (.+)$", stage, re.MULTILINE)
    assert f'ENTRYPOINT ["python", "-m", "{program}"]' in stage
    assert not folder.startswith("/var/lib/hotswap") or "PYTHONSAFEPATH=1" in stage


def test_takes_from_the_checkout_what_exists_and_what_the_build_context_lets_through() -> None:
    copied = {
        source for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE) for source in line.split()[:-1]
    }
    first, *rest = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert first == "*"
    assert copied == {line.removeprefix("!") for line in rest if line.startswith("!")}
    assert all((ROOT / source).exists() for source in copied)


def test_repeats_no_version_that_pyproject_pins() -> None:
    assert "==" not in DOCKERFILE
