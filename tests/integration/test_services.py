"""The real services are there, do what the other tests count on, and can be restarted and killed."""

import contextlib
import json
import urllib.request
from collections.abc import AsyncIterator

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from servers import KafkaBroker
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine


@contextlib.asynccontextmanager
async def admin_of(bootstrap: str) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def test_kafka_creates_a_topic(kafka_bootstrap: str, unique_name: str) -> None:
    async with admin_of(kafka_bootstrap) as admin:
        await admin.create_topics([NewTopic(unique_name, num_partitions=2, replication_factor=1)])
        [description] = await admin.describe_topics([unique_name])
    assert len(description["partitions"]) == 2


def test_registry_gives_back_the_schema_that_was_registered(registry_url: str, unique_name: str) -> None:
    schema = json.dumps({"type": "record", "name": "Trial", "fields": [{"name": "id", "type": "long"}]})
    request = urllib.request.Request(
        f"{registry_url}/subjects/{unique_name}-value/versions",
        json.dumps({"schema": schema}).encode(),
        {"Content-Type": "application/vnd.schemaregistry.v1+json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        schema_id = json.load(answer)["id"]
    with urllib.request.urlopen(f"{registry_url}/schemas/ids/{schema_id}", timeout=30) as answer:
        found = json.load(answer)
    assert json.loads(found["schema"]) == json.loads(schema)


@pytest.mark.parametrize(
    "url_fixture",
    [
        pytest.param("postgres_url", marks=pytest.mark.services("postgres")),
        pytest.param("mariadb_url", marks=pytest.mark.services("mariadb")),
    ],
)
async def test_database_keeps_a_committed_row_and_creates_databases(
    url_fixture: str, unique_name: str, request: pytest.FixtureRequest
) -> None:
    engine = create_async_engine(request.getfixturevalue(url_fixture), isolation_level="AUTOCOMMIT")
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f"CREATE TABLE {unique_name} (word VARCHAR(20) PRIMARY KEY)"))
            await connection.execute(text(f"INSERT INTO {unique_name} VALUES ('grüße 🚀')"))
            assert (await connection.execute(text(f"SELECT word FROM {unique_name}"))).scalar_one() == "grüße 🚀"
            await connection.execute(text(f"DROP TABLE {unique_name}"))
            await connection.execute(text(f"CREATE DATABASE {unique_name}"))
            await connection.execute(text(f"DROP DATABASE {unique_name}"))
    finally:
        await engine.dispose()


async def test_broker_that_was_killed_and_started_again_has_its_address_and_its_records(
    own_kafka: KafkaBroker, unique_name: str
) -> None:
    bootstrap = own_kafka.bootstrap_servers
    async with admin_of(bootstrap) as admin:
        await admin.create_topics([NewTopic(unique_name, num_partitions=1, replication_factor=1)])
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        assert (await producer.send_and_wait(unique_name, b"before", partition=0)).offset == 0

    await own_kafka.kill()
    assert not own_kafka.is_running
    await own_kafka.start()
    assert own_kafka.bootstrap_servers == bootstrap
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        assert (await producer.send_and_wait(unique_name, b"after a crash", partition=0)).offset == 1

    await own_kafka.restart()
    async with AIOKafkaProducer(bootstrap_servers=bootstrap) as producer:
        assert (await producer.send_and_wait(unique_name, b"after a restart", partition=0)).offset == 2
