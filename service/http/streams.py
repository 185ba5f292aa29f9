"""Answers that come piece by piece, and clients that do not wait for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import aclosing
from typing import TypeVar

from fastapi import Request

from service.errors import ClientClosed, ServiceError, from_lower

T = TypeVar("T")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for ``work``, but no longer than the client does: it is cancelled when the client hangs up."""
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        await _disconnected(request)
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if left and not task.uncancel():
            raise ClientClosed from None
        raise
    finally:
        watcher.cancel()


async def begun(request: Request, stream: AsyncGenerator[T]) -> tuple[T, AsyncGenerator[T]]:
    """Return the first piece of ``stream``, and those that follow; who leaves them ends the work.

    Raises :class:`ServiceError`, also where the following pieces are read.
    """
    pieces: asyncio.Queue[T | ServiceError | None] = asyncio.Queue()
    # In a task of its own from beginning to end: the deadline counts for the task that set it.
    work = asyncio.create_task(_collect(stream, pieces))
    try:
        first = await unless_gone(request, pieces.get())
    except BaseException:
        work.cancel()
        raise
    # What goes wrong before the first piece is answered with its own status, as without streaming.
    if isinstance(first, ServiceError):
        raise first
    assert first is not None
    return first, _following(pieces, work)


async def _collect(stream: AsyncGenerator[T], pieces: asyncio.Queue[T | ServiceError | None]) -> None:
    try:
        async with aclosing(stream):
            async for piece in stream:
                pieces.put_nowait(piece)
        pieces.put_nowait(None)
    except Exception as error:  # whoever reads must not wait for ever
        pieces.put_nowait(from_lower(error))


async def _following(pieces: asyncio.Queue[T | ServiceError | None], work: asyncio.Task[None]) -> AsyncGenerator[T]:
    try:
        while (piece := await pieces.get()) is not None:
            if isinstance(piece, ServiceError):
                raise piece
            yield piece
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
