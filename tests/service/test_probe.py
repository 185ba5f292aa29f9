"""Between being loaded and being served, a version shows that it is applied, and that it is what was evaluated."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from adapters import probes
from adapters.base_model import Base
from adapters.errors import InvalidAdapter
from adapters.intake import add_version
from adapters.manifest import Reference
from adapters.releases import NewRelease
from adapters.store import Store
from service.engine.base import Engine, Limits
from service.engine.fake import FakeEngine
from service.metrics import Metrics
from service.offload import Offload
from service.serving.loader import Loader
from service.serving.probe import Probe
from service.settings import Settings
from tests.conftest import LABELS, MakeAdapter, write_adapter
from tests.service.conftest import Serve, until
from trainer.codec import Codec
from trainer.evaluate import references_of

pytestmark = pytest.mark.anyio
SETTINGS = Settings(max_loras=2, max_cpu_loras=2, max_lora_rank=8, max_model_len=256, kv_cache_gib=0.25)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def engine(tiny: Base) -> AsyncIterator[Engine]:
    from service.engine.vllm import VllmEngine

    made = VllmEngine(SETTINGS, tiny)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def evaluated(store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task, summary_task):
    """Return a maker of versions that carry what PEFT on transformers answered to the probes."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    def make(name: str, *, answers_of: Path | None = None, folder: Path | None = None) -> Path:
        task = summary_task if name == "brief" else sentiment_task
        folder = folder or make_adapter(seed=5, scale=0.2)
        model = AutoModelForCausalLM.from_pretrained(tiny.folder, dtype=torch.float32)
        references = references_of(PeftModel.from_pretrained(model, answers_of or folder).eval(), Codec(task, tiny))
        add_version(store, name, folder, task, tiny, references=references)
        return folder

    return make


@pytest.fixture
def loader(engine: Engine, store: Store, tiny: Base, tmp_path: Path) -> Loader:
    return Loader(engine, store, Offload(10, 4), tiny, tmp_path / "cache", 1 << 30, Metrics())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mood", "brief"])
async def test_the_engine_reproduces_what_was_evaluated_with_peft(loader: Loader, evaluated, name: str) -> None:
    evaluated(name)
    loaded = await loader.load(await loader.fetch(name, 1))
    assert loaded.engine_name.startswith(f"{name}@1:")
    await loader.unload(loaded)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mood", "brief"])
async def test_a_version_that_answers_otherwise_than_in_evaluation_is_refused_and_unloaded(
    loader: Loader, evaluated, make_adapter: MakeAdapter, name: str
) -> None:
    evaluated(name, answers_of=make_adapter(seed=6, scale=0.2))
    for _ in range(4):  # more often than there is room: what is refused takes none
        with pytest.raises(InvalidAdapter, match=r"does not answer as it did .* nats"):
            await loader.load(await loader.fetch(name, 1))


@pytest.mark.slow
async def test_a_version_that_changes_nothing_is_refused(
    loader: Loader, store: Store, tiny: Base, sentiment_task, tmp_path: Path
) -> None:
    add_version(store, "mood", write_adapter(tmp_path / "weak", scale=1e-6), sentiment_task, tiny)
    with pytest.raises(InvalidAdapter, match="does not change the base model's answers"):
        await loader.load(await loader.fetch("mood", 1))


async def test_a_release_that_fails_its_probe_leaves_the_old_version_serving_and_is_not_tried_for_ever(
    serve: Serve, stocked: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task
) -> None:
    ids = probes.choices(sentiment_task, 0)
    wrong = Reference(text=probes.TEXTS[0], logprobs=dict.fromkeys(ids, -40.0))
    # The fake's answers depend on the digest, and so on when a version was made: one in a hundred is near the base's.
    made = datetime(2026, 1, 1, tzinfo=UTC)
    add_version(stocked, "mood", make_adapter(seed=7), sentiment_task, tiny, references=(wrong,), created_at=made)
    async with serve(probe_tolerance=0.5) as service:
        stocked.release("mood", NewRelease(stable=3))
        await until(lambda: service.state.residency.state("mood", 3)["state"] == "failed")
        told = await service.predict("mood@3")
        assert (told.status_code, told.json()["code"]) == (503, "adapter_failed")
        assert "does not answer as it did when it was evaluated" in told.json()["detail"]
        assert int(told.headers["retry-after"]) > 0
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
        assert not [name for name in service.engine.resident if name.startswith("mood@3")]
        for _ in range(3):
            await service.state.reconciler.reconcile()
        assert await service.metric("hotswap_adapter_loads_total", outcome="failed") == 1
        stocked.release("mood", NewRelease(stable=3, why="try again"))
        await until(lambda: service.state.reconciler._tried.get("mood") == 3)
        await until(lambda: not service.state.reconciler._moves)
        assert await service.metric("hotswap_adapter_loads_total", outcome="failed") == 2


async def test_an_engine_that_does_not_answer_the_probe_holds_nothing_up_for_ever(
    monkeypatch: pytest.MonkeyPatch, tiny: Base, stocked: Store, tmp_path: Path
) -> None:
    monkeypatch.setattr("service.serving.probe.PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("service.engine.fake.TEXTS", ())  # nothing passes the closed gate, not even probes
    engine = FakeEngine(Limits(4, 16, 512), tiny)
    await engine.start()
    engine.gate.clear()
    loader = Loader(engine, stocked, Offload(10, 4), tiny, tmp_path / "cache", 1 << 30, Metrics())
    with pytest.raises(TimeoutError):
        await loader.load(await loader.fetch("mood", 1))
    assert not engine.resident


async def test_without_reference_answers_labels_are_asked_and_tokens_spread_over_the_vocabulary(
    tiny: Base, sentiment_task, summary_task
) -> None:
    assert probes.choices(sentiment_task, 600) == tuple(label.token_id for label in sentiment_task.labels)
    assert len(LABELS) == len(probes.choices(sentiment_task, 600))
    spread = probes.choices(summary_task, 49_152)
    assert len(set(spread)) == probes.CHOICES
    assert max(spread) < 49_152


@pytest.mark.parametrize("referenced", [True, False])
@pytest.mark.parametrize("number", ["nan", "inf", "-inf"])
async def test_an_answer_that_is_no_number_is_refused(
    tiny: Base, stocked: Store, number: str, referenced: bool
) -> None:
    class Broken(FakeEngine):
        def _logprobs(self, prompt, sampling, adapter):
            return {token: float(number) if adapter else -1.0 for token in sampling.choices}

    engine = Broken(Limits(4, 16, 512), tiny)
    await engine.start()
    engine.resident["x"] = Path()
    (label, other) = probes.choices(stocked.manifest("mood", 1)[0].task, 0)
    wanted = Reference(text="a", logprobs={label: -1.0, other: -1.0})
    manifest = stocked.manifest("mood", 1)[0].model_copy(update={"references": (wanted,) if referenced else ()})
    with pytest.raises(InvalidAdapter, match="does not answer with numbers"):
        await Probe(engine, tiny).check(manifest, "x")
