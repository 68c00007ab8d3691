"""deimos_poll_failures: rows that a poller could not send, to be tried again."""

from __future__ import annotations

import sqlalchemy as sa

from deimos_async.database.migrations.steps import (
    any_text,
    create_index,
    create_table,
    drop_table,
    exact_text,
    moment,
    row_number,
)

revision = "deimos_0004"
down_revision = "deimos_0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    create_table(
        "deimos_poll_failures",
        sa.Column("id", row_number(), autoincrement=True, nullable=False),
        sa.Column("poller", exact_text(191), nullable=False),
        sa.Column("record_key", any_text(), nullable=False),
        sa.Column("producers", any_text(), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", moment(), nullable=False),
        sa.Column("first_failed_at", moment(), nullable=False),
        sa.Column("error_class", exact_text(255)),
        sa.Column("error_message", exact_text(1000)),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    create_index("index_deimos_poll_failures_on_poller", "deimos_poll_failures", ["poller"])


def downgrade() -> None:
    """Drop it; rows that wait in it are not tried again."""
    drop_table("deimos_poll_failures")
