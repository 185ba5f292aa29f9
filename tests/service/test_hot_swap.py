"""Versions change under traffic; slots are shared; nothing is lost or stale."""

from __future__ import annotations

import asyncio

import pytest

from adapters.intake import add_version
from adapters.releases import NewRelease, Share
from tests.conftest import MakeAdapter
from tests.service.conftest import Serve, until

pytestmark = pytest.mark.anyio


def answered_by(body: dict) -> tuple[int, str]:
    """Return the version that the response names, and the one that the engine really used."""
    return body["adapter"]["version"], body["outputs"][0]["summary"].split()[0]


async def test_releases_under_load_lose_nothing_and_every_answer_names_its_version(serve: Serve, two_briefs) -> None:
    async with serve() as service:
        answers: list[dict] = []
        done = False

        async def ask() -> None:
            while not done:
                response = await service.predict("brief", f"text {len(answers)}")
                assert response.status_code == 200
                answers.append(response.json())

        askers = [asyncio.create_task(ask()) for _ in range(8)]
        for version in (2, 1, 2, 1, 2):
            generation = two_briefs.release("brief", NewRelease(stable=version)).generation
            await until(lambda wanted=generation: service.state.routing.served("brief").generation == wanted)
            seen = len(answers)
            await until(lambda seen=seen: len(answers) > seen + 20)
        done = True
        await asyncio.gather(*askers)
        assert {answered_by(answer) for answer in answers} == {(1, "[brief@1]"), (2, "[brief@2]")}


async def test_a_request_in_flight_keeps_the_version_it_started_with(serve: Serve, two_briefs) -> None:
    async with serve() as service:
        service.engine.gate.clear()
        early = asyncio.create_task(service.predict("brief"))
        await until(lambda: service.engine.active == 1)
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)
        service.engine.gate.set()
        assert answered_by((await early).json()) == (1, "[brief@1]")
        assert answered_by((await service.predict("brief")).json()) == (2, "[brief@2]")


async def test_a_release_that_cannot_be_loaded_leaves_the_old_version_serving(
    serve: Serve, two_briefs, tmp_path
) -> None:
    (tmp_path / "store/brief/versions/2/adapter_model.safetensors").write_bytes(b"rubbish")
    async with serve() as service:
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.residency.state("brief", 2)["state"] == "failed")
        assert answered_by((await service.predict("brief")).json()) == (1, "[brief@1]")
        assert await service.metric("hotswap_store_generation", adapter="brief") == 2
        assert await service.metric("hotswap_served_generation", adapter="brief") == 1


async def test_a_new_adapter_is_served_without_a_restart(
    serve: Serve, stocked, make_adapter: MakeAdapter, summary_task, tiny
) -> None:
    async with serve(poll_seconds=3600) as service:
        assert (await service.predict("fresh")).status_code == 404
        add_version(stocked, "fresh", make_adapter(), summary_task, tiny)
        unreleased = await service.predict("fresh")
        assert unreleased.status_code == 404
        assert "fresh@1" in unreleased.json()["detail"]
        stocked.release("fresh", NewRelease(stable=1))
        assert (await service.predict("fresh")).json()["adapter"]["version"] == 1


async def test_a_canary_gets_its_share_and_the_same_caller_the_same_version(serve: Serve, two_briefs) -> None:
    async with serve() as service:
        two_briefs.release("brief", NewRelease(stable=1, canary=Share(version=2, percent=30)))
        await until(lambda: service.state.routing.served("brief").canary is not None)

        async def version_for(caller: int) -> int:
            return (await service.predict("brief", caller=f"user-{caller}")).json()["adapter"]["version"]

        first = [await version_for(caller) for caller in range(200)]
        assert first == [await version_for(caller) for caller in range(200)]
        assert 40 <= first.count(2) <= 80
        assert (await service.predict("brief@canary")).json()["adapter"]["channel"] == "canary"


async def test_more_adapters_than_slots_share_them_and_all_are_answered(serve: Serve, stocked) -> None:
    async with serve(max_loras=1, max_cpu_loras=1) as service:
        references = ["mood", "mood@2", "brief"] * 10
        responses = await asyncio.gather(*(service.predict(reference) for reference in references))
        assert [response.status_code for response in responses] == [200] * 30
        assert len(service.engine.resident) == 1
        assert await service.metric("hotswap_adapter_evictions_total") >= 2


async def test_a_version_in_use_is_not_unloaded_for_another(serve: Serve) -> None:
    async with serve(max_loras=1, max_cpu_loras=1) as service:
        service.engine.gate.clear()
        held = asyncio.create_task(service.predict("brief"))
        await until(lambda: service.engine.active == 1)
        waiting = asyncio.create_task(service.predict("mood"))
        await until(lambda: service.state.residency.state("mood", 1)["state"] == "loading")
        assert [name.split(":")[0] for name in service.engine.resident] == ["brief@1"]
        service.engine.gate.set()
        assert [(await task).status_code for task in (held, waiting)] == [200, 200]


async def test_one_load_serves_everyone_who_waits_for_it(serve: Serve) -> None:
    async with serve() as service:
        loads = await service.metric("hotswap_adapter_loads_total", outcome="ok")
        responses = await asyncio.gather(*(service.predict("mood@2") for _ in range(20)))
        assert {response.status_code for response in responses} == {200}
        assert await service.metric("hotswap_adapter_loads_total", outcome="ok") == loads + 1


async def test_an_unreachable_store_changes_nothing_for_what_is_served(serve: Serve, stocked, monkeypatch) -> None:
    from adapters.errors import StoreUnavailable

    async with serve() as service:

        def unreachable(*_: object) -> None:
            raise StoreUnavailable("the store is away")

        monkeypatch.setattr(stocked, "pulse", unreachable)
        monkeypatch.setattr(stocked, "names", unreachable)
        monkeypatch.setattr(stocked, "read", unreachable)
        await service.until(bool, "hotswap_store_errors_total")
        assert (await service.predict("mood")).status_code == 200


async def test_a_damaged_release_record_concerns_its_own_adapter_alone(serve: Serve, two_briefs, tmp_path) -> None:
    async with serve() as service:
        (tmp_path / "store/mood/releases/2.json").write_text("{")
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
        assert (await service.client.get("/v1/adapters")).status_code == 200
        assert ("mood", 0) in [problem[:2] for problem in two_briefs.problems()]
