"""Tables of the example `tables`: copies of orders, baskets and their items."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "examples_0002"
down_revision = "examples_0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "order_copies",
        sa.Column("order_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("item", sa.String(100), nullable=False),
        sa.Column("total", sa.Numeric(12, 2), nullable=False),
        sa.Column("placed_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "baskets",
        sa.Column("basket_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("customer", sa.String(100), nullable=False),
    )
    op.create_table(
        "basket_items",
        sa.Column("basket_id", sa.BigInteger, sa.ForeignKey("baskets.basket_id", ondelete="CASCADE"), primary_key=True),
        sa.Column("product", sa.String(100), primary_key=True),
        sa.Column("quantity", sa.Integer, nullable=False),
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("basket_items")
    op.drop_table("baskets")
    op.drop_table("order_copies")
