"""A backfill sends a whole table in leased chunks, on PostgreSQL, MariaDB and SQLite."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from poll_bench import PAST, STAMP, PollBench, at, poll_bench
from source_bench import DATABASES
from sqlalchemy.orm import mapped_column

from deimos_async import ConfigurationError, Key
from deimos_async.database.polling.store import SqlPollStore
from deimos_async.database.tables import deimos_poll_info

CHUNK = 5


@pytest.fixture(params=DATABASES)
async def bench(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[PollBench]:
    """One database after the other; pages of two rows."""
    settings = {"pollers.batch_rows": 2}
    async with poll_bench(request.param, request.getfixturevalue, unique_name, tmp_path, settings) as found:
        yield found


async def chunks(bench: PollBench) -> list[Any]:
    info = deimos_poll_info.c
    return await bench.execute(sa.select(info.chunk).where(info.chunk != 0))


async def test_every_row_is_sent_once_and_the_poller_is_left_alone(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), start_from_beginning=False)
    told: list[tuple[int, int]] = []
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=at(-n)) for n in range(1, 14)))
        sent = await bench.app.backfill("widgets", chunk_rows=CHUNK, report=lambda done, of: told.append((done, of)))
        assert sent == 13
        assert await bench.ids() == list(range(1, 14))
        assert told == [(0, 3), (1, 3), (2, 3), (3, 3)]
        assert await chunks(bench) == []
        await bench.change(model, 7)
        await bench.poll(60)
        assert await bench.ids() == [7]


async def test_processes_share_the_chunks(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model))
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=PAST) for n in range(1, 31)))
        sent = await asyncio.gather(*(bench.app.backfill("widgets", chunk_rows=CHUNK) for _ in range(3)))
        assert sum(sent) == 30
        assert sorted(await bench.ids()) == list(range(1, 31))
        assert await chunks(bench) == []


async def test_one_that_was_stopped_goes_on_where_it_was(bench: PollBench) -> None:
    model = bench.polled()
    running: list[asyncio.Task[int]] = []

    async def post_process(self: Any, records: Any) -> None:
        if records[-1].id == 7 and running:
            running.pop().cancel()

    bench.poller(bench.producer(model, post_process=post_process))
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=PAST) for n in range(1, 14)))
        task = asyncio.create_task(bench.app.backfill("widgets", chunk_rows=CHUNK))
        running.append(task)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await bench.ids() == list(range(1, 8))
        assert await bench.app.backfill("widgets", chunk_rows=CHUNK) == 8
        assert await bench.ids() == list(range(6, 14))


async def test_row_that_changes_while_it_is_sent_is_sent_again(bench: PollBench) -> None:
    model = bench.polled()
    changes: list[str] = []

    async def post_process(self: Any, records: Any) -> None:
        if records[0].id == 3 and len(changes) < 2:
            changes.append(f"new {len(changes)}")
            await bench.change(model, 3, name=changes[-1])

    bench.poller(bench.producer(model, post_process=post_process))
    async with bench.running():
        await bench.add(*(model(id=n, name="old", updated_at=PAST) for n in range(1, 5)))
        await bench.app.backfill("widgets", chunk_rows=CHUNK)
        assert await bench.sent("widgets", "name") == [
            (1, ("old",)),
            (2, ("old",)),
            (3, ("old",)),
            (4, ("old",)),
            (3, ("new 0",)),
            (3, ("new 1",)),
        ]


async def test_rows_of_the_present_are_left_to_the_poller(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), delay_time=3600)
    async with bench.running():
        await bench.add(model(id=1, updated_at=PAST), model(id=2, updated_at=datetime.now(UTC).replace(tzinfo=None)))
        assert await bench.app.backfill("widgets") == 1
        assert await bench.ids() == [1]


async def test_keys_may_be_of_any_type_and_of_several_parts(bench: PollBench) -> None:
    schema = {
        "type": "record",
        "name": "Item",
        "namespace": "com.acme",
        "fields": [{"name": name, "type": "string"} for name in ("id", "part")],
    }
    bench.add_schema(schema)
    body = {
        "id": mapped_column(sa.Uuid(), primary_key=True),
        "part": mapped_column(sa.String(20), primary_key=True),
        "updated_at": mapped_column(STAMP, nullable=False),
    }
    model = bench.model(base=(), body=body)
    bench.poller(bench.producer(model, bench.topic("items", schema="com.acme.Item", key=Key.field("id"))))
    rows = [(uuid.UUID(int=n * 7919 << 90 | n), part) for n in range(4) for part in "abc"]
    async with bench.running():
        await bench.add(*(model(id=id, part=part, updated_at=PAST) for id, part in rows))
        assert await bench.app.backfill("widgets", chunk_rows=CHUNK) == 12
        sent = [(payload["id"], payload["part"]) for _, payload in await bench.sent("items")]
        assert sorted(sent) == sorted((str(id), part) for id, part in rows)


async def test_chunks_are_listed_by_whoever_has_the_list_alone(bench: PollBench) -> None:
    bench.poller(bench.producer(bench.polled()))
    first, second = (SqlPollStore(bench.engine, worker=worker, ttl=60) for worker in "ab")
    async with bench.running():
        await first.open()
        await second.open()
        try:
            await first.begin_chunks("widgets")
            await second.begin_chunks("widgets")
            epoch = await first.acquire("widgets", 0, -1)
            assert epoch == 1
            assert await second.acquire("widgets", 0, -1) is None
            assert await first.add_chunk("widgets", 1, first=None, last="x", epoch=epoch)
            assert not await second.add_chunk("widgets", 2, first="x", last=None, epoch=epoch)
            assert not await first.add_chunk("widgets", 2, first="x", last=None, epoch=epoch - 1)
            found = await second.chunks("widgets")
            assert [(each.number, each.first, each.last, each.is_leased) for each in found] == [
                (-1, None, None, True),
                (1, None, "x", False),
            ]
            await first.release("widgets", epoch, -1, done=True)
            assert [each.is_done for each in await second.chunks("widgets")] == [True, False]
        finally:
            await first.close()
            await second.close()


async def test_table_without_rows_has_nothing_to_send(bench: PollBench) -> None:
    bench.poller(bench.producer(bench.polled()))
    async with bench.running():
        assert await bench.app.backfill("widgets") == 0
        assert await chunks(bench) == []


async def test_only_pollers_by_time_can_be_backfilled(unique_name: str, tmp_path: Path) -> None:
    async with poll_bench("sqlite", str, unique_name, tmp_path) as bench:
        producer = bench.producer(bench.polled())
        bench.poller(producer, mode="state", state_column="state", published_state="x")
        async with bench.running():
            with pytest.raises(ConfigurationError, match="there is no poller 'other'; the pollers are: 'widgets'"):
                await bench.app.backfill("other")
            with pytest.raises(ConfigurationError, match="poller 'widgets' polls by state"):
                await bench.app.backfill("widgets")
