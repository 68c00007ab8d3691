"""Orders over HTTP: a row and a message in one transaction.

    pip install fastapi uvicorn
    DEIMOS_EMBEDDED=true uvicorn fastapi_app.main:api      # in this folder's parent; all of it in memory but the table
    uvicorn fastapi_app.main:api                           # Kafka at DEIMOS_KAFKA__BOOTSTRAP_SERVERS

The message leaves when the transaction commits and never when it rolls back. Between commit and sending a crash can
lose it; an outbox closes that gap, which this version does not have yet.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Numeric, String
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from deimos_async import Deimos, Key, Message

# An engine of the application's own, which the handlers' sessions use too. Without one: the setting `database.url`.
engine = create_async_engine(os.environ.get("ORDERS_DATABASE_URL", "sqlite+aiosqlite:///orders.sqlite3"))
app = Deimos({"schema.path": str(Path(__file__).resolve().parents[2] / "schemas")}, engine=engine)

orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"))
to_orders = app.producer(orders)


class Base(DeclarativeBase):
    """The application's tables."""


class OrderRow(Base):
    """An order and how far it is."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str] = mapped_column(String(100))
    total: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    country: Mapped[str] = mapped_column(String(2))
    state: Mapped[str] = mapped_column(String(10), default="placed")


class OrderIn(BaseModel):
    """What a client sends."""

    item: str = Field(min_length=1, max_length=100)
    total: Decimal = Field(gt=0, max_digits=12, decimal_places=2)
    country: str = Field(pattern="^[A-Z]{2}$")


class OrderOut(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    item: str
    total: Decimal
    country: str
    state: str


class Order(BaseModel):
    """The payload of `com.acme.Order`, as the handler wants it."""

    order_id: int
    item: str
    total: Decimal


@app.consumer(orders, group="packing")
async def pack(message: Message[Order], session: AsyncSession) -> None:
    """Pack what was ordered. The transaction commits when this returns; only then does the message count as handled."""
    row = await session.get(OrderRow, message.key)
    if row is None or message.is_tombstone:
        return
    row.state = "packed"


@asynccontextmanager
async def lifespan(api: FastAPI) -> AsyncIterator[None]:
    """Tables first, then all else. With migrations, as in `alembic/versions`, `app.lifespan` is enough."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with app.lifespan(api):
        yield


api = FastAPI(title="Orders", lifespan=lifespan)


@api.post("/orders", status_code=201)
async def place(order: OrderIn) -> OrderOut:
    """Place an order."""
    async with app.transaction() as session:
        row = OrderRow(item=order.item, total=order.total, country=order.country, state="placed")
        session.add(row)
        await session.flush()  # gives the row its id
        await to_orders.produce(
            {
                "order_id": row.id,
                "item": row.item,
                "total": row.total,
                "country": row.country,
                "placed_at": datetime.now(UTC),
            }
        )
        return OrderOut.model_validate(row)  # sent to the client after the commit


@api.get("/orders/{order_id}")
async def look_up(order_id: int) -> OrderOut:
    """See how far an order is."""
    async with app.session() as session:
        row = await session.get(OrderRow, order_id)
    if row is None:
        raise HTTPException(404, f"there is no order {order_id}")
    return OrderOut.model_validate(row)


@api.delete("/orders/{order_id}", status_code=204)
async def cancel(order_id: int) -> Response:
    """Cancel an order: its row goes, and a tombstone follows it into the topic."""
    # A session of one's own (a dependency's, say) is given by `session=`; its commit lets the message go.
    async with app.session() as session, session.begin():
        row = await session.get(OrderRow, order_id)
        if row is None:
            raise HTTPException(404, f"there is no order {order_id}")
        await session.delete(row)
        await to_orders.delete(order_id, session=session)
    return Response(status_code=204)
