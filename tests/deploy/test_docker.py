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
# What each stage does, by its name.
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", DOCKERFILE, re.MULTILINE | re.DOTALL))
IMAGES = ("service-cpu", "service-gpu", "trainer")


def test_hadolint_has_nothing_to_say() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert hadolint is not None, "it comes with the extra dev"
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_runs_as_a_numbered_user_that_is_not_root_and_as_any_other_of_its_group(image: str) -> None:
    assert re.findall(r"^USER (.+)$", STAGES[image], re.MULTILINE) == ["10001:0"]
    for runtime in ("runtime-cpu", "runtime-gpu"):
        assert "--owner 10001 --group 0 --mode 0770 /var/lib/hotswap" in STAGES[runtime]


@pytest.mark.parametrize("engine", ["cpu", "gpu"])
def test_sets_only_settings_that_the_server_knows(engine: str) -> None:
    stages = STAGES[f"runtime-{engine}"] + STAGES[f"baked-{engine}"] + STAGES[f"service-{engine}"]
    settings = Settings.read(dict(re.findall(r"\b(HOTSWAP_[A-Z_]+)=(\S+)", stages)))
    assert (settings.host, settings.port) == ("0.0.0.0", 8000)
    assert f"EXPOSE {settings.port}" in STAGES[f"service-{engine}"]


@pytest.mark.parametrize("image", IMAGES)
def test_imports_nothing_from_a_folder_that_its_user_writes_to(image: str) -> None:
    (folder,) = re.findall(r"^WORKDIR (.+)$", STAGES[image], re.MULTILINE)
    assert f'ENTRYPOINT ["python", "-m", "{image.partition("-")[0]}"]' in STAGES[image]
    assert not folder.startswith("/var/lib/hotswap") or "PYTHONSAFEPATH=1" in STAGES[image]


@pytest.mark.parametrize("image", IMAGES)
def test_our_code_is_the_last_and_smallest_layer(image: str) -> None:
    sources = re.findall(r"^COPY --from=(\S+)", STAGES[image], re.MULTILINE)
    assert sources[-1] == "code"
    packages = STAGES[sources[0]]
    assert not re.search(r"^COPY (?!pyproject\.toml \./)", packages, re.MULTILINE), (
        "packages change with pyproject.toml only"
    )


def test_nothing_to_build_with_is_in_an_image_but_what_triton_needs() -> None:
    installed = {name for stage in ("runtime-cpu", *IMAGES) for name in re.findall(r"'([a-z0-9-]+)=", STAGES[stage])}
    assert installed == {"libnuma1", "libtcmalloc-minimal4"}
    assert "gcc" in STAGES["python-gpu"]


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
