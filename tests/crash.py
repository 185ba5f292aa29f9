"""Work in a process of its own that is killed (SIGKILL) before or after its n-th step.

What the work calls does not know of it: the functions that count as steps are replaced in the child. Children are
forked from a process that has imported everything and run nothing, so that each costs tens of milliseconds.
"""

from __future__ import annotations

import functools
import inspect
import io
import itertools
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import obstore

When = Literal["before", "after"]
Function = tuple[Any, str]
STORE: list[Function] = [(obstore, name) for name in ("put", "get", "head", "list")] + [(os, "fsync")]
FILES: list[Function] = [(Path, name) for name in ("write_bytes", "mkdir", "rename", "replace")]
_forks = get_context("forkserver")
_forks.set_forkserver_preload(["tests.crash", "tests.service.swapping", "adapters.__main__"])


def deaths(work: Callable[..., None], *arguments: Any) -> Iterator[tuple[int, When]]:
    """Run ``work(die, *arguments)`` until it survives; yield after each death: before and after every step."""
    for step in itertools.count(1):
        for when in ("before", "after"):
            status = run(work, functools.partial(steps, step, when), *arguments)
            if status == 0:
                assert step > 1, "there was nothing to be killed at"
                return
            assert status == -signal.SIGKILL, f"it ended with {status}, {when} step {step}"
            yield step, when


def run(work: Callable[..., None], *arguments: Any) -> int | None:
    """Run ``work`` in a child; return its exit status, which is negative for a signal."""
    child = _forks.Process(target=work, args=arguments)
    child.start()
    child.join(60)
    if child.is_alive():
        child.kill()
    return child.exitcode


def steps(step: int, when: When, functions: Iterable[Function], *, armed: Callable[[], bool] = lambda: True) -> None:
    """Make the step-th call of ``functions``, counted while ``armed``, this process's last."""
    numbers = itertools.count(1)
    for owner, name in functions:
        setattr(owner, name, _counted(getattr(owner, name), step, when, numbers, armed))


def _counted(
    function: Callable[..., Any], step: int, when: When, numbers: Iterator[int], armed: Callable[[], bool]
) -> Callable[..., Any]:
    def dies(moment: When, number: int) -> None:
        if (number, moment) == (step, when):
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(function)
    def counted(*arguments: Any, **options: Any) -> Any:
        number = next(numbers) if armed() else 0
        dies("before", number)
        result = function(*arguments, **options)
        if not inspect.isawaitable(result):
            dies("after", number)
            return result

        async def awaited() -> Any:
            told = await result
            dies("after", number)
            return told

        return awaited()

    return counted


def command(die: Callable[..., None], environment: dict[str, str], arguments: list[str]) -> None:
    """Be ``python -m adapters`` with every call of the store a step."""
    import adapters.__main__ as commands

    os.environ.update(environment)
    die(STORE)
    _be(commands.main, arguments)


def command_with_little_room(environment: dict[str, str], arguments: list[str], room: int, deadly: bool) -> None:
    """Be ``python -m adapters`` where no file may have more than ``room`` bytes: to try is deadly, or an error."""
    import adapters.__main__ as commands

    os.environ.update(environment)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL if deadly else signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    _be(commands.main, arguments)


def _be(main: Callable[[], int], arguments: list[str]) -> None:
    """Exit as the command does, its words in the file ``SAID``."""
    sys.argv = ["adapters", *arguments]
    sys.stdout = sys.stderr = words = io.StringIO()
    status = main()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(os.environ["SAID"]).write_text(words.getvalue())
    os._exit(status)
