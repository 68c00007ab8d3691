"""Pumps as processes: they share the work, one that dies is replaced, and one that is asked to stop hands over."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from fresh_database import fresh_database
from outbox_bench import DEADLINE, OutboxBench, firsts
from sqlalchemy.ext.asyncio import create_async_engine

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.database.creation import create_framework_tables

SUPPORT = Path(__file__).parents[1] / "support"
SERVERS = [
    pytest.param("postgresql", marks=pytest.mark.services("postgres")),
    pytest.param("mariadb", marks=pytest.mark.services("mariadb")),
]
WINDOW = 200
"""Most rows of one pump that may be sent twice."""


class Bench(OutboxBench):
    """With programs that send."""

    bootstrap: str
    url: str

    @asynccontextmanager
    async def program(
        self, *, ttl: float = 60.0, workers: int | None = None
    ) -> AsyncIterator[asyncio.subprocess.Process]:
        arguments = ["outbox", "outbox_app:app", "--log-level", "warning"]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "deimos_async",
            *arguments,
            *([] if workers is None else ["--workers", str(workers)]),
            env={
                **os.environ,
                "PYTHONPATH": str(SUPPORT),
                "OUTBOX_TOPIC": self.topic,
                "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": self.bootstrap,
                "DEIMOS_DATABASE__URL": self.url,
                "DEIMOS_OUTBOX__LEASE_TTL": str(ttl),
                "DEIMOS_OUTBOX__MAX_IN_FLIGHT": str(WINDOW),
            },
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    async def owners(self) -> list[str | None]:
        async with self.engine.connect() as connection:
            rows = await connection.execute(
                sa.text("SELECT locked_by FROM kafka_topic_info WHERE topic LIKE 'slot-%' ORDER BY topic")
            )
            return list(rows.scalars())

    async def until_owned_by(self, workers: int) -> None:
        """Wait until so many workers share all slots fairly."""
        async with asyncio.timeout(DEADLINE):
            while not _is_shared(await self.owners(), workers):
                await self.a_moment()


def _is_shared(owners: list[str | None], workers: int) -> bool:
    counts = [owners.count(owner) for owner in set(owners)]
    return len(owners) == 8 and None not in owners and len(counts) == workers and max(counts) - min(counts) <= 1


@pytest.fixture(params=["sqlite", *SERVERS])
async def bench(
    request: pytest.FixtureRequest, tmp_path: Path, unique_name: str, kafka_bootstrap: str
) -> AsyncIterator[Bench]:
    broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=kafka_bootstrap))
    await broker.start()
    async with AsyncExitStack() as stack:
        if request.param == "sqlite":
            url = f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}"
        else:
            server = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
            url = await stack.enter_async_context(fresh_database(server, unique_name[:60]))
        engine = create_async_engine(url)
        stack.push_async_callback(engine.dispose)
        await create_framework_tables(engine)
        bench = Bench(engine, broker, f"{unique_name}.topic")
        bench.url, bench.bootstrap = url, kafka_bootstrap
        await bench.create()
        yield bench


class Writing:
    """Transactions of ten rows, one after another, until it is told to stop."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.written: list[int] = []
        self._stop = asyncio.Event()
        self._more = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        bench = self._bench
        while not self._stop.is_set():
            start = len(self.written)
            numbers = range(start, start + 10)
            await bench.write(*(bench.record(f"key-{number % 40}", f"{number}") for number in numbers))
            self.written += numbers
            self._more.set()

    async def until(self, rows: int) -> None:
        """Wait until so many were written."""
        async with asyncio.timeout(DEADLINE):
            while len(self.written) < rows:
                self._more.clear()
                await self._more.wait()

    async def stop(self) -> None:
        self._stop.set()
        await self._task

    def expected(self) -> dict[bytes | None, list[str]]:
        """Values by key."""
        return {b"key-%d" % key: [f"{number}" for number in self.written if number % 40 == key] for key in range(40)}


async def test_killed_pump_is_replaced_and_nothing_is_lost(bench: Bench) -> None:
    # With locks of sessions it is seen at once; with the leases alone, as on SQLite, when they have run out.
    ttl = 2.0 if bench.engine.dialect.name == "sqlite" else 600.0
    async with bench.program(ttl=ttl) as first, bench.program(ttl=ttl):
        await bench.until_owned_by(2)
        writing = Writing(bench)
        await writing.until(500)
        first.send_signal(signal.SIGKILL)
        await first.wait()
        await bench.until_owned_by(1)
        await writing.stop()
        await bench.until_empty()
    values = await bench.values()
    sent = sum(len(found) for found in values.values())
    assert {key: firsts(found) for key, found in values.items()} == writing.expected()
    assert sent - len(writing.written) <= WINDOW


async def test_pump_that_is_asked_to_stop_hands_over_without_sending_twice(bench: Bench) -> None:
    # Without locks and notices, workers look at each other only when they renew, each third of a lease.
    ttl = 6.0 if bench.engine.dialect.name == "sqlite" else 60.0
    async with bench.program(ttl=ttl) as first, bench.program(ttl=ttl) as second:
        await bench.until_owned_by(2)
        writing = Writing(bench)
        await writing.until(300)
        first.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            assert await first.wait() == 0
        await bench.until_owned_by(1)
        await writing.stop()
        await bench.until_empty()
        second.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            assert await second.wait() == 0
    assert await bench.owners() == [None] * 8
    assert await bench.values() == writing.expected()


@pytest.mark.parametrize("bench", SERVERS[:1], indirect=True)
async def test_workers_of_one_command_share_the_slots(bench: Bench) -> None:
    async with bench.program(workers=2) as parent:
        await bench.until_owned_by(2)
        await bench.write(*(bench.record(f"{number}", "x") for number in range(200)))
        await bench.until_empty()
        parent.send_signal(signal.SIGTERM)
        async with asyncio.timeout(DEADLINE):
            assert await parent.wait() == 0
    assert len(await bench.arrived()) == 200


@pytest.mark.parametrize("bench", SERVERS, indirect=True)
async def test_pump_that_was_halted_for_longer_than_its_lease_goes_on_as_one_that_has_nothing(bench: Bench) -> None:
    async with bench.program(ttl=2.0) as first, bench.program(ttl=2.0) as second:
        await bench.until_owned_by(2)
        writing = Writing(bench)
        await writing.until(300)
        first.send_signal(signal.SIGSTOP)
        await bench.until_owned_by(1)
        first.send_signal(signal.SIGCONT)
        await bench.until_owned_by(2)
        await writing.stop()
        await bench.until_empty()
        for process in (first, second):
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(DEADLINE):
                assert await process.wait() == 0
    values = await bench.values()
    assert {key: firsts(found) for key, found in values.items()} == writing.expected()
    assert sum(len(found) for found in values.values()) - len(writing.written) <= WINDOW
