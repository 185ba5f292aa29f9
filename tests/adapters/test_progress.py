"""What is said while something takes its time."""

from __future__ import annotations

import io
import json
import sys
import threading

import pytest

from adapters import progress
from adapters.progress import bar, counted, json_lines, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Listener(io.StringIO):
    """Hears of the first line."""

    def __init__(self) -> None:
        super().__init__()
        self.heard = threading.Event()

    def write(self, text: str) -> int:
        written = super().write(text)
        self.heard.set()
        return written


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "BEAT", 1e-3)


def lines(text: str) -> list[str]:
    return text.splitlines()


def test_short_work_is_not_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(counted("abc", 3, "test: adapter", "rows")) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("impatient")
def test_long_work_says_how_far_it_is_and_what_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(400, "test: adapter", "rows") as shown:
        shown.update(120)
    said = capsys.readouterr()
    assert said.out == ""
    assert any(line.startswith("test: adapter: 120 of 400 rows, about ") for line in lines(said.err))
    assert lines(said.err)[-1].endswith(" left")


@pytest.mark.parametrize("total", [None, 7])
@pytest.mark.usefixtures("impatient")
def test_what_does_not_move_is_spoken_of_too(monkeypatch: pytest.MonkeyPatch, total: int | None) -> None:
    monkeypatch.setattr(sys, "stderr", listener := Listener())
    with bar(total, "one long step", "steps"):
        assert listener.heard.wait(60)
    assert lines(listener.getvalue())[0].startswith("one long step: ")


@pytest.mark.usefixtures("impatient")
def test_of_work_within_work_the_innermost_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(None, "evaluation"), bar(3, "test: base", "rows") as inner:
        capsys.readouterr()
        inner.update()
        assert {line.split(": ")[1] for line in lines(capsys.readouterr().err)} == {"base"}


@pytest.mark.usefixtures("impatient")
def test_what_failed_falls_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), bar(3, "broken", "rows"):
        raise ZeroDivisionError
    monkeypatch.setattr(sys, "stderr", listener := Listener())
    with bar(None, "the next"):
        assert listener.heard.wait(60)
    assert "broken" not in listener.getvalue()


def test_a_terminal_has_a_live_bar_with_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with bar(2, "training", "steps") as shown:
        shown.figures["loss"] = "0.4321"
        shown.update(2)
    assert "\r" in terminal.getvalue()
    assert "loss=0.4321" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()


def test_machines_get_lines_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    with json_lines(True):
        say("note: a message")
        with bar(2, "test: adapter", "rows") as shown:
            shown.update(2)
    said = capsys.readouterr()
    told = [json.loads(line) for line in lines(said.err)]
    assert said.out == ""
    assert told[0] == {"event": "message", "text": "note: a message"}
    assert told[1] == {"event": "progress", "what": "test: adapter", "done": 0, "of": 2}
    assert told[-1] == {"event": "progress", "what": "test: adapter", "done": 2, "of": 2, "seconds_left": 0.0}


def test_of_several_processes_one_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    say("note")
    with json_lines(True), bar(1, "rows", "rows") as shown:
        shown.update()
    assert capsys.readouterr() == ("", "")
