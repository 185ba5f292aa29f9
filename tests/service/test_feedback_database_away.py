"""The feedback database goes away, hangs, fills up, is damaged or of another version: nobody's answer waits for it."""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from adapters import database as reached
from service.monitoring import database, writer
from service.monitoring.database import Database, DatabaseAway
from service.monitoring.tables import SCHEMA_TABLE, judgements, metadata
from tests.postgres import PostgresServer
from tests.server import serving
from tests.service.conftest import Serve, until
from tests.service.test_feedback_database import _tried_again_soon as _tried_again_soon
from tests.service.test_feedback_database import counted, judge, predicted, rows, up, written
from tests.service.test_feedback_database import place as place

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]
UNKNOWN = "pred_01JD0000000000000000000000"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "VERDICT_SECONDS", 0.05)
    monkeypatch.setattr("service.monitoring.feedback.LOOK_SECONDS", 0.5)


def changed(place: str, *statements: str) -> None:
    """Do something to a database as an operator would."""
    if "://" in place:
        with psycopg.connect(place, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)
    else:
        with closing(sqlite3.connect(place, isolation_level=None, timeout=20)) as connection:
            for statement in statements:
                connection.execute(statement)


@contextmanager
def stopped(place: str, postgres: PostgresServer) -> Any:
    with postgres.away():
        yield


@contextmanager
def locked(place: str, _: Any) -> Any:
    """Have every statement wait: somebody repairs the database, or a backup of it hangs."""
    connect = psycopg.connect if "://" in place else sqlite3.connect
    lock = "LOCK TABLE feedback_predictions" if "://" in place else "BEGIN IMMEDIATE"
    with closing(connect(place)) as connection:
        connection.execute(lock)
        yield
        connection.rollback()


@contextmanager
def read_only(place: str, _: Any) -> Any:
    name = place.rpartition("/")[2]
    changed(place, f"ALTER DATABASE {name} SET default_transaction_read_only = on", hang_up(name))
    yield
    server = place.replace(name, "postgres")
    changed(server, f"ALTER DATABASE {name} RESET default_transaction_read_only", hang_up(name))


