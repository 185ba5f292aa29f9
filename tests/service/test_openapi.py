"""The OpenAPI document says what the service does: Schemathesis asks what it allows, and what it does not."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

import pytest

from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from service.http.keys import new_key
from tests.conftest import MakeAdapter
from tests.service.conftest import Running, Serve

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]
EXAMPLES, SEED = 25, 1


@pytest.fixture
def documented(stocked: Store, make_adapter: MakeAdapter, sentiment_task, summary_task, tiny) -> Store:
    """A store with the adapters of the document's examples."""
    for name, task in (("sentiment", sentiment_task), ("one-line-summary", summary_task)):
        add_version(stocked, name, make_adapter(seed=5), task, tiny)
        stocked.release(name, NewRelease(stable=1))
    return stocked


async def schemathesis(service: Running, folder: Path, *options: str) -> int | None:
    """Run every check in a process of its own, whose words are captured; return its exit status."""
    await service.engine.openai()  # which imports vLLM; afterwards every answer comes in time
    url = service.url
    command = ["run", f"{url}/openapi.json", "--max-examples", str(EXAMPLES), "--seed", str(SEED), "--mode", "all"]
    # JSON Schema cannot say all that makes a request senseless (a summary asked of a classifier), and takes 1.0 for
    # an integer; what is refused is refused with a documented status, which is checked.
    command += ["--exclude-checks", "positive_data_acceptance"]
    command += ["--generation-database", "none", "--no-shrink", "--continue-on-failure", "--workers", "1", *options]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from schemathesis.cli import schemathesis; schemathesis()",
        *command,
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    print(said.decode())
    return process.returncode


async def test_every_reference_in_the_document_leads_somewhere(serve: Serve) -> None:
    async with serve() as service:
        document = (await service.client.get("/openapi.json")).text
    there = json.loads(document)["components"]["schemas"]
    for reference in set(re.findall(r'"\$ref":"([^"]+)"', document.replace(" ", ""))):
        assert reference.removeprefix("#/components/schemas/") in there, reference


async def test_without_keys(serve: Serve, documented: Store, tmp_path: Path) -> None:
    async with serve() as service:
        assert await schemathesis(service, tmp_path) == 0


async def test_with_a_key_that_may_do_everything(serve: Serve, documented: Store, tmp_path: Path) -> None:
    key, line = new_key("name=boss scopes=predict,admin")
    (tmp_path / "keys").write_text(line + "\n")
    async with serve(api_keys=tmp_path / "keys", jobs="queue") as service:
        assert await schemathesis(service, tmp_path, "--header", f"Authorization: Bearer {key}") == 0


async def test_with_a_key_that_may_do_little(serve: Serve, documented: Store, tmp_path: Path) -> None:
    key, line = new_key("name=writer scopes=predict adapters=brief rate=5/second")
    (tmp_path / "keys").write_text(line + "\n")
    async with serve(api_keys=tmp_path / "keys") as service:
        assert await schemathesis(service, tmp_path, "--header", f"Authorization: Bearer {key}") == 0
