"""Calls that block, out of the event loop's way, and never waited for longer than a limit."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from adapters.errors import StoreUnavailable

T = TypeVar("T")
# Of one key. What hangs takes its own key's places and nobody else's.
PER_KEY = 2
# Threads that were given up and have not come back; beyond that the store is not asked at all.
MOST_ABANDONED = 200
THREADS = "offload"  # how the threads are called


class Offload:
    """Runs each call in a thread of its own: a thread cannot be ended, and one that hangs must hold up neither the
    next nor the end of the process. ``seconds`` are waited for an answer, and of those that are not known to take
    longer ``at_once`` run at a time."""

    def __init__(self, seconds: float, at_once: int) -> None:
        self._seconds, self._at_once = seconds, asyncio.Semaphore(at_once)
        self._places: dict[str, tuple[asyncio.Semaphore, int]] = {}
        self._abandoned = 0

    async def __call__(self, key: str, work: Callable[..., T], *args: Any, patience: float = 1.0, **more: Any) -> T:
        """Return what ``work`` does, or raise its error. It is waited for ``patience`` times the limit at most.

        Of one ``key`` few calls run at a time. Raises :class:`StoreUnavailable` for one that does not come back.
        """
        if self._abandoned >= MOST_ABANDONED:
            raise StoreUnavailable("the store does not answer: too many calls have not come back")
        limit = asyncio.timeout(self._seconds * patience)
        try:
            async with limit:
                return await self._run(key, partial(work, *args, **more))
        except TimeoutError as error:
            if not limit.expired():
                raise
            seconds = self._seconds * patience
            raise StoreUnavailable(f"no answer within {seconds:g} s (HOTSWAP_STORE_SECONDS)") from error

    async def _run(self, key: str, work: Callable[[], T]) -> T:
        place = self._enter(key)
        thread: asyncio.Future[T] | None = None
        try:
            await place.acquire()
            try:
                async with self._at_once:
                    thread = _in_thread(work)
                    await asyncio.wait((thread,), timeout=self._seconds)
                # What takes longer waits for something far away: it keeps nobody from going on.
                return await asyncio.shield(thread)
            finally:
                if thread is None:
                    place.release()
                else:
                    self._when_back(thread, place, key)
        finally:
            if thread is None:
                self._leave(key)

    def _when_back(self, thread: asyncio.Future[Any], place: asyncio.Semaphore, key: str) -> None:
        """A place is free when its thread is back, however long ago that was given up."""
        given_up = not thread.done()
        self._abandoned += given_up

        def back(_: object) -> None:
            thread.exception()  # nobody may be left to look at it
            self._abandoned -= given_up
            place.release()
            self._leave(key)

        thread.add_done_callback(back)

    def _enter(self, key: str) -> asyncio.Semaphore:
        place, users = self._places.get(key) or (asyncio.Semaphore(PER_KEY), 0)
        self._places[key] = place, users + 1
        return place

    def _leave(self, key: str) -> None:
        place, users = self._places.pop(key)
        if users > 1:
            self._places[key] = place, users - 1


def _in_thread(work: Callable[[], T]) -> asyncio.Future[T]:
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            value = work()
        except BaseException as error:
            done = partial(result.set_exception, error)
        else:
            done = partial(result.set_result, value)
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(done)

    threading.Thread(target=run, name=THREADS, daemon=True).start()
    return result