def exchange(one: Path, other: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE."""
    here, exchanged = -100, 2
    if ctypes.CDLL(None, use_errno=True).renameat2(here, bytes(one), here, bytes(other), exchanged) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), one)


@contextmanager
def gone(place: str, _: Any) -> Any:
    """The volume is not there. Exchanged at once: between two steps the service would make a folder of its own."""
    folder, elsewhere = Path(place).parent, Path(place).parent.with_name("elsewhere")
    elsewhere.write_text("in the way")
    exchange(folder, elsewhere)
    yield
    exchange(folder, elsewhere)


@contextmanager
def overwritten(place: str, _: Any) -> Any:
    kept = Path(place).with_name("sound.db")
    with closing(sqlite3.connect(place)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copy(place, kept)
    scratch = Path(place).with_name("damaged.db")
    scratch.write_bytes(b"this is no database " * 1000)
    scratch.replace(place)
    yield
    for rest in ("-wal", "-shm"):
        Path(place + rest).unlink(missing_ok=True)
    kept.replace(place)


def hang_up(name: str) -> str:
    return (
        f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}' AND pid <> pg_backend_pid()"
    )


Trouble = Callable[[str, Any], AbstractContextManager[None]]
TROUBLES: list[tuple[str, Trouble]] = [
    ("postgresql", stopped),
    ("postgresql", locked),
    ("postgresql", read_only),
    ("sqlite", locked),
    ("sqlite", gone),
    ("sqlite", overwritten),
]


@pytest.mark.parametrize(
    ("place", "trouble"), TROUBLES, indirect=["place"], ids=[f"{kind}-{trouble.__name__}" for kind, trouble in TROUBLES]
)
async def test_meanwhile_memory_does_and_afterwards_all_is_there(
    serve: Serve, place: str, trouble: Trouble, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reached, "LOCK_SECONDS", 1)
    async with serve(feedback_database=place) as service, serve(feedback_database=place) as other:
        before = (await predicted(service))["id"]
        await written(service, 1)
        await up(other, 1)
        with trouble(place, postgres):
            meanwhile = (await predicted(service))["id"]
            for prediction in (before, meanwhile, meanwhile):
                assert (await judge(service, prediction, correct=True)).status_code == 200
            assert await counted(service, "right") == 2, "at once, and once"
            if trouble is not locked or "://" in place:  # SQLite's readers pass by a writer
                waiting = await judge(other, before, correct=True)
                assert (waiting.status_code, waiting.json()["code"]) == (503, "feedback_unavailable")
                assert int(waiting.headers["Retry-After"]) > 0
                if trouble is not read_only:
                    assert (await judge(other, UNKNOWN, correct=True)).json() == waiting.json(), "who knows?"
                await predicted(other)
                await up(other, 0)
            await up(service, 0)
        await written(service, 4)
        await up(other, 1)
        for prediction in (before, meanwhile):
            assert (await judge(other, prediction, correct=True)).status_code == 200
        assert await counted(other) == 0
    assert {row["prediction"] for row in rows(place, judgements)} == {before, meanwhile}


async def test_what_there_is_no_room_for_is_shed_and_counted(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MOST", 5)
    monkeypatch.setattr(writer, "BATCH", 2)
    place = str(tmp_path / "feedback.db")
    async with serve(feedback_database=place) as service:
        await up(service, 1)
        with locked(place, None):
            made = [(await predicted(service))["id"] for _ in range(20)]
            shed = await service.metric("hotswap_feedback_writes_total", outcome="shed")
            queued = await service.metric("hotswap_feedback_queue")
            assert shed + queued == 20
            assert queued <= 7, "a batch, and the queue"
            for prediction in made:
                assert (await judge(service, prediction, correct=True)).status_code == 200
            assert await counted(service) == 20
        await until(lambda: len(rows(place)) == queued)
        assert {row["prediction"] for row in rows(place, judgements)} <= {row["id"] for row in rows(place)}


async def test_a_disk_that_is_full_costs_no_answer(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reached, "PRAGMAS", ("foreign_keys=ON", "max_page_count=20"))
    monkeypatch.setattr(reached, "PAGE_BYTES", 2**60 // 20)  # as many as the file's own limit
    async with serve(feedback_database=str(tmp_path / "feedback.db"), feedback_texts="plain") as service:
        for _ in range(50):
            told = await predicted(service, text="x" * 4000)
            assert (await judge(service, told["id"], correct=True)).status_code == 200
        await until(lambda: "disk is full" in caplog.text)
        await up(service, 0)
        assert await counted(service) == 50


async def test_a_file_that_may_not_be_written_is_said_and_costs_no_answer(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    place = str(tmp_path / "feedback.db")
    Database(place).prepare()
    monkeypatch.setattr(reached, "PRAGMAS", ("query_only=ON",))
    async with serve(feedback_database=place) as service:
        told = await predicted(service)
        assert (await judge(service, told["id"], correct=True)).status_code == 200
        assert await counted(service) == 1
        await until(lambda: "attempt to write a readonly database; feedback is counted from memory" in caplog.text)


async def test_a_place_that_is_no_folder_is_said_and_costs_no_answer(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    async with serve(feedback_database=str(tmp_path / "file" / "feedback.db")) as service:
        told = await predicted(service)
        assert (await judge(service, told["id"], correct=True)).status_code == 200
        await until(lambda: "cannot be used" in caplog.text)


async def test_a_row_that_the_database_refuses_costs_only_itself(
    serve: Serve, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    formed = writer.formed
    monkeypatch.setattr(
        writer, "formed", lambda row, form: {**formed(row, form), "task": None if row["caller"] else "t"}
    )
    async with serve(feedback_database=place) as service:
        bodies: list[dict[str, Any]] = [{}, {"caller": "bad"}, {}]
        for body in bodies:
            await predicted(service, **body)
        await written(service, 2)
        assert await service.metric("hotswap_feedback_writes_total", outcome="failed") == 1
    assert len(rows(place)) == 2


async def test_a_fault_of_ours_does_not_end_the_writing(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faults = [RuntimeError("nobody thought of it")]

    def failing(*arguments: Any) -> int:
        if faults:
            raise faults.pop()
        return 0

    monkeypatch.setattr("service.monitoring.records.make_room", failing)
    async with serve(feedback_database=str(tmp_path / "feedback.db")) as service:
        await predicted(service)
        await written(service, 1)
    assert "nobody thought of it" in caplog.text


async def test_a_password_is_nowhere(serve: Serve, postgres: PostgresServer, caplog: pytest.LogCaptureFixture) -> None:
    place = postgres.url("nowhere")
    async with serve(feedback_database=place) as service:
        await until(lambda: "cannot be used" in caplog.text)
        assert (await judge(service, UNKNOWN, correct=True)).status_code == 503
    assert "nowhere" in caplog.text
    assert "secret" not in caplog.text


def test_what_was_answered_before_a_kill_can_be_judged_after_it(
    tmp_path: Path, stocked: Any, tiny_folder: Path
) -> None:
    settings = {
        "engine": "fake",
        "store": stocked.place,
        "base_model": str(tiny_folder),
        "cache": str(tmp_path / "cache"),
        "feedback_database": str(tmp_path / "feedback.db"),
    }
    made: list[str] = []
    with serving(tmp_path / "log", **settings) as server:
        told = server.predict("mood", "A film.")
        assert server.client.post("/v1/feedback", json={"id": told["id"], "correct": True}).status_code == 200
        made += [server.predict("mood", "A film.")["id"] for _ in range(20)]
        server.process.kill()
        server.process.wait()
    with serving(tmp_path / "log", **settings) as server:
        known = {row["id"] for row in rows(settings["feedback_database"])}
        assert told["id"] in known, "it was said that the judgement is taken"
        for prediction in (told["id"], *made):
            said = server.client.post("/v1/feedback", json={"id": prediction, "correct": True})
            assert said.status_code == (200 if prediction in known else 404)


class TestSchema:
    @pytest.fixture
    def next_version(self, tmp_path: Path) -> Path:
        """The migrations of a later version, which adds a column."""
        folder = tmp_path / "migrations"
        shutil.copytree(database.MIGRATIONS, folder)
        (folder / "versions" / "9999_later.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n"
            "revision, down_revision = '9999', '0001'\n\n"
            "def upgrade():\n    op.add_column('feedback_predictions', sa.Column('later', sa.String(5)))\n"
        )
        return folder

    def test_is_what_the_tables_say(self, place: str) -> None:
        kept = Database(place)
        kept.prepare()
        with kept.reading() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": SCHEMA_TABLE})
            assert compare_metadata(context, metadata) == []

    def test_is_made_once_by_replicas_that_start_together(self, place: str) -> None:
        failed: list[DatabaseAway] = []
        together = threading.Barrier(6)

        def start() -> None:
            replica = Database(place)
            together.wait()
            try:
                replica.prepare()
            except DatabaseAway as error:
                failed.append(error)
            replica.close()

        replicas = [threading.Thread(target=start) for _ in range(6)]
        for replica in replicas:
            replica.start()
        for replica in replicas:
            replica.join()
        assert failed == []
        Database(place).check()

    async def test_of_an_older_version_is_updated_with_what_is_in_it(
        self, serve: Serve, place: str, next_version: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with serve(feedback_database=place) as service:
            told = await predicted(service)
        monkeypatch.setattr(database, "MIGRATIONS", next_version)
        with pytest.raises(DatabaseAway, match="older version; start the service"):
            Database(place).check()
        async with serve(feedback_database=place) as service:
            await up(service, 1)
            assert (await judge(service, told["id"], correct=True)).status_code == 200
            assert await counted(service) == 1
        Database(place).check()

    async def test_of_a_newer_version_is_left_alone_and_said(
        self,
        serve: Serve,
        place: str,
        next_version: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        with monkeypatch.context() as later:
            later.setattr(database, "MIGRATIONS", next_version)
            Database(place).prepare()
        async with serve(feedback_database=place) as service:
            await until(lambda: "made by a newer version" in caplog.text)
            told = await predicted(service)
            assert (await judge(service, told["id"], correct=True)).status_code == 200
            assert await counted(service) == 1
        assert rows(place) == []
