"""kafka_offsets: where consumers with delivery="effectively_once" go on."""

from __future__ import annotations

import sqlalchemy as sa

from deimos_async.database.migrations.steps import create_table, drop_table, exact_text

revision = "deimos_0001"
down_revision = None
branch_labels = ("deimos",)
depends_on = None


def upgrade() -> None:
    """Make the table."""
    create_table(
        "kafka_offsets",
        sa.Column("consumer_group", exact_text(191), nullable=False),
        sa.Column("topic", exact_text(249), nullable=False),
        sa.Column("topic_partition", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("topic_id", exact_text(36)),
        sa.Column("next_offset", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("consumer_group", "topic", "topic_partition"),
    )


def downgrade() -> None:
    """Drop it, with the offsets."""
    drop_table("kafka_offsets")
