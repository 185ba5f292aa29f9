"""Long-lived tasks: none ends unseen."""

from __future__ import annotations

import asyncio

import pytest

from service.group import Group
from tests.service.conftest import until

pytestmark = pytest.mark.anyio


async def test_what_is_to_go_on_is_begun_again_when_it_fails_and_the_log_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.group.AGAIN_SECONDS", 0.0)
    begun, over = 0, asyncio.Event()

    async def work() -> None:
        nonlocal begun
        begun += 1
        if begun < 3:
            raise RuntimeError(f"fault {begun}")
        over.set()

    async with Group() as group, asyncio.timeout(10):
        group.keep("watch", work)
        await over.wait()
        await until(lambda: not group._tasks)  # what returns has ended
    assert begun == 3
    for number in (1, 2):
        assert f"RuntimeError: fault {number}" in caplog.text
    assert "the watch failed" in caplog.text


async def test_what_runs_once_is_logged_when_it_fails_and_not_when_it_is_ended(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fails() -> None:
        raise RuntimeError("once")

    async with Group() as group:
        task = group.start(fails())
        lasting = group.start(asyncio.Event().wait())
        await asyncio.wait([task])
        await until(lambda: "RuntimeError: once" in caplog.text)
        assert not lasting.done()
    assert lasting.cancelled()
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1


async def test_a_group_is_closed_when_what_it_runs_has_ended() -> None:
    cleaned = False

    async def work() -> None:
        nonlocal cleaned
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned = True

    async with Group() as group:
        group.start(work())
        await asyncio.sleep(0)
    assert cleaned
