"""kafka_retries: messages that wait for their next attempt, with then="retry_keyed"."""

from __future__ import annotations

import sqlalchemy as sa

from deimos_async.database.migrations.steps import any_bytes, create_table, drop_table, exact_text, moment

revision = "deimos_0002"
down_revision = "deimos_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    create_table(
        "kafka_retries",
        sa.Column("consumer_group", exact_text(191), nullable=False),
        sa.Column("topic", exact_text(249), nullable=False),
        sa.Column("topic_partition", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("record_offset", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("topic_id", exact_text(36)),
        sa.Column("key_hash", sa.BigInteger),
        sa.Column("record_key", any_bytes()),
        sa.Column("record_value", any_bytes()),
        sa.Column("record_headers", any_bytes(), nullable=False),
        sa.Column("record_timestamp", sa.BigInteger),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_at", moment(), nullable=False),
        sa.Column("first_failed_at", moment()),
        sa.Column("error_class", exact_text(255)),
        sa.Column("error_message", exact_text(1000)),
        sa.PrimaryKeyConstraint("consumer_group", "topic", "topic_partition", "record_offset"),
    )


def downgrade() -> None:
    """Drop it, with the messages that wait in it."""
    drop_table("kafka_retries")
