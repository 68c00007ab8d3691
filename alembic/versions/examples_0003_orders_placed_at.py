"""Orders of the FastAPI example say when they were placed."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "examples_0003"
down_revision = "examples_0002"
branch_labels = None
depends_on = None

ORDERS = sa.Table(
    "orders",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("item", sa.String(100), nullable=False),
    sa.Column("total", sa.Numeric(12, 2), nullable=False),
    sa.Column("country", sa.String(2), nullable=False),
    sa.Column("state", sa.String(10), nullable=False),
)


def upgrade() -> None:
    """Add the column; orders that are there were placed now, as nobody knows better."""
    # SQLite adds no column with such a default to a table: it is copied, also where SQL is only printed.
    with op.batch_alter_table("orders", copy_from=ORDERS) as table:
        table.add_column(
            sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now())
        )


def downgrade() -> None:
    """Drop it."""
    op.drop_column("orders", "placed_at")
