"""The queue of fine-tuning jobs, on SQLite and on PostgreSQL."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from adapters.database import Database
from adapters.errors import NotKept, QuotaSpent, Untimely
from adapters.jobs.files import Files
from adapters.jobs.ids import new_id
from adapters.jobs.place import Place
from adapters.jobs.queue import Queue
from adapters.jobs.rows import check
from adapters.jobs.tables import SCHEMA_TABLE, metadata


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    where = request.getfixturevalue("postgres").make_database() if request.param == "postgres" else None
    opened = Place.of(tmp_path, "store", database=where).open()
    opened.prepare()
    return opened


def ask(queue: Queue, **changes: Any) -> str:
    asked = {
        **{"id": new_id("ftjob"), "owner": "ann", "model": "tiny", "base": "sha256:b", "adapter": "moods", "seed": 7},
        **{"release": "none", "training_file": "file-1", "method": {"type": "supervised", "hyperparameters": {}}},
    }
    return str(queue.add(asked | changes, 9)["id"])


def test_the_steps_make_the_tables_that_the_code_uses(database: Database) -> None:
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": SCHEMA_TABLE})
        ours = [each for each in compare_metadata(context, metadata) if "jobs_" in str(each)]
    assert ours == []


def test_a_job_is_one_workers_at_a_time_and_ends_once(database: Database) -> None:
    queue = Queue(database)
    id = ask(queue, labels={"team": "films"})
    assert queue.listed("ann", after=None, limit=9, labels={"team": "films"})[0][0]["id"] == id
    assert queue.listed("ann", after=None, limit=9, labels={"team": "plays"}) == ([], False)
    assert queue.claim("one", "sha256:other") is None
    assert queue.waiting() == {"sha256:b": 1}
    claimed = queue.claim("one", "sha256:b")
    assert claimed is not None
    assert (claimed["id"], claimed["status"], claimed["attempts"]) == (id, "validating_files", 1)
    assert queue.claim("two", "sha256:b") is None
    assert queue.begin(id, "one")
    assert not queue.keep(id, "two")
    assert queue.report(id, "one", "Step 1/2", data={"step": 1}, seconds_left=9.5)
    queue.let_go(id, "one", "stopped", count=False)
    again = queue.claim("two", "sha256:b")
    assert again is not None
    assert (again["status"], again["attempts"]) == ("running", 1)
    assert queue.publishing(id, "two")
    with pytest.raises(Untimely):
        queue.cancel(id, "ann")
    assert not queue.succeed(id, "one", fine_tuned_model="moods@1")
    assert queue.succeed(id, "two", fine_tuned_model="moods@1", result={"steps": 2}, trained_tokens=9)
    assert not queue.fail(id, "two", "late", "too late")
    told = [event["message"] for event in queue.events(id, after=None, limit=99)[0]]
    assert told.count("The job has successfully completed") == 1
    queue.let_go(id, "two")
    assert queue.finished([id, "ftjob-gone"]) == [id, "ftjob-gone"]


def test_a_file_stays_while_a_job_needs_it(database: Database, tmp_path: Path) -> None:
    files, queue = Files(database, tmp_path / "files"), Queue(database)
    files.prepare()
    part = files.take(io.BytesIO(b'{"text": "dull", "label": "negative"}\n'))
    kept = files.add(part, "ann", "rows.jsonl", check(part), 99)
    assert files.path(kept["id"]).is_file()
    second = files.take(io.BytesIO(b"x" * 99))
    with pytest.raises(QuotaSpent):
        files.add(second, "ann", "rows.jsonl", check(part.with_suffix("")), 99)
    job = ask(queue, training_file=kept["id"])
    with pytest.raises(Untimely):
        files.delete(kept["id"], "ann")
    queue.cancel(job, "ann")
    with pytest.raises(NotKept):
        files.delete(kept["id"], "ben")
    files.delete(kept["id"], "ann")
    assert not files.path(kept["id"]).exists()
