"""Live answers beside the held-out rows, on /metrics: by version and feature, from its load until it is retired."""

from __future__ import annotations

import math
from typing import Any

import pytest

from adapters.intake import add_version
from adapters.profile import BOUNDS, Profile, bins_of
from adapters.releases import NewRelease
from adapters.store import Store
from service.metrics import Metrics
from tests.conftest import MakeAdapter
from tests.service.conftest import Serve, until

pytestmark = pytest.mark.anyio


@pytest.fixture
def profiled(stocked: Store, make_adapter: MakeAdapter, sentiment_task, summary_task, tiny) -> Store:
    """``stocked``, with versions that carry profiles released: ``mood@3`` and ``brief@2``."""
    known = {
        token for text in ("A moving film.", "nothing") for token in sentiment_task.prompt(text, tiny.tokenizer).ids
    }
    calm = [{"label": "positive", "confidence": 0.97, "input_tokens": 5, "unknown_tokens": 0.0}] * 60
    grim = [{"label": "negative", "confidence": 0.72, "input_tokens": 12, "unknown_tokens": 0.1}] * 40
    short = [{"input_tokens": 20, "answer_tokens": 5, "unknown_tokens": 0.0, "coverage": 1.0, "compression": 3.0}] * 9
    add_version(
        stocked, "mood", make_adapter(seed=5), sentiment_task, tiny, profile=Profile.of(calm + grim, known, 0.9)
    )
    add_version(stocked, "brief", make_adapter(seed=6), summary_task, tiny, profile=Profile.of(short, known))
    stocked.release("mood", NewRelease(stable=3))
    stocked.release("brief", NewRelease(stable=2))
    return stocked


async def test_a_version_has_its_reference_and_zeros_before_anyone_asks(serve: Serve, profiled: Store) -> None:
    async with serve(profiled) as service:
        await until(lambda: service.state.residency.is_resident("mood", 3))
        of = {"adapter": "mood", "version": "3"}
        assert await service.metric("hotswap_drift_reference_rows", **of) == 100
        wanted = {
            ("label", "positive"): 0.6,
            ("label", "negative"): 0.4,
            ("confidence", "0.99"): 0.6,
            ("confidence", "0.8"): 0.4,
            ("input_tokens", "8"): 0.6,
            ("unknown_tokens", "0.1"): 0.4,
        }
        for (feature, name), share in wanted.items():
            found = await service.metric("hotswap_drift_reference_share", **of, feature=feature, bin=name)
            assert math.isclose(found, share, abs_tol=1e-9), (feature, name)
        text = (await service.client.get("/metrics")).text
        for name in bins_of("confidence"):
            assert (
                f'hotswap_drift_bin_total{{adapter="mood",bin="{name}",feature="confidence",version="3"}} 0.0' in text
            )
        assert await service.metric("hotswap_drift_bin_total", **of) == 0
        assert await service.metric("hotswap_drift_evidence", **of) == 0


async def test_every_answer_is_in_one_bin_of_each_feature(serve: Serve, profiled: Store) -> None:
    async with serve(profiled) as service:
        for _ in range(3):
            await service.predict("mood")
        await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": ["One.", "Two.", " "]})
        for _ in range(2):
            await service.predict("brief", "Some text to be told in short.")
        for adapter, count, features in (
            ("mood", 5, ("label", "confidence", "input_tokens", "unknown_tokens")),
            ("brief", 2, ("input_tokens", "answer_tokens", "unknown_tokens", "coverage", "compression")),
        ):
            for feature in features:
                assert await service.metric("hotswap_drift_bin_total", adapter=adapter, feature=feature) == count


async def test_answers_that_are_not_those_of_the_reference_become_evidence(serve: Serve, profiled: Store) -> None:
    async with serve(profiled) as service:
        for _ in range(20):
            inputs = ["Quite another length of text, with words that no row had. " * 4] * 20
            await service.client.post("/v1/predict", json={"adapter": "mood", "inputs": inputs})
        assert await service.metric("hotswap_drift_evidence", adapter="mood", feature="input_tokens") >= 1
        assert await service.metric("hotswap_drift_evidence", adapter="mood", feature="unknown_tokens") >= 1


async def test_answers_that_people_find_wrong_more_often_than_the_held_out_ones_become_evidence(
    serve: Serve, profiled: Store
) -> None:
    async with serve(profiled) as service:
        of = {"adapter": "mood", "feature": "feedback"}
        for _ in range(60):
            answer = (await service.predict("mood")).json()
            judged = await service.client.post("/v1/feedback", json={"id": answer["id"], "correct": False})
            assert judged.status_code == 200
        assert await service.metric("hotswap_drift_bin_total", **of, bin="wrong") == 60
        assert await service.metric("hotswap_drift_evidence", **of) >= 1


async def test_a_version_without_a_profile_is_counted_and_compared_with_nothing(serve: Serve) -> None:
    async with serve() as service:
        await service.predict("mood")
        assert await service.metric("hotswap_drift_bin_total", adapter="mood", feature="label") == 1
        text = (await service.client.get("/metrics")).text
        assert "hotswap_drift_reference_share{" not in text
        assert "hotswap_drift_evidence{" not in text


@pytest.mark.parametrize(
    "profile",
    [
        {"rows": 9, "labels": {"positive": 0.6, "negative": 0.4}},
        {"rows": 9, "labels": {"somebody else's": 1.0}},
        {"rows": 9, "confidence": {0.1: 1.0}},
        {"rows": 9, "known_tokens": "!"},
        {"rows": 9, "confidence": dict.fromkeys(BOUNDS["confidence"], -5.0)},
    ],
)
async def test_a_profile_that_lacks_features_or_makes_no_sense_costs_no_answer(
    serve: Serve, stocked: Store, make_adapter: MakeAdapter, sentiment_task: Any, tiny: Any, profile: dict[str, Any]
) -> None:
    made = Profile.model_validate(profile)
    add_version(stocked, "odd", make_adapter(seed=7), sentiment_task, tiny, profile=made)
    stocked.release("odd", NewRelease(stable=1))
    async with serve() as service:
        for _ in range(20):
            assert (await service.predict("odd")).status_code == 200
        assert await service.metric("hotswap_drift_bin_total", adapter="odd", feature="label") == 20
        assert not service.failed.is_set()


async def test_series_go_with_the_version_and_come_back_with_it(serve: Serve, profiled: Store) -> None:
    async with serve(profiled) as service:
        await service.predict("mood")
        measured: Metrics = service.state.answering._metrics
        measured.forget("mood", "3")
        assert 'adapter="mood",' not in "".join(
            line for line in (await service.client.get("/metrics")).text.splitlines() if "hotswap_drift" in line
        )
        await service.predict("mood")
        assert await service.metric("hotswap_drift_bin_total", adapter="mood", version="3", feature="label") == 1
