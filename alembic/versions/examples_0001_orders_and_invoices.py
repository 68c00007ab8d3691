"""Tables of the examples: invoices of the shop, orders of the FastAPI application."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "examples_0001"
down_revision = None
branch_labels = ("examples",)
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "invoices",
        sa.Column("order_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("amount", sa.Numeric(12, 2), nullable=False),
        sa.Column("booked_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("item", sa.String(100), nullable=False),
        sa.Column("total", sa.Numeric(12, 2), nullable=False),
        sa.Column("country", sa.String(2), nullable=False),
        sa.Column("state", sa.String(10), nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("orders")
    op.drop_table("invoices")
