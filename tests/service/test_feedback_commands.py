"""``python -m service feedback``: what was kept becomes rows, numbers, or nothing."""

from __future__ import annotations

import json
import sqlite3
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

import service.__main__ as program
from adapters.feedback import rows_for
from service.monitoring.database import Database
from tests.conftest import LABELS
from tests.postgres import PostgresServer
from tests.service.conftest import Serve
from tests.service.test_feedback_database import judge, predicted, rows
from tests.service.test_feedback_database import place as place
from tests.trainer.workplace import Workplace
from trainer.data import read_rows
from trainer.feedback import read_log
from trainer.origin import Data
from trainer.rows import Columns

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Command:
    """Return ``command("stats", …)``: its status, and what it said on stdout and stderr."""
    monkeypatch.setenv("HOTSWAP_CACHE", str(tmp_path / "cache"))

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["service", "feedback", *map(str, arguments)])
        try:
            status = program.main()
        except SystemExit as stop:
            status = int(stop.code or 0)
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def everything(place: Path) -> bytes:
    return b"".join(file.read_bytes() for file in place.parent.glob(f"{place.name}*"))


def other_than(label: str) -> str:
    return next(known for known in LABELS if known != label)


@pytest.fixture
async def judged(serve: Serve, place: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database with a right answer, a corrected one, a thumb down and a better summary; one was not judged."""
    monkeypatch.setenv("HOTSWAP_FEEDBACK_DATABASE", place)
    async with serve(feedback_database=place, feedback_texts="plain") as service:
        told = await predicted(service, text="one", caller="user-1")
        await judge(service, told["id"], correct=True)
        told = await predicted(service, text="two", caller="user-2")
        await judge(service, told["id"], label=other_than(told["outputs"][0]["label"]))
        told = await predicted(service, text="drei – ü", caller="user-2")
        await judge(service, told["id"], correct=False)
        told = await predicted(service, "brief", text="four", caller="user-1")
        await judge(service, told["id"], better="What it is about")
        await predicted(service, text="five")
    return place


class TestExport:
    @pytest.mark.parametrize(
        ("adapter", "objective", "texts"),
        [
            ("mood", "supervised", ["one", "two"]),
            ("mood", "kto", ["one", "two", "two", "drei – ü"]),
            ("mood", "dpo", ["two"]),
            ("brief", "supervised", ["four"]),
            ("brief", "reward", ["four"]),
        ],
    )
    async def test_is_read_by_a_recipe_without_naming_a_column(
        self, judged: str, command: Command, tmp_path: Path, adapter: str, objective: str, texts: list[str]
    ) -> None:
        out = tmp_path / "rows.jsonl"
        status, told, _ = command("export", "--adapter", adapter, "--objective", objective, "--out", out)
        assert (status, told) == (0, f"{len(texts)} rows in {out}\n")
        made = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        assert [row["text"] for row in made] == texts
        kind = "classification" if adapter == "mood" else "summarization"
        assert len(read_rows(Data(path=out), Columns(kind, objective), tmp_path / "cache")) > 0

    async def test_without_an_objective_is_read_as_a_log_is(
        self, judged: str, command: Command, tmp_path: Path, tiny_folder: Path
    ) -> None:
        assert command("export", "--adapter", "mood", "--out", tmp_path / "said.jsonl")[0] == 0
        made = Workplace(tmp_path, tiny_folder).run(
            *("data", "from-feedback", "said.jsonl", "--adapter", "mood", "--objective", "kto", "--out", "kto.jsonl")
        )
        assert made.status == 0, made.err
        _, direct, _ = command("export", "--adapter", "mood", "--objective", "kto")
        assert (tmp_path / "kto.jsonl").read_text() == direct
        assert list(rows_for("kto", read_log([tmp_path / "said.jsonl"], "mood")))

    async def test_rows_for_an_objective_are_no_log_and_that_is_said(
        self, judged: str, command: Command, tmp_path: Path, tiny_folder: Path
    ) -> None:
        command("export", "--adapter", "mood", "--objective", "kto", "--out", tmp_path / "kto.jsonl")
        asked = ("data", "from-feedback", "kto.jsonl", "--adapter", "mood", "--out", "again.jsonl")
        refused = Workplace(tmp_path, tiny_folder).run(*asked)
        assert (refused.status, "trained on as they are" in refused.err) == (1, True)

    async def test_goes_to_standard_output_and_its_summary_elsewhere(self, judged: str, command: Command) -> None:
        status, out, err = command("export", "--adapter", "mood", "--json")
        assert (status, len([json.loads(line) for line in out.splitlines()])) == (0, 3)
        assert json.loads(err) == {"rows": 3, "without_text": 0, "out": None}

    @pytest.mark.parametrize(("since", "found"), [("7d", 3), ("1h", 3), ("2020-01-01", 3), ("2999-01-01", 0)])
    async def test_since_a_day_or_for_a_while(self, judged: str, command: Command, since: str, found: int) -> None:
        status, out, err = command("export", "--adapter", "mood", "--since", since)
        assert (len(out.splitlines()), status) == (found, 0 if found else 1), err

    @pytest.mark.parametrize("since", ["yesterday", "7", "999999d", "2026-13-01", ""])
    def test_since_nonsense_is_wrong_usage(self, command: Command, since: str) -> None:
        status, _, err = command("export", "--adapter", "mood", "--since", since)
        assert (status, "is no time such as" in err) == (2, True)

    async def test_of_texts_that_were_not_kept_says_how_to_keep_them(
        self, serve: Serve, place: str, command: Command
    ) -> None:
        async with serve(feedback_database=place, feedback_texts="hashed") as service:
            await judge(service, (await predicted(service))["id"], correct=True)
        status, _, err = command("export", "--adapter", "mood", "--database", place)
        assert (status, "HOTSWAP_FEEDBACK_TEXTS=plain" in err) == (1, True)

    async def test_of_nothing_says_so(self, judged: str, command: Command, tmp_path: Path) -> None:
        out = tmp_path / "rows.jsonl"
        assert "nothing was said of 'mod'" in command("export", "--adapter", "mod", "--out", out)[2]
        assert not out.exists()


async def test_stats_count_by_version(judged: str, command: Command) -> None:
    status, out, _ = command("stats", "--json")
    counted = [
        (row["adapter"], row["version"], row["predictions"], row["judged"], row["right"]) for row in json.loads(out)
    ]
    assert (status, counted) == (0, [("brief", 1, 1, 1, 0), ("mood", 1, 4, 3, 1)])
    assert command("stats")[1].split()[:5] == ["ADAPTER", "VERSION", "PREDICTIONS", "JUDGED", "RIGHT"]


class TestErase:
    async def test_takes_away_what_was_asked_for_a_caller(self, judged: str, command: Command) -> None:
        status, out, _ = command("erase", "--caller", "user-2", "--json")
        assert (status, json.loads(out)) == (0, {"caller": "user-2", "predictions": 2, "judgements": 2})
        assert {row["caller"] for row in rows(judged)} == {"user-1", None}
        assert command("export", "--adapter", "mood")[1].count("\n") == 1
        assert command("erase", "--caller", "user-2")[1] == "erased 0 predictions and 0 judgements\n"

    async def test_takes_away_what_a_key_asked_and_said(
        self, judged: str, command: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("service.monitoring.records.AT_ONCE", 2)
        _, out, _ = command("erase", "--caller", "anonymous")
        assert (out, rows(judged)) == ("erased 5 predictions and 4 judgements\n", [])

    async def test_leaves_nothing_in_the_file(self, serve: Serve, tmp_path: Path, command: Command) -> None:
        place = tmp_path / "feedback.db"
        async with serve(feedback_database=str(place), feedback_texts="plain") as service:
            await predicted(service, text="a secret of user-1", caller="user-1")
        command("erase", "--caller", "user-1", "--database", place)
        assert b"a secret" not in everything(place)


class TestADatabaseThatCannotBeUsed:
    """Each is one line, and exit status 1."""

    @pytest.fixture(params=["stats", "erase", "export"])
    def refused(self, request: pytest.FixtureRequest, command: Command) -> Callable[[object], str]:
        more = {"stats": (), "erase": ("--caller", "a"), "export": ("--adapter", "a")}[request.param]

        def run(place: object) -> str:
            status, out, err = command(request.param, *more, "--database", place)
            assert (status, out, err.count("\n")) == (1, "", 1), err
            return err

        return run

    def test_missing(self, refused: Callable[[object], str], tmp_path: Path) -> None:
        assert "there is no feedback database at" in refused(tmp_path / "nowhere.db")
        assert not (tmp_path / "nowhere.db").exists()

    def test_missing_where_the_settings_say(self, command: Command, tmp_path: Path) -> None:
        status, _, err = command("stats")
        assert (status, f"there is no feedback database at {tmp_path}/cache/feedback/store-" in err) == (1, True)

    def test_off(self, refused: Callable[[object], str]) -> None:
        assert "nothing is kept" in refused("off")

    def test_unreachable(self, refused: Callable[[object], str]) -> None:
        told = refused("postgresql://ann:secret@127.0.0.1:1/feedback")
        assert "cannot be used" in told
        assert "secret" not in told

    @pytest.mark.parametrize(
        "url", ["mysql://ann:secret@host/feedback", "sqlite://", "postgresql://ann:secret@host:x/f"]
    )
    def test_no_address(self, refused: Callable[[object], str], url: str) -> None:
        told = refused(url)
        assert "postgresql://user:password@host/database" in told
        assert "secret" not in told

    def test_not_there_on_the_server(self, refused: Callable[[object], str], postgres: PostgresServer) -> None:
        assert 'database "nowhere" does not exist' in refused(postgres.url("nowhere"))

    def test_no_database(self, refused: Callable[[object], str], tmp_path: Path) -> None:
        (tmp_path / "feedback.db").write_text("something else " * 100)
        assert "file is not a database" in refused(tmp_path / "feedback.db")

    def test_older(self, refused: Callable[[object], str], tmp_path: Path) -> None:
        with closing(sqlite3.connect(tmp_path / "feedback.db")) as connection:
            connection.execute("CREATE TABLE something_else (id)")
        assert "of an older version; start the service" in refused(tmp_path / "feedback.db")

    def test_newer(self, refused: Callable[[object], str], place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        kept = Database(place)
        kept.prepare()
        from sqlalchemy import text

        with kept.writing() as connection:
            connection.execute(text("UPDATE feedback_schema SET version_num = '9999'"))
        assert "made by a newer version of hotswap" in refused(place)


def test_without_psycopg_says_how_to_install_it(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert "pip install 'hotswap[postgres]'" in command("stats", "--database", "postgresql://host/feedback")[2]


def test_without_presidio_a_service_that_is_to_redact_does_not_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from adapters import personal

    personal._recognizers.cache_clear()
    given: dict[str, Any] = {"PORT": 0, "ENGINE": "fake", "BASE_MODEL": tiny_folder, "FEEDBACK_TEXTS": "redacted"}
    for name, value in {**given, "STORE": tmp_path / "store", "CACHE": tmp_path}.items():
        monkeypatch.setenv(f"HOTSWAP_{name}", str(value))
    monkeypatch.setitem(sys.modules, "presidio_analyzer", None)
    monkeypatch.setattr(sys, "argv", ["service"])
    assert program.main() == 1
    assert (
        "HOTSWAP_FEEDBACK_TEXTS=redacted needs presidio_analyzer: pip install 'hotswap[redacted]'"
        in capsys.readouterr().err
    )
