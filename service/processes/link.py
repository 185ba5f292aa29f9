"""Calls between two processes of one service, over a socket that nobody else has."""

from __future__ import annotations

import asyncio
import logging
import pickle
import socket
from collections.abc import Awaitable, Callable, Mapping
from inspect import isawaitable
from itertools import count
from typing import Any

from service.group import Group

logger = logging.getLogger("hotswap")
LENGTH_BYTES = 4
# A word to the other side; a question; an answer; what was raised instead.
TELL, ASK, ANSWER, ERROR = range(4)


class LinkLost(Exception):
    """The other process is gone, or going."""


class Link:
    """Both sides tell and ask each other by the names of ``handlers``.

    What is told and asked arrives in the order in which it was sent, and a handler's part before its first ``await``
    is over before the next message is looked at: whoever has an answer knows that all before it was followed.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.handlers: Mapping[str, Callable[..., Any]] = {}
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._numbers = count()
        self._tasks = Group()
        self._lost = False

    @classmethod
    async def over(cls, end: socket.socket) -> Link:
        return cls(*await asyncio.open_unix_connection(sock=end))

    def tell(self, name: str, *given: Any) -> None:
        """Say something that needs no answer. To a process that is gone nothing is said."""
        self._send(TELL, 0, (name, given))

    async def ask(self, name: str, *given: Any, seconds: float | None = None) -> Any:
        """Return what the other side's handler does, or raise its error.

        Raises :class:`LinkLost`, and :class:`TimeoutError` after so many ``seconds``.
        """
        if self._lost:
            raise LinkLost(name)
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send(ASK, number, (name, given))
        try:
            async with asyncio.timeout(seconds):
                return await answer
        finally:
            del self._asked[number]

    async def run(self) -> None:
        """Listen until the other process is gone. What waits for its answer then fails."""
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
                self._take(*pickle.loads(await self._reader.readexactly(length)))  # noqa: S301 - our own process's
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            await self.close()

    async def close(self) -> None:
        self._lost = True
        self._writer.transport.abort()  # what a stopped process has not read is not waited for
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(LinkLost())
        await self._tasks.close()

    def _take(self, kind: int, number: int, content: Any) -> None:
        if kind in (ANSWER, ERROR):
            answer = self._asked.get(number)
            if answer is not None and not answer.done():
                (answer.set_result if kind == ANSWER else answer.set_exception)(content)
            return
        name, given = content
        try:
            done = self.handlers[name](*given)
        except Exception as error:
            self._answer(kind, number, ERROR, error)
        else:
            if isawaitable(done):
                self._tasks.start(self._finish(kind, number, done))
            else:
                self._answer(kind, number, ANSWER, done)

    async def _finish(self, kind: int, number: int, done: Awaitable[Any]) -> None:
        try:
            result = await done
        except Exception as error:
            self._answer(kind, number, ERROR, error)
        else:
            self._answer(kind, number, ANSWER, result)

    def _answer(self, kind: int, number: int, outcome: int, content: Any) -> None:
        if kind == ASK:
            try:
                self._send(outcome, number, content)
            except Exception as error:  # not everything can be sent; who asks must be answered all the same
                self._send(ERROR, number, RuntimeError(f"{type(content).__name__} cannot be sent: {error}"))
        elif outcome == ERROR:
            logger.error("what another process said was not followed", exc_info=content)

    def _send(self, kind: int, number: int, content: Any) -> None:
        if self._lost:
            return
        message = pickle.dumps((kind, number, content))
        self._writer.write(len(message).to_bytes(LENGTH_BYTES) + message)
