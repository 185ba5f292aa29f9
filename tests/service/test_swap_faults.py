"""Servers that are killed, disks that fill up and files that rot while a version is swapped: never a wrong answer."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import obstore
import pytest

import adapters.store
from adapters.packages import file_digest
from adapters.releases import NewRelease, Share
from adapters.store import MANIFEST, WEIGHTS, Store
from service.engine.fake import FakeEngine
from tests import crash
from tests.conftest import MakeAdapter
from tests.service.conftest import Running, Serve, until
from tests.service.swapping import serve_until_swapped

pytestmark = pytest.mark.anyio
TASK = ("--task", "summarization")


async def asked(service: Running, reference: str = "brief") -> tuple[int, str]:
    """Return the version that the response names, and the one that the engine really used."""
    response = await service.predict(reference)
    assert response.status_code == 200, response.text
    body = response.json()
    return body["adapter"]["version"], body["outputs"][0]["summary"].split()[0]


async def version(service: Running, number: int) -> dict[str, Any]:
    versions = (await service.client.get("/v1/adapters/brief")).json()["versions"]
    return next(view for view in versions if view["version"] == number)


def spoil(file: Path, *, truncate: bool = False) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content[:-100] if truncate else content)


def cached(store: Store, cache: Path, number: int) -> Path:
    return cache / "adapters" / store.manifest("brief", number)[1].removeprefix("sha256:") / WEIGHTS


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MANIFEST}


@pytest.mark.timeout(120)
async def test_a_server_killed_at_any_step_of_a_swap_comes_back_with_what_is_released(
    serve: Serve, two_briefs: Store, tiny_folder: Path, tmp_path: Path
) -> None:
    place, cache = Path(two_briefs.place), tmp_path / "cache"
    shutil.copytree(place, tmp_path / "before")
    for step, when in crash.deaths(serve_until_swapped, two_briefs.place, str(tiny_folder), str(cache), "brief"):
        assert list(two_briefs.problems()) == []
        for number in (1, 2):
            kept = cached(two_briefs, cache, number).parent
            assert not kept.exists() or files(kept) == files(place / f"brief/versions/{number}"), (step, when)
        async with serve() as service:
            assert await asked(service) == (2, "[brief@2]"), (step, when)
            assert await asked(service, "brief@1") == (1, "[brief@1]"), (step, when)
        shutil.rmtree(cache)
        shutil.rmtree(place)
        shutil.copytree(tmp_path / "before", place)


async def test_a_version_whose_publisher_was_killed_is_not_shown(
    serve: Serve, two_briefs: Store, make_adapter: MakeAdapter, tiny_folder: Path, tmp_path: Path
) -> None:
    places = {"STORE": two_briefs.place, "BASE_MODEL": tiny_folder, "CACHE": tmp_path / "publisher"}
    environment = {"SAID": str(tmp_path / "said")} | {f"HOTSWAP_{name}": str(path) for name, path in places.items()}
    arguments = ["add", str(make_adapter()), "brief", *TASK]
    async with serve() as service:
        for _ in crash.deaths(crash.command, environment, arguments):
            view = (await service.client.get("/v1/adapters/brief")).json()
            shown = [one["version"] for one in view["versions"]]
            assert shown == two_briefs.versions("brief")
            assert all(one["digest"] and one["state"] != "failed" for one in view["versions"])
            assert (await service.predict(f"brief@{max(shown) + 1}")).json()["code"] == "version_not_found"
        assert await asked(service) == (1, "[brief@1]")


async def test_a_cache_that_is_full_leaves_the_old_version_serving_and_the_others_changing(
    serve: Serve, two_briefs: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if path.name == WEIGHTS:
            raise OSError(28, "No space left on device", str(path))
        return write(path, content)

    async with serve(max_cpu_loras=8) as service:
        assert (await service.predict("mood@2")).status_code == 200  # so that it is in the cache
        with monkeypatch.context() as patch:
            patch.setattr(Path, "write_bytes", full)
            two_briefs.release("brief", NewRelease(stable=2))
            two_briefs.release("mood", NewRelease(stable=2))
            await until(lambda: service.state.routing.served("mood").stable == 2)
            assert await asked(service) == (1, "[brief@1]")
            refused = await service.predict("brief@2")
            assert refused.status_code == 503
            assert "No space" not in refused.text
        await until(lambda: service.state.routing.served("brief").stable == 2)  # there is room again
        assert await asked(service) == (2, "[brief@2]")


@pytest.mark.parametrize("moment", ["between fetching and linting", "between linting and loading"])
async def test_a_file_cut_short_on_its_way_to_the_engine_is_not_served_and_then_mended(
    serve: Serve, two_briefs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    fetch, load = Store.fetch, FakeEngine.load

    def fetched(store: Store, *arguments: Any) -> Path:
        folder = fetch(store, *arguments)
        spoil(folder / WEIGHTS, truncate=True)
        return folder

    async def loaded(engine: FakeEngine, name: str, folder: Path) -> None:
        spoil(folder / WEIGHTS, truncate=True)
        await load(engine, name, folder)

    async with serve() as service:
        with monkeypatch.context() as patch:
            if moment == "between fetching and linting":
                patch.setattr(Store, "fetch", fetched)
            else:
                patch.setattr(FakeEngine, "load", loaded)
            two_briefs.release("brief", NewRelease(stable=2))
            await until(lambda: service.state.residency.state("brief", 2)["state"] == "failed")
            assert await asked(service) == (1, "[brief@1]")
            assert (await version(service, 2))["reason"]
    async with serve() as again:  # with the same cache
        assert await asked(again) == (2, "[brief@2]")
        kept, manifest = cached(two_briefs, tmp_path / "cache", 2), two_briefs.manifest("brief", 2)[0]
        assert file_digest(kept) == manifest.files[WEIGHTS].digest


async def test_a_bit_that_flips_in_the_cache_is_found_at_the_next_start(
    serve: Serve, two_briefs: Store, tmp_path: Path
) -> None:
    async with serve() as service:
        assert await asked(service) == (1, "[brief@1]")
        kept = cached(two_briefs, tmp_path / "cache", 1)
        sound = kept.read_bytes()
        spoil(kept)
        assert await asked(service) == (1, "[brief@1]"), "what is in the engine's memory is not concerned"
    async with serve() as again:
        assert await asked(again) == (1, "[brief@1]")
        assert kept.read_bytes() == sound


async def test_a_bit_that_flips_in_the_store_concerns_only_who_has_no_copy(
    serve: Serve, two_briefs: Store, tmp_path: Path
) -> None:
    async with serve() as service:
        spoil(Path(two_briefs.place, "brief/versions/1", WEIGHTS))
        assert await asked(service) == (1, "[brief@1]")
    async with serve() as with_its_copy:
        assert await asked(with_its_copy) == (1, "[brief@1]")
    async with serve(cache=tmp_path / "another") as without:
        refused = await without.predict("brief")
        assert (refused.status_code, refused.json()["code"]) == (503, "adapter_failed")
        assert "is damaged" in refused.json()["detail"]


async def test_after_a_restart_a_damaged_release_gives_way_to_the_one_before_it(
    serve: Serve, stocked: Store, tmp_path: Path
) -> None:
    (tmp_path / "store/mood/versions/2/adapter_model.safetensors").write_bytes(b"rubbish")
    for release in ({"stable": 2}, {"stable": 1, "canary": Share(version=2, percent=50)}):
        stocked.release("mood", NewRelease(**release))  # past the service, which would not have taken it
        async with serve() as service:
            assert (await service.predict("mood")).json()["adapter"]["version"] == 1
            shown = (await service.client.get("/v1/adapters/mood")).json()
            assert shown["served_generation"] == 1 < shown["generation"]


async def test_a_version_deleted_from_under_a_server_is_served_as_long_as_it_is_resident(
    serve: Serve, two_briefs: Store
) -> None:
    async with serve() as service:
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)
        shutil.rmtree(Path(two_briefs.place, "brief/versions/2"))
        for reference in ("brief", "brief@2"):
            assert await asked(service, reference) == (2, "[brief@2]")
        assert await asked(service, "brief@1") == (1, "[brief@1]")
    two_briefs._manifests.clear()  # a new process knows none
    async with serve() as again:
        refused = await again.predict("brief@2")
        assert refused.status_code in (404, 503)
        assert refused.json()["code"] in ("adapter_failed", "version_not_found")
        assert "2" in refused.json()["detail"]
        assert await asked(again, "brief") == (1, "[brief@1]")  # what was released before
        assert (await again.predict("mood")).status_code == 200


async def test_a_store_that_may_only_be_read_is_served_but_takes_no_release(
    serve: Serve, two_briefs: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise obstore.exceptions.PermissionDeniedError("Read-only file system (os error 30)")

    monkeypatch.setattr(obstore, "put", denied)
    async with serve() as service:
        refused = await service.client.post("/v1/adapters/brief/releases", json={"stable": 2})
        assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert str(tmp_path) not in refused.text
        assert await asked(service) == (1, "[brief@1]")


@pytest.mark.parametrize("year", [1970, 2100])
async def test_the_newest_release_is_served_whatever_the_clock_says(
    serve: Serve, two_briefs: Store, monkeypatch: pytest.MonkeyPatch, year: int
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime(year, 1, 1, tzinfo=UTC)

    async with serve() as service:
        monkeypatch.setattr(adapters.store, "datetime", Clock)
        monkeypatch.setattr("time.time", lambda: Clock.now().timestamp())
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("brief").stable == 2)
        assert await asked(service) == (2, "[brief@2]")
        monkeypatch.undo()
        two_briefs.rollback("brief")
        await until(lambda: service.state.routing.served("brief").stable == 1)
        assert await asked(service) == (1, "[brief@1]")
