"""From a file of chats to an adapter that answers, on the real engine, by OpenAI's client alone."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.server import serving

# A job gives way to all else on the machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
KINDS = [("dull", "negative"), ("moving", "positive")]
CHOICE: Any = {
    "type": "choice",
    "instructions": "How does it rate the film?",
    "choices": [{"value": label} for _, label in KINDS],
}


def chat(number: int) -> dict[str, Any]:
    word, label = KINDS[number % 2]
    asked = {"role": "user", "content": f"film {number} is {word}"}
    return {"messages": [asked, {"role": "assistant", "content": label}]}


def test_a_file_becomes_an_adapter_that_answers(tmp_path: Path, tiny_folder: Path) -> None:
    rows = tmp_path / "chats.jsonl"
    rows.write_text("".join(json.dumps(chat(number)) + "\n" for number in range(120)))
    places = {"store": tmp_path / "store", "base_model": tiny_folder, "cache": tmp_path / "cache"}
    settings = {name: str(path) for name, path in places.items()} | {"kv_cache_gib": "0.25", "max_model_len": "512"}
    with (
        serving(tmp_path / "log", jobs="local", auto_release="canary", **settings) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client,
    ):
        file = client.files.create(file=rows, purpose="fine-tune")
        job = client.fine_tuning.jobs.create(
            model="tiny-llama",
            training_file=file.id,
            suffix="films",
            seed=7,
            method={
                "type": "supervised",
                "supervised": {"hyperparameters": {"n_epochs": 6, "batch_size": 8, "learning_rate_multiplier": 10}},
            },
        )
        while job.status in ("queued", "validating_files", "running"):  # bounded by the test's timeout
            time.sleep(0.5)
            job = client.fine_tuning.jobs.retrieve(job.id)
        told = [event.message for event in client.fine_tuning.jobs.list_events(job.id)]
        assert job.status == "succeeded", (told, (tmp_path / "log").read_text()[-4000:])
        assert job.fine_tuned_model == "films@1"
        assert any(message.startswith("Step ") for message in told)
        assert "films" in [model.id for model in client.models.list()], "the first version is released to everyone"
        for model in ("films@1", "films"):
            for word, label in KINDS:
                asked = client.decisions.create(model=model, input=f"film 777 is {word}", questions=[CHOICE])
                answer = asked.answers[0]
                assert answer.type == "choice"
                assert answer.choice == label
                said = client.completions.create(model=model, prompt=f"Text: film 778 is {word}\nLabel:", max_tokens=1)
                assert label.startswith(said.choices[0].text.strip())
    assert "Traceback" not in (tmp_path / "log").read_text()
