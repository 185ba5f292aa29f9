"""Predictions, and what was said of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "feedback_predictions",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("adapter", sa.String(100), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("task", sa.String(32), nullable=False),
        sa.Column("routed", sa.Boolean, nullable=False),
        sa.Column("asked_by", sa.String(64), nullable=False),
        sa.Column("caller", sa.String(200)),
        sa.Column("form", sa.String(16), nullable=False),
        sa.Column("answers", sa.JSON(none_as_null=True), nullable=False),
        sa.Column("texts", sa.JSON(none_as_null=True)),
        sa.Column("counted", sa.Boolean, nullable=False, server_default=sa.false()),
    )
    for column in ("at", "asked_by", "caller"):
        op.create_index(f"ix_feedback_predictions_{column}", "feedback_predictions", [column])
    prediction = sa.ForeignKey("feedback_predictions.id", ondelete="CASCADE")
    op.create_table(
        "feedback_judgements",
        sa.Column("prediction", sa.String(64), prediction, primary_key=True),
        sa.Column("item", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("said_by", sa.String(64), nullable=False),
        sa.Column("right", sa.Boolean, nullable=False),
        sa.Column("better", sa.Text),
    )
