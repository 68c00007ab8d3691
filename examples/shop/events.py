"""The shop's application: five consumers, two producers and a table.

    python -m deimos_async run shop.events:app --embedded      # in this folder's parent; nothing else to install
    python -m deimos_async run shop.events:app                 # Kafka at DEIMOS_KAFKA__BOOTSTRAP_SERVERS

`demo.py` runs it and orders something.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated

from sqlalchemy import BigInteger, DateTime, Numeric, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from deimos_async import Backoff, Deimos, Depends, Key, Message, OnError
from shop.carrier import Carrier, CarrierBusyError, UnknownCountryError

# The folder is given here so that the example runs from anywhere; an application usually leaves it to the settings.
app = Deimos({"schema.path": str(Path(__file__).resolve().parents[2] / "schemas")})

orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"), partitions=3)
invoices = app.topic("invoices", schema="com.acme.Invoice", key=Key.schema("com.acme.InvoiceKey"), partitions=3)
# Where orders go that a consumer had to give up. Declared like any other topic, it can be read like any other.
failed_orders = app.topic("orders-dlt", schema="com.acme.Order", key=Key.field("order_id"), partitions=3)

to_orders = app.producer(orders)
to_invoices = app.producer(invoices)

handled: Counter[str] = Counter()
"""Messages that a handler has dealt with, by its name, and `retries`. For the table that the demo shows."""


# Message mode: one call a message. The invoice is acknowledged before the order counts as handled.
@app.consumer(orders, group="billing")
async def bill(message: Message) -> None:
    """Write an invoice for each order."""
    await to_invoices.produce(
        {"order_id": message.payload["order_id"], "amount": message.payload["total"]},
        key={"order_id": message.key},
    )
    handled["bill"] += 1


class Turnover:
    """Orders and money so far."""

    def __init__(self) -> None:
        self.orders = 0
        self.money = Decimal(0)


turnover = Turnover()


# Batch mode: one call for up to a thousand messages of one partition.
@app.consumer(orders, group="statistics", batch=True, max_batch=1000, max_wait=0.2)
async def count(messages: list[Message]) -> None:
    """Add up."""
    turnover.orders += len(messages)
    turnover.money += sum(message.payload["total"] for message in messages)
    handled["count"] += len(messages)


class Base(DeclarativeBase):
    """The shop's tables."""


class InvoiceRow(Base):
    """An invoice in the books."""

    __tablename__ = "invoices"
    order_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    amount: Mapped[Decimal] = mapped_column(Numeric(12, 2))
    booked_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))


async def books(session: AsyncSession) -> AsyncSession:
    """The handler's session, with its tables made. Yours has migrations, as in `alembic/versions`."""
    connection = await session.connection()
    await connection.run_sync(Base.metadata.create_all)
    return session


# A session is new for each call, and its transaction commits when the handler returns. After a crash the same messages
# may come again, so the handler writes only what is not there.
@app.consumer(invoices, group="books", batch=True, max_batch=500)
async def book(messages: list[Message], session: Annotated[AsyncSession, Depends(books)]) -> None:
    """Keep invoices in the database."""
    amounts = {message.payload["order_id"]: message.payload["amount"] for message in messages}
    known = set(await session.scalars(select(InvoiceRow.order_id).where(InvoiceRow.order_id.in_(amounts))))
    now = datetime.now(UTC)
    session.add_all(
        InvoiceRow(order_id=order_id, amount=amount, booked_at=now)
        for order_id, amount in amounts.items()
        if order_id not in known
    )
    handled["book"] += len(messages)


carrier = Carrier()


def the_carrier() -> Carrier:
    """A provider: what a handler takes by `Depends`, and a test replaces."""
    return carrier


# Eight parcels at once, those of one order in order. A busy carrier is asked again; a country that it does not know
# is not tried again: the order goes to the topic `orders-dlt` at once.
@app.consumer(
    orders,
    group="shipping",
    concurrency=8,
    ordering="key",
    on_error=OnError(attempts=5, backoff=Backoff(initial=0.05, maximum=1.0), exclude=(UnknownCountryError,)),
)
async def ship(message: Message, carrier: Annotated[Carrier, Depends(the_carrier)]) -> None:
    """Hand parcels to the carrier."""
    try:
        await carrier.book(message.payload["order_id"], message.payload["country"])
    except CarrierBusyError:
        handled["retries"] += 1
        raise
    handled["ship"] += 1


complaints: list[str] = []


# A dead letter says in its headers where it came from and what was wrong with it.
@app.consumer(failed_orders, group="complaints", on_error=OnError(then="stop"))
async def complain(message: Message) -> None:
    """Collect what somebody has to look at."""
    reason = message.headers["deimos-dlq-error-message"] or b""
    complaints.append(reason.decode())
    handled["complain"] += 1
