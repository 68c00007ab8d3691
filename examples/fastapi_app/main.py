"""Orders over HTTP: a row and its message in one transaction, by the outbox.

    pip install fastapi uvicorn
    DEIMOS_EMBEDDED=true uvicorn fastapi_app.main:api    # in this folder's parent; all else is in the process

On Kafka, with a database of your own:

    export DEIMOS_KAFKA__BOOTSTRAP_SERVERS=... DEIMOS_SCHEMA__REGISTRY_URL=... DEIMOS_DATABASE__URL=...
    alembic -c ../alembic.ini upgrade heads              # the table of this example, and those of the framework
    python -m deimos_async topics create fastapi_app.main:app
    uvicorn fastapi_app.main:api

Where there is no Alembic environment that has the framework's tables too, as this project's has, they are made by
`python -m deimos_async migrate fastapi_app.main:app`. An embedded run makes all tables by itself.

Nothing is sent by those who call the web application. They commit rows: the order, and the message that tells of it.
The lifespan runs a pump beside the consumer, which sends what was committed; any number of such processes share the
work, and what one that was killed has left is sent by the others, or by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from fastapi import FastAPI, HTTPException, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import DateTime, Numeric, String
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from deimos_async import Deimos, KafkaSource, Key, Message, ModelProducer, Producer

SCHEMAS = Path(__file__).resolve().parents[2] / "schemas"
app = Deimos({"schema.path": str(SCHEMAS), "producers.backend": "outbox"})

orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"))
invoices = app.topic("invoices", schema="com.acme.Invoice", key=Key.field("order_id"))


class Base(DeclarativeBase):
    """The application's tables."""


class OrderRow(Base, KafkaSource):
    """An order and how far it is. What changes of it is sent: a table becomes a topic."""

    __tablename__ = "orders"
    order_id: Mapped[int] = mapped_column("id", primary_key=True)
    item: Mapped[str] = mapped_column(String(100))
    total: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    country: Mapped[str] = mapped_column(String(2))
    placed_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=lambda: datetime.now(UTC))
    state: Mapped[str] = mapped_column(String(10), default="placed")

    @classmethod
    def kafka_producers(cls) -> Sequence[Producer]:
        """Who is told of changes."""
        return [order_events]


class OrderEvents(ModelProducer[OrderRow]):
    """Nothing is left to say: attributes have the names of fields. `state` is none, so its changes are not sent."""


order_events = app.producer(orders, OrderEvents)
to_invoices = app.producer(invoices)


class OrderIn(BaseModel):
    """What a client sends."""

    item: str = Field(min_length=1, max_length=100)
    total: Decimal = Field(gt=0, max_digits=12, decimal_places=2)
    country: str = Field(pattern="^[A-Z]{2}$")


class OrderOut(BaseModel):
    """What a client gets."""

    model_config = ConfigDict(from_attributes=True)

    order_id: int
    item: str
    total: Decimal
    country: str
    state: str


class Order(BaseModel):
    """The payload of `com.acme.Order`, as the handler wants it."""

    order_id: int
    total: Decimal


@app.consumer(orders, group="packing", delivery="effectively_once")
async def pack(message: Message[Order | None], session: AsyncSession) -> None:
    """Pack what was ordered. Row, invoice and offset are one transaction, which commits when this returns."""
    row = await session.get(OrderRow, message.key)
    if message.payload is None or row is None or row.state == "packed":
        return  # cancelled, or told of again
    row.state = "packed"
    await to_invoices.produce({"order_id": message.payload.order_id, "amount": message.payload.total})


# Starts producers, pump and consumer with the web application, and drains them at its end.
api = FastAPI(title="Orders", lifespan=app.lifespan)


@api.post("/orders", status_code=201)
async def place(order: OrderIn) -> OrderOut:
    """Place an order. Its message is stored with it, when the block commits."""
    async with app.transaction() as session:
        row = OrderRow(**order.model_dump())
        session.add(row)
    return OrderOut.model_validate(row)


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
    # Any AsyncSession does, also a dependency's: it is the row that is a source.
    async with app.session() as session, session.begin():
        row = await session.get(OrderRow, order_id)
        if row is None:
            raise HTTPException(404, f"there is no order {order_id}")
        await session.delete(row)
    return Response(status_code=204)
