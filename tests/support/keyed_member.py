"""A member that writes down what it handles, and fails at random: run by `python -m deimos_async run keyed_member:app`.

`KEYED_TABLE` is the table to write into, `KEYED_BATCH` makes it take batches.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from deimos_async import Backoff, Deimos, Key, Message, OnError

KEYED = OnError(attempts=2, backoff=Backoff(0.005, 0.02), then="retry_keyed")


def table(name: str) -> sa.Table:
    """Words in the order in which they were handled: of a key they are numbered from 0."""
    return sa.Table(
        name,
        sa.MetaData(),
        sa.Column("n", sa.BigInteger, primary_key=True, autoincrement=True),
        sa.Column("word_key", sa.String(10), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
    )


def consume(app: Deimos, name: str, *, batch: bool, fails: float, concurrency: int = 3) -> None:
    """Declare a consumer of `words`, whose payloads are numbers.

    Args:
        name: The table's.
        fails: Which part of the attempts with one message fails.
    """
    words = app.topic("words", schema_backend="plain", key=Key.plain(), on_error=KEYED)
    written, dice = table(name), random.Random()

    async def write(messages: Sequence[Message[Any]], session: AsyncSession) -> None:
        for message in messages:
            number = int(message.payload)
            await session.execute(sa.insert(written).values(word_key=message.key, number=number))
            if dice.random() < fails:
                raise ValueError("bad luck")

    options: dict[str, Any] = {"group": "g", "delivery": "effectively_once", "concurrency": concurrency}
    if batch:

        @app.consumer(words, batch=True, max_batch=20, max_wait=0.01, **options)
        async def write_all(messages: list[Message], session: AsyncSession) -> None:
            await write(messages, session)
    else:

        @app.consumer(words, **options)
        async def write_one(message: Message, session: AsyncSession) -> None:
            await write([message], session)


if "KEYED_TABLE" in os.environ:
    app = Deimos(metrics=None, tracing=None)
    consume(app, os.environ["KEYED_TABLE"], batch=bool(os.environ["KEYED_BATCH"]), fails=0.2)
