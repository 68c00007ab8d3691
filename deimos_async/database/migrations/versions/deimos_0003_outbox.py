"""kafka_messages, kafka_topic_info, deimos_poll_info, kafka_parked_messages: the outbox and the pollers.

Tables that a Deimos has made are taken over: they gain columns and keep their rows. They are told by its indexes, which
ours do not have; downgrading gives them back as they were, with the rows.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from deimos_async.database.migrations.steps import (
    Columns,
    any_bytes,
    any_text,
    create_index,
    create_table,
    drop_index,
    drop_table,
    exact_text,
    has_column,
    has_index,
    moment,
    plain_moment,
    remove_columns,
    row_number,
    utc_now,
)

revision = "deimos_0003"
down_revision = "deimos_0002"
branch_labels = None
depends_on = None

_SHARDS = "index_kafka_messages_on_shard_and_id"
_CHUNKS = "index_deimos_poll_info_on_name_and_chunk"


def upgrade() -> None:
    """Make the tables, or take them over."""
    create_table(
        "kafka_messages",
        sa.Column("id", row_number(), autoincrement=True, nullable=False),
        *_message(),
        sa.PrimaryKeyConstraint("id"),
        added=_added_to_message(),
        sqlite_autoincrement=True,
    )
    create_index(_SHARDS, "kafka_messages", ["shard", "id"])
    create_table(
        "kafka_topic_info",
        sa.Column("id", row_number(), autoincrement=True, nullable=False),
        sa.Column("topic", exact_text(255), nullable=False),
        sa.Column("locked_by", exact_text(255)),
        sa.Column("locked_at", plain_moment()),
        sa.Column("error", sa.Boolean, nullable=False, server_default="0"),
        sa.Column("retries", sa.Integer, nullable=False, server_default="0"),
        sa.Column("last_processed_at", plain_moment()),
        sa.PrimaryKeyConstraint("id"),
        added=_added_to_topic_info(),
        sqlite_autoincrement=True,
    )
    create_index("index_kafka_topic_info_on_topic", "kafka_topic_info", ["topic"], unique=True)
    create_table(
        "deimos_poll_info",
        sa.Column("id", row_number(), autoincrement=True, nullable=False),
        sa.Column("producer", exact_text(255), nullable=False),
        sa.Column("last_sent", plain_moment()),
        sa.Column("last_sent_id", sa.BigInteger),
        sa.PrimaryKeyConstraint("id"),
        added=_added_to_poll_info(),
        sqlite_autoincrement=True,
    )
    create_index(_CHUNKS, "deimos_poll_info", ["name", "chunk"], unique=True)
    create_table(
        "kafka_parked_messages",
        sa.Column("id", sa.BigInteger, autoincrement=False, nullable=False),
        *_message(),
        *_added_to_message(),
        sa.Column("error_code", exact_text(64)),
        sa.Column("error_text", exact_text(1000)),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("parked_at", moment(), nullable=False),
        sa.Column("releases_key", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def downgrade() -> None:
    """Drop them with the messages that wait in them; give back to Deimos what was its own."""
    drop_table("kafka_parked_messages")
    if has_index("deimos_poll_info", ["producer"]):
        drop_index(_CHUNKS, "deimos_poll_info")
        if has_column("deimos_poll_info", "name"):
            op.execute("DELETE FROM deimos_poll_info WHERE name IS NOT NULL")
        remove_columns("deimos_poll_info", *(column.name for column in _added_to_poll_info()))
    else:
        drop_table("deimos_poll_info")
    if has_index("kafka_topic_info", ["locked_by", "error"]):
        op.execute(
            "DELETE FROM kafka_topic_info WHERE topic = 'layout' OR topic LIKE 'slot-%' OR topic LIKE 'worker-%'"
        )
        remove_columns("kafka_topic_info", *(column.name for column in _added_to_topic_info()))
    else:
        drop_table("kafka_topic_info")
    if has_index("kafka_messages", ["topic", "id"]):
        drop_index(_SHARDS, "kafka_messages")
        remove_columns("kafka_messages", *(column.name for column in _added_to_message()))
    else:
        drop_table("kafka_messages")


def _message() -> Columns:
    """Deimos's columns of a stored message, but for its id."""
    return [
        sa.Column("topic", exact_text(255), nullable=False),
        sa.Column("message", any_bytes()),
        sa.Column("key", any_bytes()),
        sa.Column("partition_key", exact_text(255)),
        sa.Column("created_at", plain_moment(), nullable=False, server_default=utc_now()),
        sa.Column("updated_at", plain_moment(), nullable=False, server_default=utc_now()),
    ]


def _added_to_message() -> Columns:
    return [
        sa.Column("shard", sa.SmallInteger),
        sa.Column("order_hash", sa.Integer),
        sa.Column("order_key", any_bytes()),
        sa.Column("headers", any_text()),
        sa.Column("kafka_partition", sa.Integer),
        sa.Column("timestamp_ms", sa.BigInteger),
        sa.Column("message_id", exact_text(36)),
        sa.Column("size", sa.Integer),
    ]


def _added_to_topic_info() -> Columns:
    return [
        sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("expires_at", moment()),
    ]


def _added_to_poll_info() -> Columns:
    return [
        sa.Column("name", exact_text(191)),
        sa.Column("chunk", sa.Integer),
        sa.Column("range_from", any_text()),
        sa.Column("range_to", any_text()),
        sa.Column("cursor_time", any_text()),
        sa.Column("cursor_key", any_text()),
        sa.Column("state", exact_text(32)),
        sa.Column("owner", exact_text(64)),
        sa.Column("epoch", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("expires_at", moment()),
    ]
