"""A server process with all its children: started, stopped in its tracks while another is measured, ended."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from adapters.errors import HotswapError
from service.engine.plugin import is_cpu

START_SECONDS = 300.0
STOP_SECONDS = 20.0


class Failed(HotswapError):
    """A server did not start, or did not answer."""


class Process:
    """A process group of its own, so that nothing of it is left behind: a Python module, or a program by its path."""

    def __init__(self, module: str, arguments: list[str], environment: Mapping[str, str], log: Path, *, piped: bool):
        self._log, self._peak = log, 0
        # Who is ended ends what it started: a server of gigabytes would go on by itself otherwise.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        pipe = subprocess.PIPE if piped else None
        program = [module] if os.path.isabs(module) else [sys.executable, "-m", module]
        with log.open("w") as errors:
            self._popen = subprocess.Popen(
                [*program, *arguments],
                env={**_clean_environment(), **environment},
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or errors,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    @property
    def id(self) -> int:
        return self._popen.pid

    def ask(self, line: str) -> str:
        """Write a line to a piped process and return the one it answers with."""
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        with suppress(BrokenPipeError):
            print(line, file=self._popen.stdin, flush=True)
        return self.answer()

    def has_answer(self) -> bool:
        assert self._popen.stdout is not None
        return bool(select.select([self._popen.stdout], [], [], 0)[0])

    def answer(self) -> str:
        assert self._popen.stdout is not None
        if line := self._popen.stdout.readline():
            return line
        raise Failed(f"it ended: {self.last_line}")

    def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until ``ready``. Raises :class:`Failed` with the last line of the log."""
        give_up = time.monotonic() + START_SECONDS
        while not ready():
            if self._popen.poll() is not None:
                raise Failed(f"it ended with status {self._popen.returncode}: {self.last_line}")
            if time.monotonic() > give_up:
                raise Failed(f"it was not ready after {START_SECONDS:.0f} s: {self.last_line}")
            self.look_at_memory()
            time.sleep(0.2)

    @contextmanager
    def awake(self) -> Iterator[None]:
        self.signal(signal.SIGCONT)
        try:
            yield
        finally:
            self.look_at_memory()
            self.rest()

    def rest(self) -> None:
        """Take no time from whoever is measured."""
        self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._popen.pid, number)

    def end(self) -> None:
        """Ask it to go; vLLM leaves shared memory behind otherwise."""
        self.signal(signal.SIGCONT)
        if self._popen.stdin:
            with suppress(BrokenPipeError):
                self._popen.stdin.close()
        else:
            self._popen.terminate()

    def stop(self) -> None:
        """See it off, by force if need be, with all that it started."""
        self.end()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(STOP_SECONDS)
        self.signal(signal.SIGKILL)
        self._popen.wait()

    @property
    def peak_gib(self) -> float:
        return self._peak / 2**30

    def look_at_memory(self) -> None:
        """Remember the most memory seen: what is the processes' own, shared pages once, and mapped files once."""
        own, mapped = 0, [0]
        with suppress(psutil.Error):
            root = psutil.Process(self._popen.pid)
            for process in (root, *root.children(recursive=True)):
                with suppress(OSError, psutil.Error):
                    kib = _kib(f"/proc/{process.pid}/smaps_rollup")
                    own += kib.get("Pss_Anon", 0) + kib.get("Pss_Shmem", 0)
                    mapped.append(_kib(f"/proc/{process.pid}/status").get("RssFile", 0))
        self._peak = max(self._peak, 1024 * (own + max(mapped)))

    @property
    def last_line(self) -> str:
        return last_words(self._log.read_text(errors="replace"))


def last_words(log: str) -> str:
    """Return the last error that says something (vLLM's last one only points at an earlier one), or the last line."""
    errors = [found for found in re.findall(r"\w+(?:Error|Exception): .+", log) if "root cause above" not in found]
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return (errors or lines or ["it said nothing"])[-1][:300]


def _kib(path: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(?m)^(\w+):\s+(\d+) kB", Path(path).read_text())}


def _clean_environment() -> dict[str, str]:
    """Return this environment without what would make a server other than as it is described."""
    kept = ("HOTSWAP_BASE_MODEL", "HOTSWAP_ENGINE")
    # A GPU machine's own vLLM may not work without some of its variables.
    others = ("HOTSWAP_", "VLLM_", "KMP_", "OMP_") if is_cpu() else ("HOTSWAP_",)
    return {k: v for k, v in os.environ.items() if k in kept or not k.startswith(others)}
