"""What is in memory, for how long, and who waits for whom."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from adapters.errors import InvalidAdapter, StoreUnavailable
from adapters.intake import add_version
from adapters.manifest import BaseReference, File
from adapters.packages import file_digest
from adapters.releases import NewRelease
from adapters.store import WEIGHTS, Store
from service.serving.backoff import Backoff
from tests.conftest import MakeAdapter, write_adapter
from tests.service.conftest import Running, Serve, until

pytestmark = pytest.mark.anyio


def resident(service: Running) -> set[str]:
    return {name.split(":")[0] for name in service.engine.resident}


async def test_what_no_release_names_any_more_is_unloaded_when_its_last_request_is_answered(
    serve: Serve, two_briefs: Store
) -> None:
    async with serve() as service:
        service.engine.gate.clear()
        held = asyncio.create_task(service.predict("brief"))
        await until(lambda: service.engine.active == 1)
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)
        assert service.state.residency.state("brief", 1) == {"state": "draining"}
        assert {"brief@1", "brief@2"} <= resident(service)
        service.engine.gate.set()
        assert (await held).json()["adapter"]["version"] == 1
        await until(lambda: "brief@1" not in resident(service))
        assert service.state.residency.state("brief", 1) == {"state": "available"}


async def test_a_pinned_version_works_beside_another_release_until_it_is_retired(
    serve: Serve, two_briefs: Store
) -> None:
    two_briefs.release("brief", NewRelease(stable=2))
    async with serve() as service:
        assert (await service.predict("brief@1")).json()["adapter"]["channel"] == "pinned"
        two_briefs.retire("brief", 1)
        await until(lambda: "brief@1" not in resident(service))
        told = await service.predict("brief@1")
        assert (told.status_code, told.json()["code"]) == (404, "version_not_found")
        assert "retired" in told.json()["detail"]
        shown = (await service.client.get("/v1/adapters/brief")).json()
        assert {version["version"]: version["state"] for version in shown["versions"]} == {1: "retired", 2: "resident"}
        told = await service.client.post("/v1/adapters/brief/releases", json={"stable": 1})
        assert (told.status_code, told.json()["code"]) == (404, "version_not_found")
        assert (await service.predict("brief")).json()["adapter"]["version"] == 2


async def test_a_version_retired_before_the_start_is_not_served(serve: Serve, two_briefs: Store) -> None:
    two_briefs.retire("brief", 2)
    async with serve() as service:
        assert (await service.predict("brief@2")).status_code == 404


async def test_warm_adapters_stay_whatever_else_is_asked_for(serve: Serve, two_briefs: Store) -> None:
    async with serve(max_loras=3, max_cpu_loras=3, warm=("brief", "mood@2")) as service:
        assert {"brief@1", "mood@2"} <= resident(service)
        for _ in range(3):
            assert (await service.predict("mood@1")).status_code == 200
            assert (await service.predict("brief@2")).status_code == 200
        assert {"brief@1", "mood@2"} <= resident(service)
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)
        assert (await service.predict("mood@1")).status_code == 200
        assert "brief@2" in resident(service)


async def test_a_new_adapter_is_proven_though_every_place_is_taken(
    serve: Serve, stocked: Store, make_adapter: MakeAdapter, summary_task, tiny, tmp_path: Path
) -> None:
    async with serve(max_loras=2, max_cpu_loras=2) as service:
        assert len(service.engine.resident) == 2
        add_version(stocked, "fresh", make_adapter(), summary_task, tiny)
        (tmp_path / "store/fresh/versions/1/adapter_model.safetensors").write_bytes(b"rubbish")
        stocked.release("fresh", NewRelease(stable=1))
        await until(lambda: service.state.residency.state("fresh", 1)["state"] == "failed")
        assert {(await service.predict(name)).status_code for name in ("mood", "brief")} == {200}


async def test_an_adapter_for_layers_that_the_base_lacks_is_not_loaded_whoever_put_it_into_the_store(
    serve: Serve, stocked: Store, tmp_path: Path
) -> None:
    manifest = stocked.manifest("brief", 1)[0]
    strange = write_adapter(tmp_path / "strange")
    tensors = {key.replace("layers.1.", "layers.7."): value for key, value in load_file(strange / WEIGHTS).items()}
    save_file(tensors, strange / WEIGHTS)
    files = {path.name: File(bytes=path.stat().st_size, digest=file_digest(path)) for path in strange.iterdir()}
    stocked.add("brief", strange, lambda number: manifest.model_copy(update={"version": number, "files": files}))
    async with serve() as service:
        stocked.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.residency.state("brief", 2)["state"] == "failed")
        assert "layers.7.self_attn" in service.state.residency.state("brief", 2)["reason"]
        assert (await service.predict("brief")).json()["adapter"]["version"] == 1


async def test_a_warm_adapter_that_does_not_exist_keeps_nobody_from_being_served(serve: Serve) -> None:
    async with serve(warm=("nobody", "mood@9", "brief")) as service:
        assert (await service.predict("brief")).status_code == 200


async def test_a_busy_adapter_starves_nobody_who_waits_to_be_loaded_nor_is_starved_itself(serve: Serve) -> None:
    """One place, an adapter that is never idle, and another that wants in."""
    async with serve(max_loras=1, max_cpu_loras=1) as service:
        done, answered = False, 0

        async def ask_for_ever() -> None:
            nonlocal answered
            while not done:
                response = await service.predict("brief", "text " * 20)
                assert response.status_code == 200
                answered += 1

        askers = [asyncio.create_task(ask_for_ever()) for _ in range(6)]
        for _ in range(3):
            before = answered
            await until(lambda before=before: answered > before + 6)
            assert (await asyncio.wait_for(service.predict("mood"), 10)).status_code == 200
        done = True
        await asyncio.gather(*askers)


async def test_an_adapter_whose_files_take_their_time_holds_up_no_other(
    serve: Serve, two_briefs: Store, make_adapter: MakeAdapter, sentiment_task, tiny, monkeypatch
) -> None:
    import threading

    arrived, fetch = threading.Event(), two_briefs.fetch

    def slow(name: str, version: int, cache: Path) -> Path:
        if (name, version) == ("mood", 2):
            arrived.wait(20)
        return fetch(name, version, cache)

    monkeypatch.setattr(two_briefs, "fetch", slow)
    async with serve() as service:
        two_briefs.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.residency.state("mood", 2)["state"] == "loading")
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
        arrived.set()
        await until(lambda: service.state.routing.served("mood").stable == 2)


async def test_a_failure_that_may_pass_is_tried_again_and_one_that_cannot_is_not(
    serve: Serve, two_briefs: Store, monkeypatch
) -> None:
    monkeypatch.setattr("service.serving.backoff.FIRST_SECONDS", 0.01)
    fetch, failures = two_briefs.fetch, 0

    def flaky(name: str, version: int, cache: Path) -> Path:
        nonlocal failures
        if (name, version) == ("brief", 2) and failures < 3:
            failures += 1
            raise StoreUnavailable("away for a moment")
        return fetch(name, version, cache)

    monkeypatch.setattr(two_briefs, "fetch", flaky)
    async with serve() as service:
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)
        assert failures == 3
        assert await service.metric("hotswap_adapters", state="failed") == 0


def test_each_failure_doubles_the_wait_up_to_five_minutes_and_what_cannot_be_mended_waits_for_ever() -> None:
    backoff = Backoff()
    waits = []
    for _ in range(12):
        backoff.note("x", ValueError(), backoff.wait("x", again=True))
        failure = backoff.get("x")
        assert failure is not None
        waits.append(round(failure.wait))
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    backoff.note("x", ValueError(), backoff.wait("x", again=False))
    failure = backoff.get("x")
    assert failure is not None
    assert failure.wait == float("inf")
    backoff.clear("x")
    assert backoff.get("x") is None


async def test_an_adapter_for_another_base_is_not_loaded_whoever_put_it_into_the_store(
    serve: Serve, stocked: Store, make_adapter: MakeAdapter
) -> None:
    manifest, folder = stocked.manifest("brief", 1)[0], make_adapter(seed=4)
    other = BaseReference(name="another", digest="sha256:" + 64 * "0")
    files = {path.name: File(bytes=path.stat().st_size, digest=file_digest(path)) for path in folder.iterdir()}
    changed = {"base": other, "files": files}
    stocked.add("brief", folder, lambda number: manifest.model_copy(update={"version": number, **changed}))
    async with serve() as service:
        stocked.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.residency.state("brief", 2)["state"] == "failed")
        assert "another base model (another)" in service.state.residency.state("brief", 2)["reason"]
        assert (await service.predict("brief")).json()["adapter"]["version"] == 1
        assert "brief@2" not in resident(service)


async def test_releasing_once_more_what_failed_for_good_tries_it_once_more(
    serve: Serve, two_briefs: Store, monkeypatch
) -> None:
    fetch, sound = two_briefs.fetch, False

    def unsound(name: str, version: int, cache: Path) -> Path:
        if (name, version) == ("brief", 2) and not sound:
            raise InvalidAdapter("not yet")
        return fetch(name, version, cache)

    monkeypatch.setattr(two_briefs, "fetch", unsound)
    async with serve() as service:
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.residency.state("brief", 2)["state"] == "failed")
        sound = True
        assert (await service.predict("brief@2")).status_code == 503  # nothing says that it would go better
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").generation == 3)
        assert (await service.predict("brief")).json()["adapter"]["version"] == 2


async def test_what_was_used_last_stays_and_what_was_not_makes_room(serve: Serve) -> None:
    async with serve(max_loras=2, max_cpu_loras=2) as service:
        for name in ("brief", "mood", "brief"):
            assert (await service.predict(name)).status_code == 200
        assert (await service.predict("mood@2")).status_code == 200
        assert resident(service) == {"brief@1", "mood@2"}


async def test_a_version_that_is_asked_for_by_number_stays_when_another_is_released(
    serve: Serve, two_briefs: Store
) -> None:
    async with serve() as service:
        assert (await service.predict("brief@1")).status_code == 200
        for name in ("brief", "mood"):
            two_briefs.release(name, NewRelease(stable=2))
        await until(lambda: "mood@1" not in resident(service) and "brief@2" in resident(service))
        assert "brief@1" in resident(service)


async def test_those_who_wait_for_a_slow_version_do_not_fill_the_queue_of_all(
    serve: Serve, stocked: Store, monkeypatch
) -> None:
    import threading

    monkeypatch.setattr("service.serving.residency.MOST_WAITING", 2)
    arrived, fetch = threading.Event(), stocked.fetch

    def slow(name: str, version: int, cache: Path) -> Path:
        if (name, version) == ("mood", 2):
            arrived.wait(20)
        return fetch(name, version, cache)

    monkeypatch.setattr(stocked, "fetch", slow)
    async with serve() as service:
        waiting = [asyncio.create_task(service.predict("mood@2")) for _ in range(2)]
        slots = service.state.residency._slots
        await until(lambda: ("mood", 2) in slots and slots["mood", 2].holds == 2)
        refused = await service.predict("mood@2")
        assert (refused.status_code, refused.json()["code"]) == (429, "overloaded")
        assert "2 requests wait for mood@2" in refused.json()["detail"]
        assert (await service.predict("mood")).status_code == 200
        arrived.set()
        assert [(await task).status_code for task in waiting] == [200, 200]


async def test_a_replica_that_starts_on_a_bad_release_serves_the_newest_good_one_that_is_not_retired(
    serve: Serve, two_briefs: Store, make_adapter: MakeAdapter, summary_task, tiny, tmp_path: Path
) -> None:
    add_version(two_briefs, "brief", make_adapter(seed=7), summary_task, tiny)
    for version in (2, 3):
        two_briefs.release("brief", NewRelease(stable=version))
    two_briefs.retire("brief", 2)
    (tmp_path / "store/brief/versions/3/adapter_model.safetensors").write_bytes(b"rubbish")
    async with serve() as service:
        assert (await service.predict("brief")).json()["adapter"]["version"] == 1
        assert (await service.predict("brief@2")).status_code == 404
        shown = (await service.client.get("/v1/adapters/brief")).json()
        assert (shown["generation"], shown["served_generation"]) == (3, 1)


async def test_the_engine_knows_a_version_by_its_weights_too(serve: Serve, stocked: Store) -> None:
    async with serve() as service:
        names = {f"{name}@1:{stocked.manifest(name, 1)[1][7:23]}" for name in ("brief", "mood")}
        assert names <= set(service.engine.resident)
