"""An adapter whose answers are not numbers is found out before it is served, and no such answer is ever sent."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from adapters.releases import Guard, NewRelease, Share
from adapters.store import Store
from service.engine.base import Chunk
from service.engine.fake import FakeEngine
from tests.service.conftest import Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
BROKEN = [float("nan"), float("inf")]


def spoil(patch: pytest.MonkeyPatch, value: float, version: str = "mood@2") -> None:
    """Have every log-probability of one version be ``value``."""
    logprobs = FakeEngine._logprobs

    def spoilt(engine: FakeEngine, prompt: Any, sampling: Any, adapter: str | None) -> dict[int, float]:
        if adapter and adapter.startswith(version):
            return dict.fromkeys(sampling.choices, value)
        return logprobs(engine, prompt, sampling, adapter)

    patch.setattr(FakeEngine, "_logprobs", spoilt)


@pytest.mark.parametrize("value", BROKEN)
async def test_a_version_that_is_released_so_is_never_served(
    serve: Serve, stocked: Store, monkeypatch, value: float
) -> None:
    spoil(monkeypatch, value)
    async with serve() as service:
        stocked.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.residency.state("mood", 2)["state"] == "failed")
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
        refused = await service.predict("mood@2")
        assert (refused.status_code, refused.json()["code"]) == (503, "adapter_failed")
        assert not [name for name in service.engine.resident if name.startswith("mood@2")]


@pytest.mark.parametrize("value", BROKEN)
@pytest.mark.parametrize("inputs", [{"input": "a film"}, {"inputs": ["a film", "a play"]}])
async def test_an_answer_that_turns_so_later_is_refused(
    serve: Serve, stocked: Store, monkeypatch, value: float, inputs: dict[str, Any]
) -> None:
    async with serve() as service:
        assert (await service.predict("mood@2")).status_code == 200
        spoil(monkeypatch, value)
        for route in ("/v1/predict", "/v1/classify"):
            response = await service.client.post(route, json={"adapter": "mood@2", **inputs})
            assert (response.status_code, response.json()["code"]) == (503, "adapter_failed")
            assert "mood@2" in response.json()["detail"]
            json.loads(response.text, parse_constant=pytest.fail)
        counted = {"adapter": "mood", "version": "2", "channel": "pinned", "outcome": "adapter_failed"}
        assert await service.metric("hotswap_requests_total", **counted) == 2
        assert (await service.predict("mood")).status_code == 200


async def test_it_takes_its_canary_back(serve: Serve, stocked: Store, monkeypatch) -> None:
    quick = Guard(steps=(50,), errors=0.3, slow=0.9, samples=5, seconds=0)
    async with serve() as service:
        stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=50), guard=quick))
        await until(lambda: service.state.routing.served("mood").canary is not None)
        spoil(monkeypatch, float("nan"))
        caller = 0
        while (newest := stocked.released("mood")).guard is not None:  # bounded by the test's timeout
            await asyncio.gather(*(service.predict("mood", caller=f"{caller}-{n}") for n in range(8)))
            caller += 1
        assert (newest.stable, newest.canary, newest.by) == (1, None, "guard")
        assert "of its answers failed" in newest.why
        counted = {"adapter": "mood", "version": "2", "channel": "canary"}
        assert await service.metric("hotswap_requests_total", outcome="adapter_failed", **counted) > 4
        assert await service.metric("hotswap_requests_total", outcome="ok", **counted) == 0


async def test_zero_shot_with_a_base_model_that_is_broken_is_refused_as_well(serve: Serve, monkeypatch) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        yield Chunk(tokens=1, finish_reason="length", logprobs={1: float("nan"), 2: float("nan")})

    async with serve() as service:
        monkeypatch.setattr(service.engine, "generate", broken)
        response = await service.client.post("/v1/classify", json={"labels": ["good", "bad"], "input": "a film"})
        assert response.status_code >= 500
        json.loads(response.text, parse_constant=pytest.fail)
