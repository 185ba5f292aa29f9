"""What the project ships, on real text, against the numbers its cards claim. Needs the default base model."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from adapters.base_model import Base, resolve_base
from adapters.intake import add_version
from adapters.packages import cache_folder
from adapters.releases import NewRelease
from adapters.seed import STARTER, open_store
from adapters.store import Store
from adapters.tasks import ClassificationTask
from loadtests import PATIENT, run_locust
from tests.server import Server, serving
from trainer.data import load_splits
from trainer.loading import load_recipe
from trainer.rows import Row

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
RECIPES = Path(__file__).parents[1] / "trainer" / "recipes"
SNIPPETS = [
    "A moving, beautifully acted film.",
    "The plot has holes a bus could drive through.",
    "I laughed from the first scene to the last.",
    "Two hours of my life that I will not get back.",
    "Stopped working after a week, and support never answered.",
    "Exactly what I needed; it charges fast and feels solid.",
    "Not good, not even close.",
    "Far better than the trailer made me fear.",
    "The camera loves her, and so will you.",
    "A tired sequel nobody asked for.",
    "Great sound for the price.",
    "The manual is useless and the buttons stick.",
]
ANSWERS = ["positive", "negative"] * 2 + ["negative", "positive", "negative", "positive"] + ["positive", "negative"] * 2
TEXT = (
    "This package provides a small command line tool that watches a folder for new photographs, reads the date "
    "and place from their metadata, and sorts them into albums. It can run as a daemon, asks before it moves "
    "anything, and keeps a log from which every change can be undone."
)


@pytest.fixture(scope="module")
def base() -> Base:
    return resolve_base(None, cache_folder())


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, base: Base) -> Store:
    """The shipped adapters, and ``opinion``: another classifier, of other rank and modules, to mix with them."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    place = tmp_path_factory.mktemp("shipped") / "store"
    stocked = open_store(str(place), seed="empty")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base.folder)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    folder = place.parent / "opinion"
    get_peft_model(model, config).save_pretrained(folder)
    (folder / "README.md").unlink()
    task = ClassificationTask.of("Text: {text}\nOpinion:", ["good", "bad", "mixed"], base.tokenizer)
    add_version(stocked, "opinion", folder, task, base)
    stocked.release("opinion", NewRelease(stable=1))
    return stocked


@pytest.fixture(scope="module")
def server(store: Store, base: Base) -> Iterator[Server]:
    """Started where nothing is there yet but the archive of the base."""
    place = Path(store.place).parent
    (place / "cache").mkdir()
    (place / "cache" / "packages").symlink_to(cache_folder() / "packages")
    patient = {"max_wait_seconds": "300", "deadline_seconds": "300"}  # what is tested are answers, on any machine
    with serving(place / "server.log", store=store.place, cache=str(place / "cache"), **patient) as started:
        yield started
        assert started.stop() == 0


def test_every_shipped_file_is_what_its_manifest_says_and_small(store: Store) -> None:
    assert list(store.problems()) == []
    for version in STARTER.glob("*/versions/*"):
        assert sum(file.stat().st_size for file in version.iterdir()) <= 2_000_000
        assert "How to make it again" in (version / "README.md").read_text()


