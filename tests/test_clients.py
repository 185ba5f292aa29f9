"""Clients as installed from PyPI, against the real engine: none needs a line of ours on its side.

But for LangChain they are not put beside vLLM (``tests/clients/requirements.txt`` says why): ``make setup`` makes an
environment for them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.base_model import Base
from adapters.chat import asked
from adapters.intake import add_version
from adapters.packages import cache_folder
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import Chat, GenerationTask
from tests.conftest import write_adapter
from tests.server import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
CLIENTS = Path(__file__).parent / "clients"
PYTHON = cache_folder() / "clients" / "bin" / "python"


@pytest.fixture(scope="module")
def server(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("clients")
    store = Store(folder / "store")
    task = GenerationTask.of(asked(Chat(), tiny.folder, conversational=True), max_answer_tokens=12)
    add_version(store, "helper", write_adapter(folder / "adapter", seed=3, scale=0.15), task, tiny)
    store.release("helper", NewRelease(stable=1))
    places = {"store": str(store.place), "base_model": str(tiny.folder), "cache": str(folder / "cache")}
    with serving(folder / "log", **places, kv_cache_gib="0.25", max_model_len="1024") as running:
        yield running


def run(server: Server, script: str) -> dict[str, Any]:
    python = Path(sys.executable) if script.startswith("langchain") else PYTHON
    assert python.exists(), "make setup puts it into an environment of its own"
    command = [str(python), str(CLIENTS / script), f"{server.url}/v1", "helper"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize("script", ["langchain_chat.py", "litellm_chat.py", "llamaindex_chat.py"])
def test_a_client_is_answered_as_by_a_plain_request(server: Server, script: str) -> None:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is the film dull?"}]
    plain = server.client.post("/v1/chat/completions", json={"model": "helper", "messages": turns}).json()
    told = run(server, script)
    assert told["chat"] == told["streamed"] == plain["choices"][0]["message"]["content"]
    assert told["tokens"] == plain["usage"]["completion_tokens"]
    assert told["model"].endswith("helper@1")
    prompt = "Review: A moving film.\nSentiment:"
    text = server.client.post("/v1/completions", json={"model": "helper", "prompt": prompt}).json()
    assert told["text"].strip()[:10] == text["choices"][0]["text"].strip()[:10]
    assert told.get("refused") in (None, "NotFoundError")


def test_instructor_gets_the_object_that_it_asks_for(server: Server) -> None:
    told = run(server, "instructor_shape.py")
    assert told["verdict"]["film"] in ("dull", "moving")
    assert isinstance(told["verdict"]["sure"], bool)
    assert told["model"] == "helper@1"
