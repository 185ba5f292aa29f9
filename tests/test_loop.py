"""The whole loop on the real engine: served → shifted → alarm → judged → exported → retrained → canary → everyone."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from adapters.releases import Guard, NewRelease
from adapters.store import Store
from tests.server import Server, serving

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
FILMS = {"positive": ["moving", "beautifully", "acted", "film"], "negative": ["dull", "slow", "plot"]}
# Of another kind: what the first version learnt of films says nothing about them.
GADGETS = {"positive": ["battery", "lasts", "sturdy", "bargain"], "negative": ["broken", "charger", "refund", "late"]}
EVIDENCE = re.compile(r'hotswap_drift_evidence\{adapter="reviews",feature="(\w+)",version="1"\} (\S+)')
QUICK = Guard(samples=20, seconds=0, steps=(50,), errors=0.5, slow=0.9, slow_seconds=60, wrong=0.5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loop")
    dice = random.Random(0)
    rows = [row for n in range(150) for row in ask(FILMS, dice, n)]
    (folder / "reviews.jsonl").write_text("\n".join(map(json.dumps, rows)))
    recipe = f"""
name: reviews
task: {{kind: classification, template: "Review: {{text}}\\nSentiment:"}}
data: {{path: {folder}/reviews.jsonl, test: 0.2}}
training: {{epochs: 4, learning_rate: 5.0e-3}}
gate: {{test: {{accuracy: 0.9}}, baseline: any}}
"""
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def ask(kind: dict[str, list[str]], dice: random.Random, number: int) -> list[dict[str, str]]:
    """Return a text of each label."""
    return [{"text": f"{' '.join(dice.choices(words, k=6))} {number}", "label": label} for label, words in kind.items()]


def settings(place: Path, tiny_folder: Path) -> dict[str, str]:
    places = {"store": place / "store", "base_model": tiny_folder, "cache": place / "cache"}
    kept = {"feedback_database": str(place / "feedback.db"), "feedback_texts": "plain"}
    return {
        "kv_cache_gib": "0.25",
        "max_model_len": "512",
        **kept,
        **{name: str(path) for name, path in places.items()},
    }


def run(place: Path, tiny_folder: Path, *command: str) -> str:
    environment = {f"HOTSWAP_{name.upper()}": value for name, value in settings(place, tiny_folder).items()}
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(place: Path, tiny_folder: Path) -> Iterator[Server]:
    for command in ("train", "evaluate", "publish"):
        run(place, tiny_folder, "trainer", command, "recipe.yaml", "--set", "output=first")
    with serving(place / "server.log", **settings(place, tiny_folder)) as started:
        yield started


def judge(server: Server, rows: list[dict[str, str]], caller: str = "us") -> tuple[int, int]:
    """Have texts answered and say what was right; return how many answers were, and which version gave them."""
    body = {"adapter": "reviews", "inputs": [row["text"] for row in rows], "caller": caller}
    answer = server.client.post("/v1/predict", json=body).raise_for_status().json()
    for index, row in enumerate(rows):
        judged = {"id": answer["id"], "index": index, "label": row["label"]}
        server.client.post("/v1/feedback", json=judged).raise_for_status()
    right = sum(output["label"] == row["label"] for output, row in zip(answer["outputs"], rows, strict=True))
    return right, answer["adapter"]["version"]


def evidence(server: Server) -> float:
    return max(float(value) for _, value in EVIDENCE.findall(server.client.get("/metrics").text))


def test_a_shift_is_heard_judged_learnt_from_and_served(server: Server, place: Path, tiny_folder: Path) -> None:
    dice, number = random.Random(1), count(1000)
    for _ in range(40):
        judge(server, [row for _ in range(5) for row in ask(FILMS, dice, next(number))])
    assert evidence(server) < 1, "no shift, no alarm"
    asked = right = 0
    while evidence(server) < 1:
        rows = [row for _ in range(5) for row in ask(GADGETS, dice, next(number))]
        right += judge(server, rows)[0]
        asked += len(rows)
        assert asked <= 1000
    assert right < 0.9 * asked, "what the first version cannot know"

    changes = ["--set", "output=second", "--least", "20", "--percent", "50"]
    made = json.loads(run(place, tiny_folder, "trainer", "retrain", "reviews", *changes, "--json").splitlines()[-1])
    assert made["version"] == 2
    store = Store(place / "store")
    release = store.released("reviews")
    assert release is not None
    assert (release.stable, release.canary.version, release.guard) == (1, 2, Guard())
    # The same with a guard that has seen enough after seconds instead of minutes.
    store.release("reviews", NewRelease(stable=1, canary=release.canary, guard=QUICK))
    callers = count()
    while store.released("reviews").stable == 1:  # bounded by the test's timeout
        judge(server, ask(GADGETS, dice, next(number)), caller=f"user-{next(callers)}")
    version, tries = 1, 0
    while version == 1:
        right, version = judge(server, rows := [row for _ in range(10) for row in ask(GADGETS, dice, next(number))])
        tries += 1
    assert right >= 0.9 * len(rows)
