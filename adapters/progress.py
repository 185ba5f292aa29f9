"""What is said while something takes its time: a live bar on a terminal, else a line now and then, or JSON lines for
machines. On stderr: stdout is for results."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

EVERY = 5.0  # seconds: nothing is silent for longer
BEAT = 0.5  # seconds between two looks whether it is time to say something
NARROW = 80  # columns of a terminal that does not say how many it has
EVENTS = 1.0  # seconds between two JSON lines of one bar
Item = TypeVar("Item")

_as_json = False


@contextmanager
def json_lines(wanted: bool) -> Iterator[None]:
    """Say everything as JSON lines meanwhile, if that is wanted."""
    global _as_json
    before, _as_json = _as_json, wanted
    try:
        yield
    finally:
        _as_json = before


def say(text: str) -> None:
    """Tell who watches; of several processes, one speaks."""
    if _as_json:
        tell("message", text=text)
    elif _speaks():
        _write(text)


def tell(event: str, **about: Any) -> bool:
    """Tell a machine, if one listens; return whether one does."""
    if _as_json and _speaks():
        _write(json.dumps({"event": event} | about))
    return _as_json


def spoken(seconds: float) -> str:
    """Return a length of time as it is said: 40 s, 12 min, 1 h 5 min."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


class Bar:
    """Work in progress, of ``total`` parts where they can be counted. Of several that are open the innermost speaks."""

    def __init__(self, total: int | None, what: str, unit: str = "", done: int = 0, *, events: bool = True) -> None:
        self.total, self.what, self.unit, self.done = total, what, unit, done
        self.figures: dict[str, str] = {}
        self._began, self._before, self._told, self._events = time.monotonic(), done, -EVENTS, events
        self._drawn: tqdm[Any] | None = None
        _voice.opened(self)
        self._tell()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def update(self, parts: int = 1) -> None:
        self.done += parts
        self._tell()
        if self._drawn is not None:
            self._drawn.set_postfix(self.figures, refresh=False)
            self._drawn.update(parts)
        _voice.speak_if_due()

    def close(self) -> None:
        _voice.closed(self)

    def seconds_left(self) -> float | None:
        """Return what the rest takes at the speed so far; none where nothing is done yet, or nothing is counted."""
        if self.total is None or self.done <= self._before:
            return None
        return (time.monotonic() - self._began) / (self.done - self._before) * max(0, self.total - self.done)

    def say(self) -> None:
        """Say how far it is: a line, an event, or the bar drawn anew."""
        if _as_json:
            self._tell(now=True)
        elif sys.stderr.isatty():
            self.draw()
        else:
            _write(str(self))

    def __str__(self) -> str:
        so_far = f"{spoken(time.monotonic() - self._began)} so far"
        if self.total is None:
            return f"{self.what}: {so_far}"
        left = self.seconds_left()
        figures = [f"{name} {figure}" for name, figure in self.figures.items()]
        time_left = so_far if left is None else f"about {spoken(left)} left"
        return f"{self.what}: " + ", ".join([f"{self.done} of {self.total} {self.unit}", *figures, time_left])

    def draw(self) -> None:
        if self._drawn is None:
            counted = self.total is not None
            self._drawn = tqdm(
                total=self.total,
                initial=self.done,
                desc=self.what,
                unit=f" {self.unit}",
                leave=counted,
                bar_format=None if counted else "{desc}: {elapsed}",
                ncols=None if (width := _width()) else NARROW,
                dynamic_ncols=width > 0,
            )
            self._drawn.start_t = self._drawn.last_print_t - (time.monotonic() - self._began)
        self._drawn.refresh()

    def hide(self, *, leave: bool = False) -> None:
        if self._drawn is not None:
            self._drawn.leave = leave
            self._drawn.close()
            self._drawn = None

    def _tell(self, *, now: bool = False) -> None:
        ended = self.done == self.total
        if _as_json and (now or (self._events and (ended or time.monotonic() - self._told >= EVENTS))):
            self._told = time.monotonic()
            left = self.seconds_left()
            known = {} if self.total is None else {"done": self.done, "of": self.total}
            tell("progress", what=self.what, **known, **({} if left is None else {"seconds_left": round(left, 1)}))


def bar(total: int | None, what: str, unit: str = "", done: int = 0, *, events: bool = True) -> Bar:
    """Begin to show work in progress; ``unit`` is a plural. ``events=False``: its owner tells machines itself."""
    return Bar(total, what, unit, done, events=events)


def counted(items: Iterable[Item], total: int, what: str, unit: str) -> Iterator[Item]:
    """Give the items one by one, and show how many are done."""
    with bar(total, what, unit) as shown:
        for item in items:
            yield item
            shown.update()


class _Voice:
    """Speaks for the innermost bar when there was silence for too long, whatever the work is doing meanwhile."""

    def __init__(self) -> None:
        self._bars: list[Bar] = []
        self._last, self._lock = 0.0, threading.RLock()
        self._thread: threading.Thread | None = None

    def opened(self, new: Bar) -> None:
        if not _speaks():
            return
        with self._lock:
            if self._bars:
                self._bars[-1].hide()
            else:
                self._last = time.monotonic()  # short work is not spoken of
            self._bars.append(new)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="progress", daemon=True)
                self._thread.start()
            if new.total is not None and not _as_json and sys.stderr.isatty():
                new.draw()

    def closed(self, old: Bar) -> None:
        with self._lock:
            old.hide(leave=old.total is not None)
            if old in self._bars:
                self._bars.remove(old)

    def speak_if_due(self) -> None:
        with self._lock:
            if self._bars and time.monotonic() - self._last >= EVERY:
                self._last = time.monotonic()
                with suppress(OSError, ValueError):  # nobody is there to hear it
                    self._bars[-1].say()

    def _watch(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                if not self._bars:
                    self._thread = None
                    return
                self.speak_if_due()


def _write(line: str) -> None:
    with suppress(OSError, ValueError):  # nobody hears it
        tqdm.write(line, file=sys.stderr)
        sys.stderr.flush()


def _width() -> int:
    """Return the terminal's columns; 0 where it does not know them, as in a container."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def _speaks() -> bool:
    return os.environ.get("RANK", "0") == "0"


_voice = _Voice()
