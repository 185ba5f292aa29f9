"""A release that was taken back while its version was on its way is never served."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.releases import NewRelease, Release
from adapters.store import Store
from tests.conftest import MakeAdapter
from tests.service.conftest import Hanging, Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
# Between two looks at the store: the rollback is seen while the version loads, or only after.
POLLS = [0.02, 1.0]


@pytest.fixture
def flips(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Return the generations and stable versions of ``mood`` that were served, in order."""
    from service.serving.routing import Routing

    flips: list[tuple[int, int]] = []
    flip = Routing.flip

    def noted(routing: Routing, name: str, release: Release):
        if name == "mood":
            flips.append((release.generation, release.stable))
        return flip(routing, name, release)

    monkeypatch.setattr(Routing, "flip", noted)
    return flips


@pytest.fixture(params=["pulse seen", "pulse lost"])
def unseen(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch of a folder sees a release at once; of a bucket nobody tells."""
    if request.param == "pulse lost":

        async def none(*_: object) -> None:
            pass

        monkeypatch.setattr("service.rollout.reconciler.watch", none)


async def is_loading(service: Running, version: int) -> None:
    await until(lambda: service.state.residency.state("mood", version)["state"] == "loading")


@pytest.mark.parametrize("poll_seconds", POLLS)
@pytest.mark.usefixtures("unseen")
async def test_a_rollback_while_it_loads(
    serve: Serve,
    stocked: Store,
    hanging: Hanging,
    flips: list,
    poll_seconds: float,
) -> None:
    async with serve(poll_seconds=poll_seconds) as service:
        hanging.begin(stocked, "fetch", when=lambda name, version, *_: (name, version) == ("mood", 2))
        stocked.release("mood", NewRelease(stable=2))
        await is_loading(service, 2)
        stocked.rollback("mood", why="2 is bad")
        hanging.end()
        answers = set()
        while flips[-1][0] != 3:  # bounded by the test's timeout
            answers.add((await service.predict("mood")).json()["adapter"]["version"])
        answers.add((await service.predict("mood")).json()["adapter"]["version"])
        assert answers == {1}
        assert flips == [(1, 1), (3, 1)]


@pytest.mark.usefixtures("unseen")
async def test_a_rollback_while_it_is_probed(serve: Serve, stocked: Store, flips: list, monkeypatch) -> None:
    async with serve(poll_seconds=1.0) as service:
        load, loading, may = service.engine.load, asyncio.Event(), asyncio.Event()

        async def slowly(name: str, folder: Path) -> None:
            await load(name, folder)
            if name.startswith("mood@2"):
                loading.set()
                await may.wait()

        monkeypatch.setattr(service.engine, "load", slowly)
        stocked.release("mood", NewRelease(stable=2))
        await loading.wait()
        stocked.rollback("mood")
        may.set()
        await until(lambda: flips[-1][0] == 3)
        assert flips == [(1, 1), (3, 1)]


@pytest.mark.usefixtures("unseen")
async def test_a_rollback_of_the_rollback_while_it_loads(
    serve: Serve,
    stocked: Store,
    hanging: Hanging,
    flips: list,
) -> None:
    async with serve() as service:
        hanging.begin(stocked, "fetch", when=lambda name, version, *_: version == 2)
        stocked.release("mood", NewRelease(stable=2))
        await is_loading(service, 2)
        stocked.rollback("mood")
        stocked.rollback("mood")
        hanging.end()
        await until(lambda: flips[-1][0] == 4)
        assert flips[-1] == (4, 2)
        assert (2, 2) not in flips
        assert (await service.predict("mood")).json()["adapter"]["version"] == 2


@pytest.mark.parametrize("poll_seconds", POLLS)
@pytest.mark.usefixtures("unseen")
async def test_a_newer_version_while_it_loads(
    serve: Serve,
    two_moods: Store,
    hanging: Hanging,
    flips: list,
    poll_seconds: float,
) -> None:
    async with serve(two_moods, poll_seconds=poll_seconds) as service:
        hanging.begin(two_moods, "fetch", when=lambda name, version, *_: version == 2)
        two_moods.release("mood", NewRelease(stable=2))
        await is_loading(service, 2)
        two_moods.release("mood", NewRelease(stable=3))
        if poll_seconds < 1:
            await until(lambda: flips[-1] == (3, 3))  # it does not wait for what nobody wants any more
        hanging.end()
        await until(lambda: flips[-1] == (3, 3))
        assert flips == [(1, 1), (3, 3)]
        await until(lambda: service.state.residency.state("mood", 2)["state"] != "loading")
        await until(lambda: not [name for name in service.engine.resident if name.startswith("mood@2")])


@pytest.fixture
def two_moods(stocked: Store, make_adapter: MakeAdapter, sentiment_task, tiny) -> Store:
    from adapters.intake import add_version

    add_version(stocked, "mood", make_adapter(seed=7), sentiment_task, tiny)
    return stocked


async def test_a_retirement_while_it_loads(serve: Serve, stocked: Store, hanging: Hanging) -> None:
    async with serve() as service:
        hanging.begin(stocked, "fetch", when=lambda name, version, *_: version == 2)
        asked = asyncio.create_task(service.predict("mood@2"))
        await is_loading(service, 2)
        stocked.retire("mood", 2)
        await until(lambda: 2 in service.state.routing.catalogue.get("mood").retired)
        hanging.end()
        assert (await asked).status_code in (200, 404)
        await until(lambda: not [name for name in service.engine.resident if name.startswith("mood@2")])
        assert (await service.predict("mood@2")).json()["code"] == "version_not_found"


async def test_a_store_that_is_away_when_it_is_loaded_does_not_hold_a_release_back(
    serve: Serve, stocked: Store, monkeypatch
) -> None:
    from adapters.errors import StoreUnavailable

    def away(*_: object) -> bool:
        raise StoreUnavailable("away")

    async with serve() as service:
        monkeypatch.setattr(stocked, "superseded", away)
        stocked.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.routing.served("mood").stable == 2)
