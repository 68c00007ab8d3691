"""Effectively once under faults: members count messages in a database, and each is counted once."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from fault_database import Sums, sums
from fault_kafka import PARTITIONS, ProxiedKafka
from fault_ledger import fate
from fault_trial import IS_CHAOS, Trial
from sqlalchemy.ext.asyncio import create_async_engine

from deimos_async.database.creation import create_framework_tables

pytestmark = [pytest.mark.services("own_kafka"), pytest.mark.usefixtures("proxy")]

GROUPS = ("once", "once_batch")


@pytest.fixture(
    params=[
        pytest.param("postgresql", marks=pytest.mark.services("postgres")),
        pytest.param("mariadb", marks=pytest.mark.services("mariadb")),
    ]
)
async def database(request: pytest.FixtureRequest) -> str:
    url: str = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    engine = create_async_engine(url)
    await create_framework_tables(engine)
    await engine.dispose()
    return url


@pytest.fixture
async def counted(database: str, unique_name: str) -> AsyncIterator[Sums]:
    async with sums(database, f"{unique_name}_sums", GROUPS, PARTITIONS) as counted:
        yield counted


def expected(trial: Trial) -> dict[tuple[str, int], tuple[int, int]]:
    """What the table must hold: every message but those that always fail, once."""
    found = {(group, partition): (0, 0) for group in GROUPS for partition in range(PARTITIONS)}
    for (partition, _), (key, number) in trial.ledger.acknowledged.items():
        if fate(key, number) != "poison":
            for group in GROUPS:
                n, total = found[group, partition]
                found[group, partition] = n + 1, total + number
    return found


async def test_members_killed_every_three_seconds_count_each_message_once(
    fault_kafka: ProxiedKafka, unique_name: str, database: str, counted: Sums
) -> None:
    kind = database.partition("+")[0]
    environment = {"DEIMOS_DATABASE__URL": database, "FAULT_TABLE": counted.name}
    name = f"SIGKILL of a member every 3 s, counts in {kind}"
    async with Trial(name, fault_kafka, unique_name, groups=GROUPS, environment=environment) as trial:
        trial.writer.start()
        alive = await trial.join(3)
        await trial.compared(lambda: trial.kill_in_turn(alive, 10 if IS_CHAOS else 2))
        await trial.finish()
        assert await counted.read() == expected(trial)
