"""A topic becomes a table: each order of the topic is a row, and a tombstone deletes it.

    python -m deimos_async run tables.one_table:app --embedded    # in this folder's parent; nothing else to install

With Kafka and a database of your own: DEIMOS_KAFKA__BOOTSTRAP_SERVERS, DEIMOS_DATABASE__URL, and once
`python -m deimos_async migrate tables.one_table:app` for the table in which the offsets are kept.
"""

from datetime import datetime
from decimal import Decimal
from pathlib import Path

from sqlalchemy import BigInteger, DateTime, Numeric, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from deimos_async import Deimos, Key, ModelConsumer

app = Deimos({"schema.path": str(Path(__file__).resolve().parents[2] / "schemas")})
orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"), partitions=3)


class Base(DeclarativeBase):
    """The tables."""


class OrderCopy(Base):
    """An order. Fields of the topic that are no columns are left out."""

    __tablename__ = "order_copies"
    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    item: Mapped[str] = mapped_column(String(100))
    total: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


@app.consumer(orders, group="copies", batch=True, delivery="effectively_once")
class CopyOrders(ModelConsumer[OrderCopy]):
    """Nothing is left to say: columns have the names of fields."""
