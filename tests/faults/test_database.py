"""Effectively once under faults: members count messages in a database, and each is counted once.

The short form does all faults to one set of members, one after another; the long form has a trial for each.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import pytest
from fault_database import Sums, sums
from fault_kafka import PARTITIONS, ProxiedKafka
from fault_ledger import fate
from fault_proxy import TcpProxy, fault_lasts
from fault_trial import IS_CHAOS, Member, Trial
from servers import MariaDB, Postgres, free_port
from servers.ports import HOST
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from deimos_async.database.creation import create_framework_tables

pytestmark = [pytest.mark.services("own_kafka"), pytest.mark.usefixtures("proxy")]

GROUPS = ("once", "once_batch")


@dataclass(frozen=True, slots=True)
class Database:
    """A server that the trials may restart, and the members' way to it."""

    kind: str
    server: Postgres | MariaDB
    proxy: TcpProxy
    counted: Sums

    @property
    def members_url(self) -> str:
        return make_url(self.server.url).set(port=self.proxy.port).render_as_string(hide_password=False)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("postgresql", Postgres), marks=pytest.mark.services("own_postgres"), id="postgresql"),
        pytest.param(("mariadb", MariaDB), marks=pytest.mark.services("own_mariadb"), id="mariadb"),
    ],
)
def server(request: pytest.FixtureRequest) -> Iterator[tuple[str, Postgres | MariaDB]]:
    kind, of = request.param
    server = of()
    try:
        asyncio.run(server.start())
        asyncio.run(_make_tables(server.url))
        yield kind, server
    finally:
        asyncio.run(server.stop())
        server.remove()


async def _make_tables(url: str) -> None:
    engine = create_async_engine(url)
    await create_framework_tables(engine)
    await engine.dispose()


@pytest.fixture
async def database(server: tuple[str, Postgres | MariaDB], unique_name: str) -> AsyncIterator[Database]:
    kind, process = server
    async with (
        TcpProxy(free_port(), (HOST, process.port)) as proxy,
        sums(process.url, f"{unique_name}_sums", GROUPS, PARTITIONS) as counted,
    ):
        yield Database(kind, process, proxy, counted)


def expected(trial: Trial) -> dict[tuple[str, int], tuple[int, int]]:
    """What the table must hold: every message but those that always fail, once."""
    found = {(group, partition): (0, 0) for group in GROUPS for partition in range(PARTITIONS)}
    for (partition, _), (key, number) in trial.ledger.acknowledged.items():
        if fate(key, number) != "poison":
            for group in GROUPS:
                n, total = found[group, partition]
                found[group, partition] = n + 1, total + number
    return found


async def killed(trial: Trial, database: Database, alive: list[Member]) -> None:
    await trial.kill_in_turn(alive, 4 if IS_CHAOS else 2)


async def guests(trial: Trial, database: Database, alive: list[Member]) -> None:
    await trial.guests_come_and_go(8 if IS_CHAOS else 3)


async def frozen(trial: Trial, database: Database, alive: list[Member]) -> None:
    zombie = alive[0]
    async with trial.fault("frozen", zombie):
        zombie.send(signal.SIGSTOP)
        await trial.recovered(by=alive[1:])  # the group has given them its partitions
        async with trial.assigned_again(zombie):
            zombie.send(signal.SIGCONT)
        await trial.recovered(by=alive)


async def database_restarted(trial: Trial, database: Database, alive: list[Member]) -> None:
    async with trial.fault("restart"):
        await database.server.restart()
        await trial.recovered(by=alive)


async def cut_at_commit(trial: Trial, database: Database, alive: list[Member]) -> None:
    """Half of the commits do not arrive, of the others the answer is lost: nobody can know which."""
    for number in range(6 if IS_CHAOS else 4):
        async with trial.fault("cut"):
            async with asyncio.timeout(30):
                await database.proxy.cut_at(b"COMMIT", is_forwarded=bool(number % 2))
            await fault_lasts(0.3)
            await trial.recovered(by=alive)


Fault = Callable[[Trial, Database, list[Member]], Awaitable[None]]
FAULTS: dict[str, Fault] = {
    "SIGKILL of a member every 3 s": killed,
    "members join and leave every second": guests,
    "SIGSTOP past the session timeout, and back": frozen,
    "the database restarted": database_restarted,
    "connections cut at their commit": cut_at_commit,
}


@pytest.mark.parametrize("names", [[name] for name in FAULTS] if IS_CHAOS else [list(FAULTS)])
async def test_members_count_each_message_once_whatever_happens(
    fault_kafka: ProxiedKafka, unique_name: str, database: Database, names: list[str]
) -> None:
    environment = {
        "DEIMOS_DATABASE__URL": database.members_url,
        "DEIMOS_DATABASE__IDLE_TRANSACTION_TIMEOUT": "3",  # as long as a session: what is frozen holds up nobody
        "FAULT_TABLE": database.counted.name,
    }
    title = f"{'; '.join(names)}: counts in {database.kind}"
    async with Trial(title, fault_kafka, unique_name, groups=GROUPS, environment=environment) as trial:
        trial.writer.start()
        alive = await trial.join(3)
        for name in names:
            fault = FAULTS[name]
            await trial.compared(lambda fault=fault: fault(trial, database, alive))
        await trial.finish()
        assert await database.counted.read() == expected(trial)
