"""The main job on a base small enough to train in seconds: data → adapter → version → answer, all for real."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from tests.server import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
GOOD, BAD = ["moving", "beautifully", "acted", "film"], ["dull", "slow", "plot"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    """A folder with a labelled file and a recipe, as a user would have it."""
    folder = tmp_path_factory.mktemp("user")
    dice = random.Random(0)
    rows = [
        {"text": " ".join(dice.choices(words, k=6)) + f" {n}", "label": label}
        for n in range(150)
        for label, words in (("positive", GOOD), ("negative", BAD))
    ]
    (folder / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "recipe.yaml").write_text(
        f"""
name: reviews
output: {folder}/run
task: {{kind: classification, template: "Review: {{text}}\\nSentiment:"}}
data: {{path: reviews.jsonl, test: 0.2}}
training: {{epochs: 4, learning_rate: 5.0e-3}}
gate: {{test: {{accuracy: 0.9}}}}
"""
    )
    return folder


def run(workplace: Path, tiny_folder: Path, *command: str) -> str:
    environment = {**os.environ, "HOTSWAP_STORE": str(workplace / "store"), "HOTSWAP_BASE_MODEL": str(tiny_folder)}
    environment["HOTSWAP_CACHE"] = str(workplace / "cache")
    done = subprocess.run(
        [sys.executable, "-m", *command], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def settings(workplace: Path, tiny_folder: Path) -> dict[str, str]:
    small = {"kv_cache_gib": "0.25", "max_model_len": "512"}
    places = {"store": workplace / "store", "base_model": tiny_folder, "cache": workplace / "cache"}
    return small | {name: str(place) for name, place in places.items()}


@pytest.fixture(scope="module")
def server(workplace: Path, tiny_folder: Path) -> Iterator[Server]:
    recipe = str(workplace / "recipe.yaml")
    for command in ("train", "evaluate", "publish"):
        print(run(workplace, tiny_folder, "trainer", command, recipe))
    with serving(workplace / "server.log", **settings(workplace, tiny_folder)) as started:
        yield started


def test_what_was_trained_is_served_and_is_right(server: Server) -> None:
    body = server.predict("reviews", "moving film beautifully acted", "slow dull plot")
    assert body["adapter"]["version"] == 1
    assert [output["label"] for output in body["outputs"]] == ["positive", "negative"]


def test_openais_client_gets_the_adapters_answers(server: Server) -> None:
    with openai.OpenAI(base_url=f"{server.url.rstrip('/')}/v1", api_key="none") as ask:
        assert "reviews" in [model.id for model in ask.models.list()]
        for text, label in (("moving film beautifully acted", " positive"), ("slow dull plot", " negative")):
            prompt = f"Review: {text}\nSentiment:"
            told = ask.completions.create(model="reviews@1", prompt=prompt, max_tokens=1, temperature=0, logprobs=2)
            assert label.startswith(told.choices[0].text), "the first token is the label's"
            assert told.model == "reviews@1"
            stream = ask.completions.create(model="reviews", prompt=prompt, max_tokens=8, temperature=0, stream=True)
            assert "".join(piece.choices[0].text for piece in stream).startswith(told.choices[0].text)
        chat = ask.chat.completions.create(
            model="reviews", messages=[{"role": "user", "content": "slow"}], max_tokens=4
        )
        assert chat.usage.completion_tokens <= 4


def test_the_log_says_how_adapters_are_computed(server: Server) -> None:
    assert "LoRA on the CPU: grouped by adapter" in server.log.read_text()


def test_a_version_released_meanwhile_takes_over_without_a_restart(
    server: Server, workplace: Path, tiny_folder: Path
) -> None:
    adapter = str(workplace / "run" / "adapter")
    assert run(workplace, tiny_folder, "adapters", "add", adapter, "reviews").strip() == "2"
    run(workplace, tiny_folder, "adapters", "release", "reviews", "2")
    served = 1
    while served == 1:  # bounded by the test's timeout
        served = server.predict("reviews", "moving film")["adapter"]["version"]
    assert served == 2
    assert server.predict("reviews@1", "moving film")["adapter"]["version"] == 1


@pytest.mark.parametrize(("method", "rate", "served_as"), [("full", 1e-3, "lora"), ("p_tuning", 1e-2, "soft_prompt")])
def test_what_other_methods_made_takes_over_too(
    server: Server, workplace: Path, tiny_folder: Path, method: str, rate: float, served_as: str
) -> None:
    changes = [f"method={method}", f"training.learning_rate={rate}", f"output={workplace}/{method}"]
    changes += ["convert.max_rank=16", "gate={released: any, baseline: any}"]
    arguments = [part for change in changes for part in ("--set", change)]
    recipe = str(workplace / "recipe.yaml")
    for command in ("train", "evaluate"):
        run(workplace, tiny_folder, "trainer", command, recipe, *arguments)
    made = json.loads(run(workplace, tiny_folder, "trainer", "publish", recipe, *arguments, "--json"))
    used: dict = {}
    while used.get("version") != made["version"]:  # bounded by the test's timeout
        answer = server.predict("reviews", "moving film beautifully acted", "slow dull plot")
        used = answer["adapter"]  # served means probed: it answers as it did in evaluation
    if method == "full":  # a base of random weights cannot be talked into much
        assert [output["label"] for output in answer["outputs"]] == ["positive", "negative"]
    versions = json.loads(run(workplace, tiny_folder, "adapters", "show", f"reviews@{made['version']}", "--json"))
    assert versions["method"] == served_as


def test_a_killed_engine_is_reported_at_once_and_comes_back_with_what_was_released(server: Server) -> None:
    before = server.predict("reviews", "moving film")
    children = Path(f"/proc/{server.process.pid}/task").glob("*/children")
    for child in {int(pid) for path in children for pid in path.read_text().split()}:
        if b"EngineCore" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
    status = 200
    while status == 200:  # bounded by the test's timeout
        response = server.client.post("/v1/predict", json={"adapter": "reviews", "input": "moving film"})
        status = response.status_code
    assert (status, response.json()["code"]) in ((503, "engine_down"), (503, "not_ready"))
    assert server.client.get("/livez").status_code == 200
    while server.client.get("/readyz").status_code != 200:
        assert server.process.poll() is None
        time.sleep(0.2)
    after = server.predict("reviews", "moving film")
    assert (after["adapter"], after["outputs"]) == (before["adapter"], before["outputs"])
    assert "hotswap_engine_restarts_total 1.0" in server.client.get("/metrics").text
    assert server.stop() == 0


def test_a_killed_server_takes_its_engine_with_it_and_frees_the_port(
    workplace: Path, tiny_folder: Path, server: Server
) -> None:
    if server.process.poll() is None:  # two engines at once are slow to start on two cores
        server.stop()
    with serving(workplace / "killed.log", **settings(workplace, tiny_folder)) as killed:
        children = psutil.Process(killed.process.pid).children(recursive=True)
        assert children
        killed.process.kill()
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
        with pytest.raises(httpx.ConnectError):
            killed.client.get("/livez")
