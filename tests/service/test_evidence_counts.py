"""What counts as evidence about a canary: what the release brought to it, once, from who may judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.releases import Guard, NewRelease, Share
from adapters.store import Store
from service.engine.base import EngineRefused
from service.rollout.evidence import Counts
from tests.service.conftest import Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
PATIENT = Guard(steps=(50,), samples=10**6, seconds=0)
KEYS = """sha256:{ann} name=ann scopes=predict
sha256:{judge} name=judge scopes=predict,feedback
sha256:{guard} name=guard scopes=predict,admin
"""


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    import hashlib

    path = tmp_path / "keys"
    hashes = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ann", "judge", "guard")}
    path.write_text(KEYS.format(**hashes))
    return path


class As:
    """One caller of a service."""

    def __init__(self, service: Running, key: str) -> None:
        self._client, self._headers = service.client, {"Authorization": f"Bearer {key}"}

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self._client.post(path, json=body, headers=self._headers)

    async def predict(self, adapter: str, **more: Any) -> httpx.Response:
        return await self.post("/v1/predict", adapter=adapter, input="A moving film.", **more)

    async def feedback(self, prediction: httpx.Response, *, correct: bool) -> httpx.Response:
        return await self.post("/v1/feedback", id=prediction.json()["id"], correct=correct)


@pytest.fixture
def watched(stocked: Store) -> Store:
    """``stocked``, with a guarded canary of ``mood``."""
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=50), guard=PATIENT))
    return stocked


async def counts(service: Running) -> Callable[[int], Counts]:
    """Return what is counted of a version, as soon as counting has begun."""
    tally = service.state.answering._tally
    await until(lambda: "mood" in tally._watched)
    return lambda version: tally.of("mood", version)


async def caller_of(service: As, version: int) -> tuple[str, httpx.Response]:
    """Return a caller whom the release brings to this version."""
    for n in range(100):
        response = await service.predict("mood", caller=f"c{n}")
        if response.json()["adapter"]["version"] == version:
            return f"c{n}", response
    raise AssertionError


async def test_who_chose_the_version_is_no_evidence(serve: Serve, watched: Store, keys: Path) -> None:
    async with serve(api_keys=keys) as service:
        of, judge = await counts(service), As(service, "judge")
        for reference in ("mood@2", "mood@canary", "mood@1"):
            prediction = await judge.predict(reference)
            assert (await judge.feedback(prediction, correct=False)).status_code == 200
        assert of(1) == of(2) == Counts()
        await caller_of(judge, 2)
        assert of(2).answers == 1


async def test_feedback_needs_its_scope_and_counts_once_for_a_prediction(
    serve: Serve, watched: Store, keys: Path
) -> None:
    async with serve(api_keys=keys) as service:
        of, ann, judge = await counts(service), As(service, "ann"), As(service, "judge")
        caller, prediction = await caller_of(ann, 2)
        for _ in range(3):
            assert (await ann.feedback(prediction, correct=False)).status_code == 200
        assert of(2).judged == 0, "whoever may only predict takes no version back"
        batch = await judge.post("/v1/predict", adapter="mood", inputs=["a", "b", "c", "d"], caller=caller)
        for index in range(4):
            taken = await judge.post("/v1/feedback", id=batch.json()["id"], index=index, correct=False)
            assert taken.status_code == 200
        assert (of(2).judged, of(2).wrong) == (1, 1)


async def test_a_tenant_alone_takes_no_canary_back(serve: Serve, stocked: Store, keys: Path) -> None:
    quick = Guard(steps=(50,), samples=10**6, seconds=0, wrong=0.01, confidence=0.5)
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=50), guard=quick))
    async with serve(api_keys=keys) as service:
        await counts(service)
        ann = As(service, "ann")
        for n in range(60):
            for reference, correct in (("mood@canary", False), ("mood@1", True), ("mood", n % 2 == 0)):
                await ann.feedback(await ann.predict(reference, caller=f"c{n}"), correct=correct)
        assert stocked.released("mood").generation == 2


@pytest.mark.parametrize(
    ("error", "status", "code", "failed"),
    [
        (RuntimeError("ours"), 500, "internal", 1),
        (TimeoutError(), 504, "deadline_exceeded", 1),
        (EngineRefused("not this one"), 422, "invalid_request", 0),
    ],
)
async def test_an_answer_that_fails_is_counted_with_version_and_channel(
    serve: Serve, watched: Store, monkeypatch, keys: Path, error: Exception, status: int, code: str, failed: int
) -> None:
    async with serve(api_keys=keys) as service:
        of, judge = await counts(service), As(service, "judge")
        caller, _ = await caller_of(judge, 2)
        before = of(2).answers

        async def failing(*_: Any, **__: Any) -> Any:
            raise error
            yield

        monkeypatch.setattr(service.engine, "generate", failing)
        response = await judge.predict("mood", caller=caller)
        assert (response.status_code, response.json()["code"]) == (status, code)
        assert (of(2).answers - before, of(2).failed) == (failed, failed)
        labels = {"adapter": "mood", "version": "2", "channel": "canary", "outcome": code}
        metrics = service.state.metrics.requests.labels(
            "predict", labels["adapter"], labels["version"], labels["channel"], labels["outcome"]
        )
        assert metrics._value.get() == 1


async def test_a_person_s_key_called_guard_makes_no_step(serve: Serve, stocked: Store, keys: Path) -> None:
    async with serve(api_keys=keys) as service:
        guard = As(service, "guard")
        for stable in (2, 1, 2):
            assert (await guard.post("/v1/adapters/mood/releases", stable=stable)).status_code == 201
        assert stocked.released("mood").by == "guard"
        rolled_back = await guard.post("/v1/adapters/mood/rollback")
        assert rolled_back.json()["stable"] == 1, "one release back, not all that a caller of this name ever made"
        assert not any(release.step for release in stocked.history("mood"))


async def test_a_request_cannot_say_that_it_is_a_step(serve: Serve, keys: Path) -> None:
    async with serve(api_keys=keys) as service:
        refused = await As(service, "guard").post("/v1/adapters/mood/releases", stable=2, step=True)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
