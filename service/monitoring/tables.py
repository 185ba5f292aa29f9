"""The tables of the feedback database. They are made and changed by ``migrations`` only."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    func,
)

SCHEMA_TABLE = "feedback_schema"
metadata = MetaData(naming_convention={"ix": "ix_%(table_name)s_%(column_0_name)s"})

# Times are the database's own: replicas' clocks differ, and jump.
predictions = Table(
    "feedback_predictions",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now(), index=True),
    Column("adapter", String(100), nullable=False),
    Column("version", Integer, nullable=False),
    Column("task", String(32), nullable=False),
    Column("routed", Boolean, nullable=False),
    Column("asked_by", String(64), nullable=False, index=True),  # the key's name
    Column("caller", String(200), index=True),  # as the request named one
    Column("form", String(16), nullable=False),  # of texts and summaries: HOTSWAP_FEEDBACK_TEXTS
    Column("answers", JSON(none_as_null=True), nullable=False),
    Column("texts", JSON(none_as_null=True)),
    Column("counted", Boolean, nullable=False, server_default=false()),  # as evidence about a canary
)

# The key is what counts an answer once, whichever replicas are told of it.
judgements = Table(
    "feedback_judgements",
    metadata,
    Column("prediction", String(64), ForeignKey(predictions.c.id, ondelete="CASCADE"), primary_key=True),
    Column("item", Integer, primary_key=True, autoincrement=False),
    Column("at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    Column("said_by", String(64), nullable=False),
    Column("right", Boolean, nullable=False),
    Column("better", Text),
)
