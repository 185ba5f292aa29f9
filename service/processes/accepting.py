"""Connections to one port, shared among the processes that listen on it: the one that has fewest takes the next.

The event loop's own server takes all that wait in whichever process wakes first. As in vLLM's launcher.
"""

from __future__ import annotations

import asyncio
import logging
import mmap
import os
import socket
from collections.abc import Callable

import uvicorn

from service.group import Group
from service.processes.place import Place

logger = logging.getLogger("hotswap")
# Who has more than another leaves a connection to it for so long; it may be busy, or stopped.
DEFERRALS, DEFER_SECONDS = 5, 0.001
AGAIN_SECONDS = 1.0
# Of who takes none (not yet, or no more), so that nobody leaves one to it.
NONE_TAKEN = (1 << 31) - 1


class Loads:
    """How many connections each process has, in memory that they share by the open file ``fd``."""

    def __init__(self, fd: int, place: Place) -> None:
        self._numbers = memoryview(mmap.mmap(fd, mmap.PAGESIZE)).cast("i")[: place.count]
        self._place = place

    @classmethod
    def made(cls, place: Place) -> tuple[int, Loads]:
        """Return the open file, and what is in it."""
        fd = os.memfd_create("hotswap-loads")
        os.truncate(fd, mmap.PAGESIZE)
        loads = cls(fd, place)
        for number in range(place.count):
            loads.clear(number)
        return fd, loads

    def clear(self, number: int) -> None:
        """Note that a process takes none."""
        self._numbers[number] = NONE_TAKEN

    def set(self, connections: int) -> None:
        self._numbers[self._place.number] = connections

    @property
    def is_least(self) -> bool:
        return self._numbers[self._place.number] <= min(self._numbers)


class SharingServer(uvicorn.Server):
    """uvicorn's server, on sockets that other processes listen on as well. ``on_leaving`` is called when it is to
    end, before it waits for its own requests."""

    def __init__(self, config: uvicorn.Config, loads: Loads, on_leaving: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._loads, self._on_leaving, self._accepting = loads, on_leaving, Group()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        for listener in sockets or ():
            listener.listen(self.config.backlog)
            listener.setblocking(False)
            self._accepting.keep("accepting", lambda listener=listener: self._accept(listener))  # type: ignore[misc]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._accepting.close()
        self._loads.set(NONE_TAKEN)
        self._on_leaving()
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._loads.set(len(self.server_state.connections))
            await _readable(listener)
            self._loads.set(len(self.server_state.connections))
            for _ in range(DEFERRALS):
                if self._loads.is_least:
                    break
                await asyncio.sleep(DEFER_SECONDS)
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                continue  # another process has it
            except OSError as error:
                logger.error("no connection can be taken: %s", error.strerror)
                await asyncio.sleep(AGAIN_SECONDS)
                continue
            try:
                await loop.connect_accepted_socket(self._protocol, connection)
            except OSError:
                connection.close()

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


async def _readable(listener: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(listener, wake)
    try:
        await ready
    finally:
        loop.remove_reader(listener)
