"""Whole programs on a real Kafka: killed, restarted under, stopped. Nothing is lost, a tail at most is doubled."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import ForeignClient, Program, duplicates, either, order
from servers import KafkaBroker

from deimos_async.brokers.kafka import KafkaBroker as Client
from deimos_async.brokers.kafka import KafkaOptions
from deimos_async.brokers.protocol import NewTopic
from deimos_async.message import TopicPartition
from deimos_async.settings import KafkaSettings

COUNT = 20_000
KEY_SCHEMA = """{"type": "record", "name": "Order_key", "namespace": "com.acme",
                 "fields": [{"name": "order_id", "type": "long"}]}"""
Start = Callable[..., Awaitable[Program]]


class Ground:
    """A topic of three partitions, what was written to it, and the environment of programs that read it."""

    def __init__(self, bootstrap: str, registry: str, prefix: str, schemas: str) -> None:
        self.bootstrap, self.registry, self.prefix, self.schemas = bootstrap, registry, f"{prefix}.", schemas
        self.topic = f"{self.prefix}orders"
        self.environment = {
            "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "DEIMOS_SCHEMA__REGISTRY_URL": registry,
            "DEIMOS_SCHEMA__PATH": schemas,
            "DEIMOS_PRODUCERS__TOPIC_PREFIX": self.prefix,
            "DEIMOS_CONSUMERS__SESSION_TIMEOUT": "6",
            "DEIMOS_CONSUMERS__HEARTBEAT_INTERVAL": "1",
        }

    async def client(self) -> Client:
        client = Client("default", KafkaOptions.from_settings(KafkaSettings(bootstrap_servers=self.bootstrap)))
        await client.start()
        return client

    async def create_topic(self) -> None:
        client = await self.client()
        await client.create_topics([NewTopic(self.topic, 3)])
        await client.stop()

    async def write(self, numbers: range, **more: Any) -> None:
        schema = (Path(self.schemas) / "com/acme/Order.avsc").read_text()
        messages = [({"order_id": number}, order(number, **more)) for number in numbers]
        foreign = ForeignClient(self.bootstrap, self.registry, self.prefix)
        await asyncio.to_thread(foreign.write, "orders", schema, KEY_SCHEMA, messages)

    async def committed(self) -> dict[int, int]:
        client = await self.client()
        offsets = await client.group_offsets(f"{self.prefix}ledger")
        await client.stop()
        return {id.partition: offset for id, offset in offsets.items()}

    async def ends(self) -> dict[int, int]:
        client = await self.client()
        offsets = await client.end_offsets([TopicPartition(self.topic, partition) for partition in range(3)])
        await client.stop()
        return {id.partition: offset for id, offset in offsets.items()}


@pytest.fixture
async def ground(kafka_bootstrap: str, registry_url: str, unique_name: str, schemas: str) -> Ground:
    ground = Ground(kafka_bootstrap, registry_url, unique_name, schemas)
    await ground.create_topic()
    return ground


def orders_of(*programs: Program) -> set[int]:
    return {number for program in programs for _, _, number in program.handled}


async def test_member_killed_in_the_middle_loses_nothing_and_doubles_only_its_uncommitted_tail(
    ground: Ground, start: Start
) -> None:
    doomed = await start("ledger:app", ground.environment)
    await doomed.until(lambda: ": assigned " in doomed.errors)
    other = await start("ledger:app", ground.environment)
    await other.until(lambda: ": assigned " in other.errors)  # by now both have a share
    programs = [doomed, other]
    writing = asyncio.create_task(ground.write(range(COUNT)))
    await either(programs, lambda: len(doomed.handled) > 1000 and len(other.handled) > 500)
    assert await doomed.end(signal.SIGKILL) == -signal.SIGKILL
    committed = await ground.committed()
    await other.until(lambda: len(orders_of(*programs)) == COUNT)
    await writing
    assert await other.end() == 0
    assert orders_of(*programs) == set(range(COUNT))
    for partition, offsets in duplicates(doomed.handled, other.handled).items():
        assert offsets[0] >= committed.get(partition, 0)
        assert set(offsets) <= {offset for part, offset, _ in doomed.handled if part == partition}
    assert await ground.committed() == await ground.ends()


async def test_sigterm_in_the_middle_exits_zero_with_nothing_lost_and_nothing_doubled(
    ground: Ground, start: Start
) -> None:
    await ground.write(range(COUNT))
    first = await start("ledger:app", ground.environment)
    await first.until(lambda: len(first.handled) > 500)
    assert await first.end() == 0
    assert len(first.handled) < COUNT, "it was to be stopped in the middle"
    positions = dict.fromkeys(range(3), 0)
    for partition, offset, _ in first.handled:
        positions[partition] = max(positions[partition], offset + 1)
    assert {part: offset for part, offset in (await ground.committed()).items() if offset} == {
        part: offset for part, offset in positions.items() if offset
    }
    second = await start("ledger:app", ground.environment)
    await second.until(lambda: len(orders_of(first, second)) == COUNT)
    assert await second.end() == 0
    assert duplicates(first.handled, second.handled) == {}
    assert len(first.handled) + len(second.handled) == COUNT


@pytest.mark.services("own_kafka")
async def test_broker_restarted_in_the_middle_loses_nothing_and_doubles_only_an_uncommitted_tail(
    own_kafka: KafkaBroker, registry_url: str, unique_name: str, schemas: str, start: Start
) -> None:
    ground = Ground(own_kafka.bootstrap_servers, registry_url, unique_name, schemas)
    await ground.create_topic()
    await ground.write(range(COUNT))
    members = [await start("ledger:app", ground.environment) for _ in range(2)]
    await either(members, lambda: sum(len(member.handled) for member in members) > 2000)
    handled_before = sum(len(member.handled) for member in members)
    await own_kafka.restart()
    await either(members, lambda: len(orders_of(*members)) == COUNT)
    assert handled_before < COUNT, "the restart was to come in the middle"
    assert [await member.end() for member in members] == [0, 0]
    assert orders_of(*members) == set(range(COUNT))
    for offsets in duplicates(*(member.handled for member in members)).values():
        # What was handled between two commits, a second apart, may come again: one run of offsets, never scattered.
        assert offsets == list(range(offsets[0], offsets[0] + len(offsets)))
    assert await ground.committed() == await ground.ends()


async def test_then_stop_leaves_the_offset_where_it_was_and_the_process_exits_non_zero(
    ground: Ground, start: Start
) -> None:
    await ground.write(range(300))
    await ground.write(range(300, 301), tags=["poison"])
    await ground.write(range(301, 600))
    program = await start("ledger:app", ground.environment)
    assert await program.ended() == 1
    assert 300 not in orders_of(program)
    assert "stopped at" in program.errors
    assert "ValueError: poison" in program.errors
    ends = await ground.ends()
    committed = await ground.committed()
    behind = {partition for partition, end in ends.items() if committed.get(partition, 0) < end}
    handled = {(partition, offset) for partition, offset, _ in program.handled}
    assert behind, "the poisoned partition must not be committed to its end"
    for partition, offset in committed.items():
        assert {(partition, below) for below in range(offset)} <= handled
    again = await start("ledger:app", ground.environment)
    assert await again.ended() == 1
    assert 300 not in orders_of(again)


async def test_unreachable_broker_is_an_error_that_names_the_setting(start: Start, schemas: str) -> None:
    from servers import free_port

    program = await start(
        "ledger:app",
        {
            "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": f"127.0.0.1:{free_port()}",
            "DEIMOS_KAFKA__CONNECT_TIMEOUT": "1",
            "DEIMOS_SCHEMA__PATH": schemas,
        },
    )
    assert await program.ended() == 1
    assert "kafka.bootstrap_servers" in program.errors
    assert "Traceback" not in program.errors


async def test_workers_share_the_partitions_drain_together_and_a_dead_one_is_started_again(
    ground: Ground, start: Start
) -> None:
    await ground.write(range(1000))
    program = await start("ledger:app", ground.environment, "--workers", "2")
    await program.until(lambda: len(orders_of(program)) == 1000)
    assert await program.end() == 0
    assert orders_of(program) == set(range(1000))
    assert duplicates(program.handled) == {}
