"""The tables of files, jobs and their events. They are made and changed by ``migrations`` only.

Times are seconds since 1970 by the database's clock: those of workers and replicas differ, and jump. ``number`` is the
order in which rows came.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
)

SCHEMA_TABLE = "jobs_schema"
metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s"})

files = Table(
    "jobs_files",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False, index=True),  # the key's name
    Column("created_at", BigInteger, nullable=False),
    Column("filename", String(255), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("paired", Boolean, nullable=False),  # whether the rows hold a better and a worse answer
)

jobs = Table(
    "jobs_jobs",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("owner", String(64), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("status", String(32), nullable=False, index=True),
    Column("publishing", Boolean, nullable=False, server_default=false()),  # from here on there is no way back
    Column("model", String(200), nullable=False),  # as it was asked for
    Column("base", String(80), nullable=False),  # the base's digest
    Column("start_from", String(100)),  # the version whose LoRA is trained further
    Column("adapter", String(64), nullable=False),
    Column("release", String(16), nullable=False),
    Column("training_file", String(64), nullable=False),
    Column("validation_file", String(64)),
    Column("method", JSON, nullable=False),
    Column("seed", Integer, nullable=False),
    Column("metadata", JSON(none_as_null=True), key="labels"),  # "metadata" is SQLAlchemy's own
    Column("worker", String(128)),
    Column("lease", BigInteger),  # until then the job is the worker's
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("error", JSON(none_as_null=True)),
    Column("result", JSON(none_as_null=True)),  # steps and losses, once there are
    Column("fine_tuned_model", String(100)),
    Column("trained_tokens", BigInteger),
    Column("estimated_finish", BigInteger),
    Column("finished_at", BigInteger),
)

events = Table(
    "jobs_events",
    metadata,
    Column("number", Integer, primary_key=True),
    Column("id", String(64), nullable=False, unique=True),
    Column("job", String(64), ForeignKey(jobs.c.id, ondelete="CASCADE"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("level", String(8), nullable=False),
    Column("type", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("data", JSON(none_as_null=True)),
)
