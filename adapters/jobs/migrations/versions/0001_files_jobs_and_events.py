"""Files, jobs, and what is told of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "jobs_files",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("filename", sa.String(255), nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("rows", sa.Integer, nullable=False),
        sa.Column("paired", sa.Boolean, nullable=False),
    )
    op.create_index("ix_jobs_files_owner", "jobs_files", ["owner"])
    op.create_table(
        "jobs_jobs",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("owner", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("status", sa.String(32), nullable=False),
        sa.Column("publishing", sa.Boolean, nullable=False, server_default=sa.false()),
        sa.Column("model", sa.String(200), nullable=False),
        sa.Column("base", sa.String(80), nullable=False),
        sa.Column("start_from", sa.String(100)),
        sa.Column("adapter", sa.String(64), nullable=False),
        sa.Column("release", sa.String(16), nullable=False),
        sa.Column("training_file", sa.String(64), nullable=False),
        sa.Column("validation_file", sa.String(64)),
        sa.Column("method", sa.JSON, nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("metadata", sa.JSON(none_as_null=True)),
        sa.Column("worker", sa.String(128)),
        sa.Column("lease", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False, server_default="0"),
        sa.Column("error", sa.JSON(none_as_null=True)),
        sa.Column("result", sa.JSON(none_as_null=True)),
        sa.Column("fine_tuned_model", sa.String(100)),
        sa.Column("trained_tokens", sa.BigInteger),
        sa.Column("estimated_finish", sa.BigInteger),
        sa.Column("finished_at", sa.BigInteger),
    )
    for column in ("owner", "status"):
        op.create_index(f"ix_jobs_jobs_{column}", "jobs_jobs", [column])
    op.create_table(
        "jobs_events",
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("id", sa.String(64), nullable=False, unique=True),
        sa.Column("job", sa.String(64), sa.ForeignKey("jobs_jobs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("level", sa.String(8), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("data", sa.JSON(none_as_null=True)),
    )
    op.create_index("ix_jobs_events_job", "jobs_events", ["job"])
