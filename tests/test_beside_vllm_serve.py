"""Answer by answer beside ``vllm serve``: with the same base and adapter, OpenAI's API says here what it says there."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.base_model import Base
from adapters.chat import asked
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import Chat, GenerationTask
from tests.conftest import write_adapter
from tests.server import serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
PROMPT, MESSAGES = "The film is", [{"role": "user", "content": "Is the film dull?"}]
# What a server makes up for itself, or calls by its own names.
OWN = {
    "id",
    "created",
    "model",
    "system_fingerprint",
    "created_at",
    "completed_at",
    "item_id",
    "metrics",
    "prompt_tokens_details",
}
SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "boolean"}}, "additionalProperties": False}
SHAPED = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
NAMED, SAID = {"type": "function", "function": {"name": "rate"}}, {"role": "assistant", "content": "No."}
TOOL = {"type": "function", "function": {"name": "rate", "parameters": SCHEMA}}
GREEDY, DRAWN = {"temperature": 0, "max_tokens": 12}, {"temperature": 1.0, "max_tokens": 12, "seed": 7}
ASKED: dict[str, tuple[str, dict[str, Any]]] = {
    "a text": ("completions", GREEDY),
    "a text in silence, for one token": ("completions", {"temperature": 0, "max_tokens": 1}),
    "log-probabilities": ("completions", {**GREEDY, "logprobs": 3}),
    "the prompt's too": ("completions", {**GREEDY, "logprobs": 1, "echo": True}),
    "several prompts": ("completions", {**GREEDY, "prompt": [PROMPT, "A moving film"]}),
    "token ids": ("completions", {**GREEDY, "prompt": [5, 6, 7, 8]}),
    "drawn with a seed": ("completions", {**DRAWN, "n": 3}),
    "drawn from few": ("completions", {**DRAWN, "top_p": 0.8, "top_k": 20, "min_p": 0.01}),
    "with penalties": ("completions", {**GREEDY, "repetition_penalty": 1.3, "presence_penalty": 0.5}),
    "a bias": ("completions", {**GREEDY, "logit_bias": {"40": 5}}),
    "a choice": ("completions", {**GREEDY, "structured_outputs": {"choice": ["dull", "moving"]}}),
    "a chat": ("chat/completions", GREEDY),
    "a chat's log-probabilities": ("chat/completions", {**GREEDY, "logprobs": True, "top_logprobs": 3}),
    "a chat drawn": ("chat/completions", {**DRAWN, "n": 2}),
    "a chat in a shape": ("chat/completions", {**GREEDY, "max_tokens": 40, "response_format": SHAPED}),
    "a chat that goes on": ("chat/completions", {**GREEDY, "messages": [*MESSAGES, SAID, *MESSAGES]}),
    "a response": ("responses", {"temperature": 0, "max_output_tokens": 12}),
}
STREAMED = ("a text", "drawn with a seed", "a chat", "a chat's log-probabilities", "a chat in a shape")
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "nothing to say": ("chat/completions", {"messages": []}),
    "too hot": ("completions", {"temperature": -1}),
    "too long": ("completions", {"prompt": "word " * 2000}),
    "a tool, without a parser": ("chat/completions", {"tools": [TOOL], "tool_choice": NAMED}),
    "several, greedy": ("completions", {"temperature": 0, "n": 2}),
}
BODY: dict[str, dict[str, Any]] = {
    "completions": {"prompt": PROMPT},
    "chat/completions": {"messages": MESSAGES},
    "responses": {"input": MESSAGES[0]["content"]},
}


@dataclass
class Pair:
    ours: httpx.Client
    theirs: httpx.Client

    def ask(self, route: str, **more: Any) -> list[httpx.Response]:
        return [client.post(f"/v1/{route}", json={"model": "helper", **BODY[route], **more}) for client in self.both]

    @property
    def both(self) -> tuple[httpx.Client, httpx.Client]:
        return self.ours, self.theirs


@pytest.fixture(scope="module")
def pair(tiny: Base, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Both servers, with one adapter under one name: started together, for most of a start is imports."""
    folder = tmp_path_factory.mktemp("beside")
    store, adapter = Store(folder / "store"), write_adapter(folder / "adapter", seed=3, scale=0.15)
    task = GenerationTask.of(asked(Chat(), tiny.folder, conversational=True))
    add_version(store, "helper", adapter, task, tiny)
    store.release("helper", NewRelease(stable=1))
    with ExitStack() as stack:
        theirs = stack.enter_context(_vllm_serve(tiny.folder, adapter, folder / "vllm.log"))
        places = {"store": str(store.place), "base_model": str(tiny.folder), "cache": str(folder / "cache")}
        sizes = {"kv_cache_gib": "0.25", "max_model_len": "512", "dtype": "float32"}
        ours = stack.enter_context(serving(folder / "ours.log", **places, **sizes))
        yield Pair(ours.client, theirs())


