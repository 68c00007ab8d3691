"""The application of the user's view: orders come in, invoices go out. Runs on Kafka and in memory alike."""

import asyncio
from typing import Any

from deimos_async import Deimos, Key, Message

app = Deimos()

orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"), partitions=3)
invoices = app.topic("invoices", schema="com.acme.Invoice", key=Key.schema("com.acme.InvoiceKey"), partitions=3)
to_orders = app.producer(orders)
to_invoices = app.producer(invoices)

seen: list[Message[Any]] = []
counted: list[list[Message[Any]]] = []
invoiced: list[Message[Any]] = []
progress = asyncio.Event()
"""Set whenever something was handled."""


@app.consumer(orders, group="billing")
async def bill(message: Message) -> None:
    """Message mode."""
    seen.append(message)
    progress.set()
    await to_invoices.produce(
        {"order_id": message.payload["order_id"], "amount": message.payload["total"]},
        key={"order_id": message.key},
        headers={"origin": "billing"},
    )


@app.consumer(orders, group="statistics", batch=True, max_batch=50, max_wait=0.05)
async def count(messages: list[Message]) -> None:
    """Batch mode."""
    counted.append(messages)
    progress.set()


@app.consumer(invoices, group="archive", concurrency=4, ordering="key")
async def archive(message: Message) -> None:
    """By key, several at once."""
    invoiced.append(message)
    progress.set()
