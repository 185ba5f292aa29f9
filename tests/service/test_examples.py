"""The examples, as they are, in the languages that are at hand."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from tests.conftest import MakeAdapter
from tests.service.conftest import Serve

EXAMPLES = Path(__file__).parents[2] / "examples"
# What runs a file, by its ending, and what it is to say.
RUN = {".sh": ("sh",), ".py": (sys.executable,), ".mjs": ("node",), ".java": ("java",), ".go": ("go", "run")}
SAYS = {"predict": '"label"', "predict.py": "sentiment@1", "chat.py": "[one-line-summary@1]", "stream.mjs": "@1"}
FILES = sorted(file for file in EXAMPLES.iterdir() if file.suffix in RUN)
AT_HAND = [file for file in FILES if shutil.which(RUN[file.suffix][0])]


@pytest.fixture
def shipped(stocked: Store, make_adapter: MakeAdapter, sentiment_task, summary_task, tiny) -> Store:
    for name, task in (("sentiment", sentiment_task), ("one-line-summary", summary_task)):
        add_version(stocked, name, make_adapter(seed=5), task, tiny)
        stocked.release(name, NewRelease(stable=1))
    return stocked


@pytest.mark.anyio
@pytest.mark.timeout(120)
@pytest.mark.parametrize("file", AT_HAND, ids=lambda file: file.name)
async def test_does_what_it_says(serve: Serve, shipped: Store, file: Path) -> None:
    async with serve() as service:
        process = await asyncio.create_subprocess_exec(
            *RUN[file.suffix],
            file,
            env={**os.environ, "HOTSWAP_URL": service.url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    assert SAYS.get(file.name, SAYS["predict"]) in said


def test_fits_on_a_screen_and_is_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    for file in FILES:
        assert len(file.read_text().splitlines()) <= 40, file.name
        assert f"`{file.name}`" in listed