class _vllm_serve:
    """``vllm serve`` with the same limits; entering gives what waits until it answers."""

    def __init__(self, base: Path, adapter: Path, log: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self._url, self._log = f"http://127.0.0.1:{port}", log
        sizes = ["--max-model-len", "512", "--max-num-seqs", "64", "--dtype", "float32", "--enforce-eager"]
        named = ["--model", str(base), "--served-model-name", "tiny-llama", "--host", "127.0.0.1", "--port", str(port)]
        lora = ["--enable-lora", "--max-loras", "2", "--max-lora-rank", "16", "--lora-modules", f"helper={adapter}"]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("HOTSWAP_", "VLLM_"))}
        self._environment = {**environment, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
        self._command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *named, *sizes, *lora]

    def __enter__(self) -> Callable[[], httpx.Client]:
        with self._log.open("w") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)
        return self._client

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _client(self) -> httpx.Client:
        client = httpx.Client(base_url=self._url, timeout=120, trust_env=False)
        while True:  # bounded by the test's timeout
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            try:
                client.get("/health").raise_for_status()
                return client
            except httpx.HTTPError:
                time.sleep(0.2)


def told(value: Any) -> Any:
    """Return what an answer says, its numbers to three digits: both compute with float32, in another order."""
    if isinstance(value, dict):
        return {name: told(inner) for name, inner in value.items() if name not in OWN}
    if isinstance(value, list):
        return [told(inner) for inner in value]
    return pytest.approx(value, abs=5e-3) if isinstance(value, float) else value


def events(answer: httpx.Response) -> list[str]:
    return [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: ")]


@pytest.mark.parametrize("question", ASKED)
def test_the_same_question_has_the_same_answer(pair: Pair, question: str) -> None:
    route, how = ASKED[question]
    ours, theirs = pair.ask(route, **how)
    assert (ours.status_code, theirs.status_code) == (200, 200), (ours.text, theirs.text)
    assert told(ours.json()) == told(theirs.json())


@pytest.mark.parametrize("question", STREAMED)
def test_streams_say_the_same_with_the_same_usage(pair: Pair, question: str) -> None:
    route, how = ASKED[question]
    said = []
    for answer in pair.ask(route, **how, stream=True, stream_options={"include_usage": True}):
        *pieces, done = events(answer)
        assert done == "[DONE]"
        said.append(_joined([httpx.Response(200, text=piece).json() for piece in pieces]))
    assert said[0] == said[1]


def _joined(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the text of each answer, why it ended, and the usage: pieces are of whatever length."""
    texts: dict[int, str] = {}
    ends: dict[int, str] = {}
    for choice in (choice for piece in pieces for choice in piece["choices"]):
        text = choice.get("text", (choice.get("delta") or {}).get("content")) or ""
        texts[choice["index"]] = texts.get(choice["index"], "") + text
        if choice["finish_reason"]:
            ends[choice["index"]] = choice["finish_reason"]
    return {"texts": texts, "ends": ends, "usage": told(pieces[-1]["usage"])}


def test_a_stop_text_ends_both(pair: Pair) -> None:
    whole = pair.ask("completions", **GREEDY)[1].json()["choices"][0]["text"]
    ours, theirs = pair.ask("completions", **GREEDY, stop=[whole[len(whole) // 2 :][:2]])
    assert told(ours.json()) == told(theirs.json())
    assert len(ours.json()["choices"][0]["text"]) < len(whole)


@pytest.mark.parametrize("question", REFUSED)
def test_what_cannot_be_answered_is_refused_by_both(pair: Pair, question: str) -> None:
    route, how = REFUSED[question]
    ours, theirs = pair.ask(route, **how)
    assert (ours.status_code, theirs.status_code) == (400, 400), (ours.text, theirs.text)


def test_what_our_own_api_says_is_what_a_chat_says(pair: Pair) -> None:
    asked = {"adapter": "helper", "input": MESSAGES[0]["content"]}
    (output,) = pair.ours.post("/v1/predict", json=asked).json()["outputs"]
    chat = {"model": "helper", "messages": MESSAGES, "temperature": 0, "max_tokens": 256}
    (choice,) = pair.theirs.post("/v1/chat/completions", json=chat).json()["choices"]
    assert output["answer"] == choice["message"]["content"].strip()
    assert output["finish_reason"] == choice["finish_reason"]
