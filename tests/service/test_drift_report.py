"""``python -m service drift report``: a page and an exit status, from files or from what the service keeps."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import service.__main__ as program
from tests.service.conftest import Serve
from tests.service.test_feedback_database import place as place
from tests.service.test_text_drift import FILMS, GADGETS, texts

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
Report = Callable[..., tuple[int, str, str]]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Report:
    def run(*arguments: object) -> tuple[int, str, str]:
        fixed = ["--adapter", "mood", "--out", tmp_path / "page.html"]
        monkeypatch.setattr(sys, "argv", ["service", "drift", "report", *map(str, (*fixed, *arguments))])
        status = program.main()
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    return rows(tmp_path / "reference.jsonl", texts(FILMS, 60, 1))


def rows(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return path


def test_texts_of_one_kind_are_said_to_be(report: Report, reference: Path, tmp_path: Path) -> None:
    live = rows(tmp_path / "live.jsonl", texts(FILMS, 60, 2))
    status, out, _ = report("--reference", reference, "--live", live)
    assert status == 0
    assert out.startswith("No difference beyond chance")


def test_new_texts_are_shown_with_their_words_on_a_page_that_needs_nothing_else(
    report: Report, reference: Path, tmp_path: Path
) -> None:
    live = rows(tmp_path / "live.jsonl", [f"{text} <script>alert(1)</script>" for text in texts(GADGETS, 60, 2)])
    status, out, _ = report("--reference", reference, "--live", live, "--json")
    assert (status, json.loads(out)["p_value"]) == (3, 0.001)
    page = (tmp_path / "page.html").read_text()
    assert "The live texts are of another kind" in page
    assert "<td>charger</td>" in page
    assert "<script" not in page
    assert "http" not in page


async def test_what_the_service_kept_is_compared(
    serve: Serve, report: Report, reference: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSWAP_FEEDBACK_DATABASE", place)
    async with serve(feedback_database=place, feedback_texts="plain") as service:
        body = {"adapter": "mood", "inputs": texts(GADGETS, 40, 3)}
        assert (await service.client.post("/v1/predict", json=body)).status_code == 200
    status, out, _ = report("--reference", reference, "--since", "1d")
    assert status == 3, out


@pytest.mark.parametrize(
    ("live", "said"),
    [
        ('{"text": "one"}\n', "too little to compare: 60 reference texts and 1 live ones"),
        ("nonsense\n", "is not rows"),
        ('{"label": "x"}\n', "is not rows"),
        (None, "No such file"),
    ],
)
def test_what_cannot_be_compared_is_said(
    report: Report, reference: Path, tmp_path: Path, live: str | None, said: str
) -> None:
    if live is not None:
        (tmp_path / "live.jsonl").write_text(live)
    status, out, err = report("--reference", reference, "--live", tmp_path / "live.jsonl")
    assert (status, out) == (1, "")
    assert said in err


async def test_texts_that_were_not_kept_are_asked_for(
    serve: Serve, report: Report, reference: Path, place: str, monkeypatch: Any
) -> None:
    monkeypatch.setenv("HOTSWAP_FEEDBACK_DATABASE", place)
    async with serve(feedback_database=place) as service:
        assert (await service.predict("mood")).status_code == 200
    status, _, err = report("--reference", reference)
    assert status == 1
    assert "HOTSWAP_FEEDBACK_TEXTS=plain" in err
