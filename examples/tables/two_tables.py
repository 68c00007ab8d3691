"""The same with two tables: a basket and its items come in one message and are stored in one transaction.

    python -m deimos_async run tables.two_tables:app --embedded    # in this folder's parent; nothing else to install

What a new message of a basket no longer lists is deleted (`replace_associations`).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from deimos_async import Deimos, Key, ModelConsumer

app = Deimos({"schema.path": str(Path(__file__).resolve().parents[2] / "schemas")})
baskets = app.topic("baskets", schema="com.acme.Basket", key=Key.field("basket_id"), partitions=3)


class Base(DeclarativeBase):
    """The tables."""


class BasketRow(Base):
    """A basket."""

    __tablename__ = "baskets"
    basket_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    customer: Mapped[str] = mapped_column(String(100))
    items: Mapped[list["ItemRow"]] = relationship(cascade="all, delete-orphan", passive_deletes=True)


class ItemRow(Base):
    """A product in a basket, and how often."""

    __tablename__ = "basket_items"
    basket_id: Mapped[int] = mapped_column(ForeignKey("baskets.basket_id", ondelete="CASCADE"), primary_key=True)
    product: Mapped[str] = mapped_column(String(100), primary_key=True)
    quantity: Mapped[int]


@app.consumer(baskets, group="copies", batch=True, delivery="effectively_once")
class CopyBaskets(ModelConsumer[BasketRow]):
    """Rows of the second table are a list of dicts under the relationship's name."""

    replace_associations = True

    def record_attributes(self, payload: Any, key: Any) -> Mapping[str, Any]:
        return {"customer": payload["customer"], "items": payload["items"]}
