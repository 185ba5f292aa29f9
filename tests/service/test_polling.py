"""How a replica learns of releases: at once where it can, by one cheap question otherwise, and by looking at all."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import obstore
import pytest

from adapters.base_model import Base
from adapters.catalogue import Catalogue
from adapters.errors import StoreUnavailable
from adapters.intake import add_version
from adapters.releases import NewRelease
from adapters.store import Store
from adapters.tasks import ClassificationTask
from service.rollout.desired import Desired
from tests.conftest import MakeAdapter
from tests.s3 import S3Server
from tests.service.conftest import Serve, until

NEVER = 3600.0


def generation(service: Any) -> int:
    return service.state.routing.served("mood").generation


@pytest.mark.anyio
class TestOnALocalDisk:
    async def test_a_release_is_seen_without_polling(self, serve: Serve, stocked: Store) -> None:
        async with serve(poll_seconds=NEVER) as service:
            Store(stocked.place).release("mood", NewRelease(stable=2))
            await until(lambda: generation(service) == 2)
            Store(stocked.place).rollback("mood")
            await until(lambda: generation(service) == 3)

    async def test_where_watching_is_not_possible_polling_goes_on_and_the_log_says_so(
        self, serve: Serve, stocked: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError("OS file watch limit reached")

        monkeypatch.setattr("watchfiles.awatch", full)
        async with serve() as service:
            stocked.release("mood", NewRelease(stable=2))
            await until(lambda: generation(service) == 2)
        said = [message for message in caplog.messages if "cannot be watched" in message]
        assert said == [
            f"{stocked.place} cannot be watched (OS file watch limit reached); it is asked every HOTSWAP_POLL_SECONDS"
        ]

    async def test_a_watch_ends_with_the_service(self, serve: Serve) -> None:
        before = len(asyncio.all_tasks())
        async with serve(poll_seconds=NEVER):
            pass
        await until(lambda: len(asyncio.all_tasks()) <= before)


@pytest.mark.anyio
@pytest.mark.timeout(120)
async def test_a_poll_of_many_adapters_is_one_request(
    serve: Serve, s3: S3Server, make_adapter: MakeAdapter, sentiment_task: ClassificationTask, tiny: Base
) -> None:
    store, folder = Store(s3.make_bucket()), make_adapter()
    for n in range(50):
        add_version(store, f"adapter-{n}", folder, sentiment_task, tiny)
        store.release(f"adapter-{n}", NewRelease(stable=1))
    pulse = f"GET /{store.place.removeprefix('s3://')}/.pulse?"
    async with serve(store, sweep_seconds=NEVER) as service:
        await until(lambda: len(service.state.routing.releases) == 50)
        s3.requests.clear()
        await until(lambda: len(s3.requests) >= 10)
        assert set(s3.requests) == {pulse}
        store.release("adapter-7", NewRelease(stable=1))
        await until(lambda: service.state.routing.served("adapter-7").generation == 2)


class TestDesired:
    """What is known of the store, poll by poll."""

    @pytest.fixture(params=["disk", "S3"])
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Store:
        return Store(request.getfixturevalue("s3").make_bucket() if request.param == "S3" else tmp_path / "store")

    @pytest.fixture
    def swept(self, stocked: Store) -> Desired:
        """What is desired, with everything seen that there is."""
        desired = Desired(stocked, sweep_seconds=NEVER)
        assert mood(desired) == 1
        return desired

    def test_a_release_by_another_process_is_seen_at_the_next_poll(self, swept: Desired, stocked: Store) -> None:
        Store(stocked.place).release("mood", NewRelease(stable=2))
        assert mood(swept) == 2

    def test_without_a_release_no_adapter_is_looked_at(
        self, swept: Desired, stocked: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stocked, "catalogue", unreachable)
        assert mood(swept) == 1

    def test_a_release_whose_writer_was_killed_before_its_pulse_is_found_by_the_sweep(
        self, swept: Desired, stocked: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def killed() -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(stocked, "beat", killed)
        with pytest.raises(KeyboardInterrupt):
            stocked.release("mood", NewRelease(stable=2))
        assert mood(swept) == 1
        assert mood(swept, sweep=True) == 2
        assert mood(Desired(stocked, sweep_seconds=NEVER)) == 2

    def test_a_look_that_nobody_took_over_counts_for_nothing(self, swept: Desired, stocked: Store) -> None:
        stocked.release("mood", NewRelease(stable=2))
        swept.look(swept.last.catalogue)  # it was given up, and comes back all the same
        assert swept.is_due()
        assert mood(swept) == 2

    def test_the_sweep_comes_when_it_is_time(self, stocked: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        desired = Desired(stocked, sweep_seconds=30)
        now = [1000.0]
        monkeypatch.setattr("service.rollout.desired.time.monotonic", lambda: now[0])
        assert mood(desired) == 1
        monkeypatch.setattr(stocked, "beat", lambda: None)
        stocked.release("mood", NewRelease(stable=2))
        now[0] += 29
        assert mood(desired) == 1
        now[0] += 1
        assert mood(desired) == 2

    def test_a_store_without_a_pulse_is_swept_at_every_poll(
        self, swept: Desired, stocked: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        obstore.delete(stocked._objects, ".pulse")
        monkeypatch.setattr(stocked, "beat", lambda: None)  # as releases were made before there was one
        for version in (2, 1):
            expected = stocked.release("mood", NewRelease(stable=version)).generation
            assert mood(swept) == expected

    def test_a_release_during_the_sweep_is_seen_at_the_next_poll(
        self, swept: Desired, stocked: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stocked.release("mood", NewRelease(stable=2))
        listed = stocked.catalogue

        def someone_releases_when_all_was_read(previous: Catalogue) -> Catalogue:
            catalogue = listed(previous)
            monkeypatch.undo()
            stocked.release("brief", NewRelease(stable=1))
            return catalogue

        monkeypatch.setattr(stocked, "catalogue", someone_releases_when_all_was_read)
        assert generation_of(swept, "brief") == 1
        assert generation_of(swept, "brief") == 2

    def test_a_sweep_that_failed_is_made_up_for_at_the_next_poll(
        self, swept: Desired, stocked: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stocked.release("mood", NewRelease(stable=2))
        with monkeypatch.context() as patch:
            patch.setattr(stocked, "catalogue", unreachable)
            with pytest.raises(StoreUnavailable):
                mood(swept)
        assert mood(swept) == 2


def mood(desired: Desired, *, sweep: bool = False) -> int:
    return generation_of(desired, "mood", sweep=sweep)


def generation_of(desired: Desired, name: str, *, sweep: bool = False) -> int:
    """Look as a poll does, and return the adapter's newest generation."""
    if sweep or desired.is_due():
        desired.last = desired.look(desired.last.catalogue)
    return desired.last.catalogue.get(name).generation


def unreachable(*_: object) -> None:
    raise StoreUnavailable("the store is away")
