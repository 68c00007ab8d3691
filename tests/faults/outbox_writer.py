"""Writes on and on by sessions of SQLAlchemy and the backend `outbox`; told by lines on its standard input.

Each transaction takes some keys in their order, holds their rows, numbers its messages by them, and now and then rolls
back, as a whole or a savepoint of it. After each commit it says which messages it has written: `+ token token ...`.

- `delivered N`: so many messages have arrived. It is never more than the backlog ahead.
- `rollbacks P`: the share of transactions and savepoints that roll back.
- `late`: opens a long transaction for each key of `LATE`, whose rows are there and are committed at `release`. It says
  `? late` when all are open, and `? released` when they are committed.
- `poison`: messages that cannot be sent, with others behind them. It says `? poisoned` when they are committed.
- `stop`: ends.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
import fault_written
import sqlalchemy as sa
from fault_written import KEYS, LATE, NOWHERE, TOO_LARGE
from sqlalchemy import event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.util import await_only

from deimos_async import Deimos, Key
from deimos_async.errors import DatabaseError

BACKLOG = int(os.environ["FAULT_BACKLOG"])
PAUSE = float(os.environ["FAULT_PAUSE"])
"""Seconds between two transactions of a task."""
TASKS = 4
EACH = 8
"""Keys of a transaction."""
LARGE = b"x" * 5000
"""More than the topic of such messages takes at first."""

app = Deimos({"producers.backend": "outbox"})
events, narrow, missing = (
    app.producer(app.topic(f"{os.environ['OUTBOX_TOPIC']}{suffix}", schema_backend="plain", key=Key.plain()))
    for suffix in ("", ".narrow", ".missing")
)
engine: AsyncEngine = create_async_engine(os.environ["DEIMOS_DATABASE__URL"], pool_pre_ping=True, pool_size=TASKS * 2)


class RolledBack(Exception):
    """So it was to be."""


class Writing:
    """What the lines have said, and how many were committed."""

    def __init__(self) -> None:
        self.rollbacks = 0.1
        self.committed = 0
        self.delivered = 0
        self.drawn = 0
        self.is_stopping = False
        self.released = asyncio.Event()
        self.late: list[asyncio.Task[None]] = []
        self.changed = asyncio.Event()

    def token(self) -> str:
        """Of a message; another one each time, also after a rollback."""
        self.drawn += 1
        return f"{os.getpid()}-{self.drawn}"

    def say(self, tokens: Sequence[str]) -> None:
        self.committed += len(tokens)
        os.write(1, f"+ {' '.join(tokens)}\n".encode())

    async def credit(self) -> None:
        """Wait until there may be more."""
        while self.committed - self.delivered >= BACKLOG and not self.is_stopping:
            self.changed.clear()
            await self.changed.wait()


writing = Writing()


async def write(
    session: AsyncSession, keys: Sequence[str], values: Sequence[bytes], producer: Any = events
) -> list[str]:
    """These messages for each of these keys, which are in order, in this transaction; their tokens."""
    numbers = fault_written.numbers.c
    of_keys = numbers.name.in_(keys)
    # In the order of all, so that nobody waits for somebody who waits for him.
    held = await session.execute(
        sa.select(numbers.name, numbers.number).where(of_keys).order_by(numbers.name).with_for_update()
    )
    last = dict(held.tuples().all())
    await session.execute(sa.update(fault_written.numbers).where(of_keys).values(number=numbers.number + len(values)))
    rows, messages = [], []
    for key in keys:
        for number, value in enumerate(values, last[key] + 1):
            token = writing.token()
            rows.append({"token": token, "name": key, "number": number})
            messages.append({"payload": f"{number} {token} ".encode() + value, "key": key})
    await session.execute(sa.insert(fault_written.written), rows)
    await producer.produce_many(messages, session=session)
    return [row["token"] for row in rows]


async def transaction(keys: Sequence[str], lot: random.Random) -> list[str]:
    """One of the usual kind; the tokens that it has committed."""
    part = lot.choice([len(keys), len(keys) // 2])
    done: list[str] = []
    try:
        async with AsyncSession(engine) as session, session.begin():
            done += await write(session, keys[:part], [b""] * lot.randint(1, 3))
            if keys[part:]:
                try:
                    async with session.begin_nested():
                        within = await write(session, keys[part:], [b""] * lot.randint(1, 3))
                        if lot.random() < writing.rollbacks:
                            raise RolledBack
                    done += within
                except RolledBack:
                    pass
            if lot.random() < writing.rollbacks:
                raise RolledBack
    except RolledBack:
        return []
    return done


async def write_on(number: int) -> None:
    lot = random.Random(number)
    deck: list[str] = []
    while not writing.is_stopping:
        await writing.credit()
        if len(deck) < EACH:
            deck = lot.sample(KEYS, len(KEYS))
        keys, deck = deck[:EACH], deck[EACH:]
        try:
            writing.say(await transaction(sorted(keys), lot))
        except (DBAPIError, DatabaseError, OSError) as error:
            # Whether that was committed, the table will say.
            print(f"not written: {type(error).__name__}", file=sys.stderr, flush=True)
        await asyncio.sleep(PAUSE)


async def write_late(key: str, opened: Callable[[], None]) -> None:
    async with AsyncSession(engine) as session:

        def hold(_: object) -> None:
            opened()
            await_only(writing.released.wait())

        # It is told of the commit after the library, which has stored its rows by then.
        event.listen(session.sync_session, "before_commit", hold)
        async with session.begin():
            tokens = await write(session, [key], [b""] * 5)
    writing.say(tokens)


async def open_late() -> None:
    writing.released.clear()
    all_open = asyncio.Event()
    count = 0

    def opened() -> None:
        nonlocal count
        count += 1
        if count == len(LATE):
            all_open.set()

    writing.late = [asyncio.create_task(write_late(key, opened)) for key in LATE]
    await all_open.wait()
    os.write(1, b"? late\n")


async def release_late() -> None:
    writing.released.set()
    await asyncio.gather(*writing.late)
    os.write(1, b"? released\n")


async def poison() -> None:
    async with AsyncSession(engine) as session, session.begin():
        tokens = await write(session, [TOO_LARGE], [b"", LARGE, b"", b""], narrow)
        tokens += await write(session, [NOWHERE], [b""] * 5, missing)
    writing.say(tokens)
    os.write(1, b"? poisoned\n")


async def obey() -> None:
    """What the lines say."""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        match line.decode().split():
            case ["delivered", count]:
                writing.delivered = int(count)
            case ["rollbacks", share]:
                writing.rollbacks = float(share)
            case ["late"]:
                await open_late()
            case ["release"]:
                await release_late()
            case ["poison"]:
                await poison()
            case ["stop"]:
                break
        writing.changed.set()
    writing.is_stopping = True
    writing.changed.set()


async def main() -> None:
    async with app.running(only=("producers",)), asyncio.TaskGroup() as group:
        for number in range(TASKS):
            group.create_task(write_on(number))
        group.create_task(obey())
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
