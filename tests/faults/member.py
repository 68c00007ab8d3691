"""The program under test: an application that says what it handled, and at its end what it left open.

Runs `deimos_async.cli.run.serve`, as `python -m deimos_async run` does, and afterwards looks for tasks and sockets.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
from fault_audit import run_audited
from fault_ledger import fate, format_line

from deimos_async import Backoff, Deimos, Key, Message, OnError

GROUPS = os.environ["FAULT_GROUPS"].split(",")
FAILS = bool(os.environ["FAULT_FAILS"])
WORK = float(os.environ.get("FAULT_WORK", "0.002"))
"""Seconds that a handler takes for a message."""

app = Deimos()
policy = OnError(attempts=2, backoff=Backoff(0.02, 0.1))
if "DEIMOS_SCHEMA__REGISTRY_URL" in os.environ:
    events = app.topic("events", schema="faults.Event", key=Key.field("key"), on_error=policy)
else:
    events = app.topic("events", schema_backend="plain", key=Key.plain(), on_error=policy)

_has_failed: set[int] = set()


def read(message: Message[Any]) -> tuple[str, int]:
    """Key and number."""
    payload = message.payload
    if isinstance(payload, dict):
        return payload["key"], payload["number"]
    key, _, number = payload.decode().partition(":")
    return key, int(number)


def fail(key: str, number: int) -> None:
    """Raise if it is this message's fate."""
    if not FAILS:
        return
    expected = fate(key, number)
    if expected == "poison":
        raise ValueError(f"{key}:{number} is poison")
    if expected == "flaky" and number not in _has_failed:
        _has_failed.add(number)
        raise ValueError(f"{key}:{number} fails once")


async def handle(group: str, message: Message[Any], seconds: float) -> None:
    key, number = read(message)
    await asyncio.sleep(seconds)  # the work
    fail(key, number)
    os.write(1, format_line(group, message.partition, message.offset, key, number))


if "partition" in GROUPS:

    @app.consumer(events, group="partition")
    async def in_order(message: Message) -> None:
        await handle("partition", message, WORK)


if "key" in GROUPS:

    @app.consumer(events, group="key", ordering="key", concurrency=8)
    async def by_key(message: Message) -> None:
        # Uneven, so that messages of different keys overtake each other.
        await handle("key", message, WORK * (1 + message.offset * 7 % 13))


if "batch" in GROUPS:

    @app.consumer(events, group="batch", batch=True, max_batch=50, max_wait=0.05)
    async def in_batches(messages: list[Message]) -> None:
        read_all = [(message, *read(message)) for message in messages]
        await asyncio.sleep(WORK * len(messages))  # the work
        for _, key, number in read_all:
            fail(key, number)
        lines = [
            format_line("batch", message.partition, message.offset, key, number) for message, key, number in read_all
        ]
        os.write(1, b"".join(lines))


if "FAULT_TABLE" in os.environ:
    import fault_database
    from sqlalchemy.ext.asyncio import AsyncSession

    count = fault_database.counting(os.environ["FAULT_TABLE"])

    if "once" in GROUPS:

        @app.consumer(events, group="once", delivery="effectively_once", concurrency=4)
        async def once(message: Message, session: AsyncSession) -> None:
            key, number = read(message)
            await count(session, "once", message.partition, [number])
            fail(key, number)
            os.write(1, format_line("once", message.partition, message.offset, key, number))

    if "once_batch" in GROUPS:

        @app.consumer(
            events,
            group="once_batch",
            delivery="effectively_once",
            concurrency=4,
            batch=True,
            max_batch=50,
            max_wait=0.05,
        )
        async def once_in_batches(messages: list[Message], session: AsyncSession) -> None:
            read_all = [(message, *read(message)) for message in messages]
            await count(session, "once_batch", messages[0].partition, [number for _, _, number in read_all])
            for _, key, number in read_all:
                fail(key, number)
            lines = [
                format_line("once_batch", message.partition, message.offset, key, number)
                for message, key, number in read_all
            ]
            os.write(1, b"".join(lines))


if __name__ == "__main__":
    run_audited(app)
