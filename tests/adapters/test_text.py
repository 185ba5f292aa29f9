"""Text on its way to terminals, logs and strangers."""

from __future__ import annotations

import pytest

from adapters import cli
from adapters.text import public


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/var/lib/hotswap/store/mood/7: manifest.json is missing", "7: manifest.json is missing"),
        ("cannot read '/tmp/a b/x' or file:/srv/data/y", "cannot read 'a b/x' or file:y"),
        ("GET /v1/adapters lists them; see https://example.org/a/b", "GET /v1/adapters lists them; see https://example.org/a/b"),
        ("one/two is 50/50", "one/two is 50/50"),
        ("a\nb\x1b[31m", r"a\nb\x1b[31m"),
    ],
)  # fmt: skip
def test_strangers_read_no_folder_and_no_escapes(text: str, shown: str) -> None:
    assert public(text) == shown


def test_nothing_is_too_long() -> None:
    assert len(public("a" * 100_000)) == len(public("/a" * 100_000)) == 1000


def test_a_table_shows_escapes_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    cli.show([{"name": "x\n\x1b[2J", "labels": ["a\r", "b"]}], as_json=False, columns=["name", "labels"])
    assert capsys.readouterr().out.splitlines()[1] == r"x\n\x1b[2J  a\r, b"
