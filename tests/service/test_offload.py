"""Calls that block: never waited for too long, and what hangs takes nobody else's place."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from adapters.errors import StoreUnavailable
from service import offload as module
from service.offload import PER_KEY, Offload
from tests.service.conftest import until

pytestmark = pytest.mark.anyio


class Hanging:
    """Work that comes back when it may, by key."""

    def __init__(self) -> None:
        self.entered: dict[str, int] = {}
        self.free = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, key: str) -> str:
        with self._lock:
            self.entered[key] = self.entered.get(key, 0) + 1
        assert self.free.wait(20)
        return key


@pytest.fixture
async def hanging() -> AsyncIterator[Hanging]:
    work = Hanging()
    yield work
    work.free.set()


async def test_a_call_returns_what_the_work_does_or_raises_its_error() -> None:
    offload = Offload(10, 4)
    assert await offload("k", divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await offload("k", divmod, 7, 0)
    with pytest.raises(TimeoutError):  # the work's own, not the limit's
        await offload("k", _raise, TimeoutError())


async def test_what_hangs_is_given_up_with_what_to_change(hanging: Hanging) -> None:
    with pytest.raises(StoreUnavailable, match=r"0\.02 s \(HOTSWAP_STORE_SECONDS\)"):
        await Offload(0.01, 4)("k", hanging, "k", patience=2)


async def test_a_key_that_hangs_takes_its_own_places_and_nobody_elses(hanging: Hanging) -> None:
    offload = Offload(0.02, 4)
    for _ in range(PER_KEY + 3):
        with pytest.raises(StoreUnavailable):
            await offload("slow", hanging, "slow")
    assert hanging.entered["slow"] == PER_KEY
    assert await offload("other", str, "answered") == "answered"
    hanging.free.set()
    await until(lambda: not offload._places and not offload._abandoned)
    assert await offload("slow", str, "again") == "again"


async def test_calls_at_once_are_limited_and_who_waits_gets_a_turn(hanging: Hanging) -> None:
    offload = Offload(10, 2)
    calls = [asyncio.create_task(offload(f"k{n}", hanging, f"k{n}")) for n in range(4)]
    await until(lambda: len(hanging.entered) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(hanging.entered) == 2
    hanging.free.set()
    assert await asyncio.gather(*calls) == ["k0", "k1", "k2", "k3"]
    await until(lambda: not offload._places)


async def test_who_leaves_before_its_turn_takes_no_place_along(hanging: Hanging) -> None:
    offload = Offload(10, 1)
    running = asyncio.create_task(offload("k", hanging, "k"))
    await until(lambda: hanging.entered.get("k") == 1)
    for key in ("k", "k", "k", "other"):
        waiting = asyncio.create_task(offload(key, hanging, key))
        await asyncio.sleep(0)
        waiting.cancel()
        assert isinstance((await asyncio.gather(waiting, return_exceptions=True))[0], asyncio.CancelledError)
    hanging.free.set()
    assert await running == "k"
    await until(lambda: not offload._places)
    assert await asyncio.gather(*(offload("k", str, n) for n in range(5))) == ["0", "1", "2", "3", "4"]
    assert hanging.entered == {"k": 1}


async def test_beyond_so_many_threads_that_never_came_back_the_store_is_not_asked(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_ABANDONED", 3)
    offload = Offload(0.01, 10)
    for n in range(5):
        with pytest.raises(StoreUnavailable):
            await offload(f"k{n}", hanging, f"k{n}")
    assert len(hanging.entered) == 3
    hanging.free.set()
    await until(lambda: not offload._abandoned)
    assert await offload("k", str, "back") == "back"


def _raise(error: Exception) -> None:
    raise error
