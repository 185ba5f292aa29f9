"""What fails for days costs no memory, and is followed as soon as it is mended."""

from __future__ import annotations

import asyncio
import gc
import math
import tracemalloc
from pathlib import Path

import pytest

from adapters.errors import InvalidAdapter, StoreUnavailable
from adapters.releases import NewRelease
from adapters.store import WEIGHTS, Store
from service.errors import AdapterFailed
from service.serving import backoff
from service.serving.backoff import MOST_SECONDS, Backoff
from tests.service.conftest import Running, Serve, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


def failures(service: Running, key: tuple[str, int]) -> backoff.Failure:
    failure = service.state.residency._failed.get(key)
    assert failure is not None
    return failure


def spoil(file: Path, content: bytes = b"damaged") -> bytes:
    """Replace a file's content; return what it was."""
    before = file.read_bytes()
    file.write_bytes(content)
    return before


@pytest.mark.parametrize("attempts", [1023, 1024, 1025, 5000])
def test_the_wait_has_a_limit_whatever_number_of_failures_there_was(attempts: int) -> None:
    failed = Backoff()
    for _ in range(attempts):
        failed.note("x", ValueError(), failed.wait("x", again=True))
    assert failed.wait("x", again=True) == MOST_SECONDS
    assert failed.wait("x", again=False) == math.inf


async def test_a_version_that_failed_for_days_is_followed_when_it_is_mended_and_released_again(
    serve: Serve, stocked: Store, monkeypatch
) -> None:
    monkeypatch.setattr(backoff, "MOST_SECONDS", 0.0)
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 0.0)
    weights = Path(stocked.place, "mood/versions/2", WEIGHTS)
    sound = spoil(weights)
    async with serve(poll_seconds=0.02) as service:
        stocked.release("mood", NewRelease(stable=2))
        await until(lambda: service.state.residency.state("mood", 2)["state"] == "failed")
        failed = service.state.residency._failed
        for _ in range(1100):
            failed.note(("mood", 2), failures(service, ("mood", 2)).error, 0.0)
        attempts = failures(service, ("mood", 2)).attempts
        await until(lambda: failures(service, ("mood", 2)).attempts > attempts + 2)  # it goes on being tried
        assert (await service.predict("mood")).json()["adapter"]["version"] == 1
        spoil(weights, sound)
        stocked.release("mood", NewRelease(stable=2, why="mended"))
        await until(lambda: service.state.routing.served("mood").generation == 3)
        assert (await service.predict("mood@2")).status_code == 200
        assert not service.state.reconciler._moves


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("error", [InvalidAdapter("not good"), StoreUnavailable("away")])
async def test_an_error_that_is_raised_again_does_not_grow(
    serve: Serve, two_briefs: Store, monkeypatch, error: Exception, stream: bool
) -> None:
    monkeypatch.setattr(backoff, "FIRST_SECONDS", 300.0)

    def failing(*_: object) -> None:
        raise error

    async with serve() as service:
        monkeypatch.setattr(two_briefs, "fetch", failing)

        async def ask(times: int) -> None:
            body = {"adapter": "brief@2", "input": "x" * 50_000, "stream": stream}
            for _ in range(times):
                response = await service.client.post("/v1/summarize", json=body)
                assert response.status_code == 503

        await ask(20)
        kept = failures(service, ("brief", 2)).error
        tracemalloc.start()
        try:
            gc.collect()
            before, _ = tracemalloc.get_traced_memory()
            await ask(60)
            gc.collect()
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert failures(service, ("brief", 2)).error is kept
        assert kept.__traceback__ is None, "frames hold on to the requests that they belong to"
        assert after - before < 60 * 5_000, "a text that was refused is not kept"


async def test_polling_a_version_that_cannot_be_served_grows_nothing_and_logs_once(
    serve: Serve, two_briefs: Store, monkeypatch, caplog
) -> None:
    def failing(name: str, version: int, cache: Path) -> Path:
        raise InvalidAdapter(f"{name}@{version}: not good")

    async with serve(poll_seconds=0.001) as service:
        monkeypatch.setattr(two_briefs, "fetch", failing)
        two_briefs.release("brief", NewRelease(stable=2))
        await until(lambda: service.state.residency.state("brief", 2)["state"] == "failed")
        looks = 0
        begin = service.state.reconciler._begin_move

        def counted(*arguments, **more):
            nonlocal looks
            looks += 1
            return begin(*arguments, **more)

        monkeypatch.setattr(service.state.reconciler, "_begin_move", counted)
        await until(lambda: looks > 50)
        kept = failures(service, ("brief", 2)).error
        assert isinstance(kept, AdapterFailed)
        assert kept.__traceback__ is None
        assert sum("stays at generation" in record.getMessage() for record in caplog.records) == 1
        await asyncio.sleep(0)
