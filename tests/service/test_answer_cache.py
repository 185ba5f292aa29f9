"""Where answers are kept, what was answered once is answered again without the engine, and nothing else changes.

The engine's gate is closed where it must not be asked: a request that asks it is never answered then.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.releases import Guard, NewRelease, Share
from adapters.store import Store
from tests.service.conftest import Running, Serve, until
from tests.service.test_answers_that_are_no_numbers import spoil

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
FILM, PLAY = "A moving film.", "A dull play."
KEYS = """sha256:{ann} name=ann
sha256:{bob} name=bob
sha256:{private} name=private cache=no
sha256:{briefs} name=briefs adapters=brief
"""


def told(response: httpx.Response) -> dict[str, Any]:
    """Return an answer without what is its own: its id."""
    assert response.status_code == 200, response.text
    return {key: value for key, value in response.json().items() if key != "id"}


async def is_asked(service: Running, adapter: str, text: str = FILM, **more: Any) -> bool:
    """Return whether the engine is asked for this answer."""
    service.engine.gate.clear()
    answer = asyncio.create_task(service.predict(adapter, text, **more))
    await until(lambda: answer.done() or service.engine.active > 0)
    asked = not answer.done()
    service.engine.gate.set()
    assert (await answer).status_code == 200
    return asked


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path, names = tmp_path / "keys", ("ann", "bob", "private", "briefs")
    path.write_text(KEYS.format(**{name: hashlib.sha256(name.encode()).hexdigest() for name in names}))
    return path


def as_(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}"}


@pytest.mark.parametrize("adapter", ["mood", "brief"])
@pytest.mark.parametrize("inputs", [{"input": FILM}, {"inputs": [FILM, PLAY]}, {"inputs": [PLAY, " ", FILM]}])
async def test_the_same_again_is_answered_alike_without_the_engine(
    serve: Serve, adapter: str, inputs: dict[str, Any]
) -> None:
    async with serve(answer_cache_mib=1) as service:
        first = await service.client.post("/v1/predict", json={"adapter": adapter, **inputs})
        service.engine.gate.clear()
        again = await service.client.post("/v1/predict", json={"adapter": adapter, **inputs})
        assert told(again) == told(first)
        assert again.json()["id"] != first.json()["id"]


async def test_of_a_batch_only_what_is_new_reaches_the_engine(serve: Serve) -> None:
    async with serve(answer_cache_mib=1) as service:
        for adapter in ("mood", "brief"):
            alone = [told(await service.predict(adapter, text))["outputs"][0] for text in (FILM, PLAY)]
            new = told(
                await service.client.post("/v1/predict", json={"adapter": adapter, "inputs": [FILM, "Else.", PLAY]})
            )
            assert [new["outputs"][0], new["outputs"][2]] == alone
            assert await service.metric("hotswap_engine_seconds_count", adapter=adapter, version="1") == 3


async def test_a_stream_and_a_whole_answer_know_of_each_other(serve: Serve) -> None:
    async with serve(answer_cache_mib=1) as service:
        for first, second in ((FILM, PLAY), (PLAY, FILM)):
            whole = told(await service.predict("brief", first))["outputs"]
            service.engine.gate.clear()
            streamed = await service.predict("brief", first, stream=True)
            assert json.loads(streamed.text.split("data: ")[-1])["outputs"] == whole
            service.engine.gate.set()
            await service.predict("brief", f"{second} And more.", stream=True)
            assert not await is_asked(service, "brief", f"{second} And more.")


async def test_a_new_version_is_never_answered_from_what_the_old_one_said(serve: Serve, stocked: Store) -> None:
    async with serve(answer_cache_mib=1) as service:
        old = told(await service.predict("mood"))
        stocked.release("mood", NewRelease(stable=2))
        while (new := told(await service.predict("mood")))["adapter"]["version"] == 1:
            pass
        assert new["outputs"] != old["outputs"]
        assert not await is_asked(service, "mood@1")


async def test_what_matters_to_the_answer_is_part_of_the_question(serve: Serve) -> None:
    async with serve(answer_cache_mib=1) as service:
        await service.predict("brief")
        assert not await is_asked(service, "brief", caller="somebody else")
        assert await is_asked(service, "brief", parameters={"max_words": 2})
        assert await is_asked(service, "brief", "A moving film")


async def test_by_default_nothing_is_kept(serve: Serve) -> None:
    async with serve() as service:
        await service.predict("mood")
        assert await is_asked(service, "mood")
        assert await service.metric("hotswap_answer_cache_lookups_total") == 0


async def test_what_was_used_longest_ago_goes_first_when_the_memory_is_full(serve: Serve) -> None:
    async with serve(answer_cache_mib=0.002) as service:  # two answers of two labels
        await service.predict("mood", "one")
        await service.predict("mood", "two")
        assert not await is_asked(service, "mood", "one")
        await service.predict("mood", "three")
        assert not await is_asked(service, "mood", "one")
        assert await is_asked(service, "mood", "two")
        assert 0 < await service.metric("hotswap_answer_cache_bytes") <= 0.002 * 2**20


async def test_an_answer_larger_than_the_memory_is_given_and_not_kept(serve: Serve) -> None:
    async with serve(answer_cache_mib=0.0001) as service:
        await service.predict("mood")
        assert await is_asked(service, "mood")


async def test_a_key_gets_no_answer_that_it_may_not_ask_for(serve: Serve, keys: Path) -> None:
    async with serve(answer_cache_mib=1, api_keys=keys) as service:
        ask = {"json": {"adapter": "mood", "input": FILM}}
        await service.client.post("/v1/predict", **ask, headers=as_("ann"))
        refused = await service.client.post("/v1/predict", **ask, headers=as_("briefs"))
        assert (refused.status_code, refused.json()["code"]) == (404, "adapter_not_found")
        service.engine.gate.clear()
        assert told(await service.client.post("/v1/predict", **ask, headers=as_("bob")))


async def test_a_key_can_keep_its_texts_out(serve: Serve, keys: Path) -> None:
    async with serve(answer_cache_mib=1, api_keys=keys) as service:
        service.client.headers.update(as_("private"))
        await service.predict("mood")
        assert await is_asked(service, "mood")
        service.client.headers.update(as_("ann"))
        assert await is_asked(service, "mood")  # nothing of the other's was kept
        assert not await is_asked(service, "mood")
        service.client.headers.update(as_("private"))
        assert await is_asked(service, "mood")  # nor is it told what others were


async def test_what_is_no_number_is_not_kept(serve: Serve) -> None:
    async with serve(answer_cache_mib=1) as service:
        await service.predict("mood", PLAY)  # loads it, and probes it
        with pytest.MonkeyPatch.context() as patch:
            spoil(patch, float("nan"), "mood@1")
            assert (await service.predict("mood")).json()["code"] == "adapter_failed"
        assert await is_asked(service, "mood")


async def test_monitoring_feedback_and_usage_are_those_of_any_answer(serve: Serve) -> None:
    async with serve(answer_cache_mib=1) as service:
        mood = {"adapter": "mood", "version": "1"}
        counted = [
            ("hotswap_requests_total", {"outcome": "ok"}),
            ("hotswap_predictions_total", {}),
            ("hotswap_prompt_tokens_total", {}),
            ("hotswap_completion_tokens_total", {}),
            ("hotswap_drift_bin_total", {"feature": "label"}),
        ]
        seen = []
        for _ in range(2):
            answer = await service.predict("mood")
            said = await service.client.post("/v1/feedback", json={"id": answer.json()["id"], "correct": True})
            assert said.status_code == 200
            seen.append([await service.metric(name, **mood, **more) for name, more in counted])
        assert seen[1] == [2 * value for value in seen[0]]
        for outcome in ("hit", "miss"):
            assert await service.metric("hotswap_answer_cache_lookups_total", **mood, outcome=outcome) == 1


async def test_what_is_remembered_is_no_evidence_for_or_against_a_canary(serve: Serve, stocked: Store) -> None:
    guard = Guard(steps=(50,), samples=10**6, seconds=0)
    stocked.release("mood", NewRelease(stable=1, canary=Share(version=2, percent=50), guard=guard))
    async with serve(answer_cache_mib=1) as service:
        tally = service.state.answering._tally
        await until(lambda: "mood" in tally._watched)
        for _ in range(3):
            version = told(await service.predict("mood", caller="somebody"))["adapter"]["version"]
        assert tally.of("mood", version).answers == 1
