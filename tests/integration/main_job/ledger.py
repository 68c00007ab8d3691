"""An application that says on standard output what it handled, one line a message: a ledger apart from our own code.

Run as programs by the tests, with settings from the environment.
"""

import os

from deimos_async import Backoff, Deimos, Key, Message, OnError

app = Deimos()
orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"), partitions=3)


@app.consumer(
    orders,
    group="ledger",
    on_error=OnError(attempts=2, backoff=Backoff(0.01, 0.02), then="stop"),
)
async def handle(message: Message) -> None:
    """Each line is one write, which the kernel does not mix with other processes' lines."""
    if "poison" in message.payload["tags"]:
        raise ValueError("poison")
    os.write(1, f"{message.partition} {message.offset} {message.payload['order_id']}\n".encode())
