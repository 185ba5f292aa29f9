"""A volume that is not mounted looks like an empty folder: nobody is told that the adapters do not exist."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from adapters.errors import StoreUnavailable
from adapters.releases import NewRelease
from adapters.seed import open_store
from adapters.store import Store
from tests.service.conftest import Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.mark.parametrize("empty", [True, False], ids=["empty", "gone"])
async def test_what_is_served_goes_on_and_the_store_is_used_again_when_it_is_back(
    serve: Serve, stocked: Store, tmp_path: Path, empty: bool
) -> None:
    place = Path(stocked.place)
    stocked.release("mood", NewRelease(stable=1, why="again"))
    async with serve(sweep_seconds=0.02) as service:

        async def reachable(expected: bool) -> None:
            async with asyncio.timeout(10):
                while (await service.client.get("/readyz")).json()["store_reachable"] is not expected:
                    await asyncio.sleep(0.01)

        os.rename(place, tmp_path / "away")
        if empty:
            os.mkdir(place)
        await reachable(False)
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
        names = [adapter["name"] for adapter in (await service.client.get("/v1/adapters")).json()["adapters"]]
        assert names == ["brief", "mood"]
        shown = await service.client.get("/v1/adapters/mood")
        assert shown.status_code in (200, 503)
        for path, body in (("releases", {"stable": 2}), ("rollback", {})):
            refused = await service.client.post(f"/v1/adapters/mood/{path}", json=body)
            assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
        assert (await service.predict("mood")).status_code == 200, "whoever looked meanwhile changed nothing"
        assert await service.metric("hotswap_served_generation", adapter="mood") == 2
        shutil.rmtree(place, ignore_errors=True)
        os.rename(tmp_path / "away", place)
        await reachable(True)
        stocked.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("mood").stable == 2)


async def test_asking_for_an_adapter_meanwhile_does_not_make_it_unknown(
    serve: Serve, stocked: Store, tmp_path: Path
) -> None:
    place = Path(stocked.place)
    async with serve(sweep_seconds=3600, poll_seconds=3600) as service:
        os.rename(place, tmp_path / "away")
        os.mkdir(place)
        for _ in range(2):
            shown = await service.client.get("/v1/adapters/mood")
            assert shown.status_code in (200, 503), shown.text
            assert (await service.predict("mood@1")).status_code == 200
            assert (await service.predict("mood")).status_code == 200
            assert (await service.predict("mood@7")).status_code in (404, 503)


def test_an_emptied_folder_is_not_filled_with_the_starters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSWAP_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "volume"
    names = open_store(str(place), seed="empty").names()
    assert names
    shutil.rmtree(place)
    for empty in (False, True):
        if empty:
            place.mkdir()
        with pytest.raises(StoreUnavailable, match="is it mounted"):
            open_store(str(place), seed="empty")
        assert not place.exists() or not list(place.iterdir())