@pytest.mark.parametrize("name", ["sentiment", "one-line-summary"])
def test_a_shipped_version_reached_its_recipe_s_gate(store: Store, name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    manifest, _ = store.manifest(name, 1)
    for test, thresholds in {"test": recipe.gate.test, **recipe.gate.extra_tests}.items():
        for metric, least in thresholds.items():
            assert manifest.metrics[test]["adapter"][metric] >= least
            assert manifest.metrics[test]["adapter"][metric] > manifest.metrics[test]["base"][metric]


def test_the_service_may_use_every_cpu_after_its_first_start_too(server: Server) -> None:
    """What unpacks the base computes, and OpenMP, told to bind the engine's threads, binds who computes."""
    assert psutil.Process(server.process.pid).cpu_affinity() == sorted(os.sched_getaffinity(0))


def test_sentiment_is_right_about_these_opinions(server: Server) -> None:
    outputs = server.predict("sentiment", *SNIPPETS)["outputs"]
    assert [output["label"] for output in outputs] == ANSWERS


def test_sentiment_is_as_accurate_over_http_as_its_card_says(server: Server, store: Store) -> None:
    rows = load_splits(load_recipe(RECIPES / "sentiment.yaml"), cache_folder()).test[:200]
    outputs = server.predict("sentiment", *(row.text for row in rows))["outputs"]
    right = sum(output["label"] == row.answer for output, row in zip(outputs, rows, strict=True))
    claimed = store.manifest("sentiment", 1)[0].metrics["test"]["adapter"]["accuracy"]
    assert right / len(rows) == pytest.approx(claimed, abs=0.05)


def test_a_summary_is_one_line_about_the_text(server: Server) -> None:
    (output,) = server.predict("one-line-summary", TEXT)["outputs"]
    assert output["finish_reason"] == "stop"
    assert "\n" not in output["summary"]
    assert 2 <= len(output["summary"].split()) <= 20
    assert "photo" in output["summary"].lower()


def test_a_long_document_is_read_by_the_service_as_by_evaluation(server: Server, store: Store, base: Base) -> None:
    from trainer.codec import Codec
    from trainer.prediction import answers

    document = " ".join(f"Chapter {n} is about {snippet} {TEXT}" for n, snippet in enumerate(SNIPPETS))
    task = store.manifest("one-line-summary", 1)[0].task.model_copy(update={"long": "chunks", "max_input_tokens": 200})
    asked = {"adapter": "long-lines", "input": document}
    add_version(store, "long-lines", STARTER / "one-line-summary/versions/1", task, base)
    store.release("long-lines", NewRelease(stable=1))
    while (response := server.client.post("/v1/summarize", json=asked)).status_code == 404:
        pass  # until the release is seen; bounded by the test's timeout
    (output,) = response.json()["outputs"]
    folder = store.fetch("long-lines", 1, Path(store.place).parent)
    assert output["chunks"] >= 4
    assert [output["summary"]] == answers(folder, [Row(document, "", "")], Codec(task, base), "long")


def test_mixed_scores_equal_those_of_peft_on_transformers(server: Server, store: Store, base: Base) -> None:
    """Both adapters and zero-shot requests in flight together; the reference answers one by one."""
    texts = [*SNIPPETS, TEXT, *(f"{text} {TEXT}" for text in SNIPPETS)]
    labels = ["praise", "complaint"]

    async def ask(client: httpx.AsyncClient, body: dict) -> dict:
        response = await client.post("/v1/classify", json=body)
        return response.json()["outputs"][0]["scores"]

    async def ask_all() -> list[list[dict]]:
        who: list[dict] = [{"adapter": "sentiment"}, {"adapter": "opinion"}, {"labels": labels}]
        async with httpx.AsyncClient(base_url=server.url, timeout=300) as client:
            asked = [asyncio.gather(*(ask(client, {**one, "input": text}) for text in texts)) for one in who]
            return [list(answers) for answers in await asyncio.gather(*asked)]

    served = asyncio.run(ask_all())
    tasks = [store.manifest(name, 1)[0].task for name in ("sentiment", "opinion")]
    expected = [
        reference_scores(base, store, ("sentiment", tasks[0]), texts),
        reference_scores(base, store, ("opinion", tasks[1]), texts),
        reference_scores(base, store, (None, ClassificationTask.zero_shot(labels, base.tokenizer)), texts),
    ]
    assert len(texts) >= 20
    for mine, theirs in zip(served, expected, strict=True):
        for scores, reference in zip(mine, theirs, strict=True):
            assert scores == pytest.approx(reference, abs=1e-3)


def reference_scores(base: Base, store: Store, who: tuple, texts: list[str]) -> list[dict[str, float]]:
    """Ask PEFT on transformers, in float32, one text at a time and without padding."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    name, task = who
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    if name is not None:
        model = PeftModel.from_pretrained(model, store.fetch(name, 1, Path(store.place).parent))
    scores = []
    for text in texts:
        prompt = torch.tensor([task.prompt(text, base.tokenizer).ids])
        with torch.inference_mode():
            logits = model(prompt).logits[0, -1]
        chosen = (logits[[label.token_id for label in task.labels]] / task.temperature).softmax(-1).tolist()
        scores.append(dict(zip((label.name for label in task.labels), chosen, strict=True)))
    return scores


def test_the_load_test_passes_against_the_real_service(server: Server) -> None:
    done = run_locust(server.url, 15, PATIENT)
    assert done.returncode == 0, done.stdout + done.stderr + server.log.read_text()[-8000:]
