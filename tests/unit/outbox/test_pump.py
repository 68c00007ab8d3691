"""The pump on a SQLite file and the broker in memory: what is sent, what is kept, and what waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from outbox_bench import DEADLINE, OutboxBench
from sqlalchemy.ext.asyncio import create_async_engine

from deimos_async.brokers.memory import MemoryBroker, MemoryProducer
from deimos_async.brokers.protocol import ProducerOptions
from deimos_async.database.creation import create_framework_tables
from deimos_async.database.outbox.parking import ParkedFilter, ParkedStore
from deimos_async.database.outbox.protocol import Fence
from deimos_async.database.tables import kafka_messages, kafka_topic_info
from deimos_async.errors import BrokerUnavailableError, ConfigurationError, DatabaseUnavailableError, DeliveryError
from deimos_async.events import Event
from deimos_async.message import Delivery, OutboundRecord
from deimos_async.service import Supervisor


class Broker(MemoryBroker):
    """A broker whose producers fail as the test says."""

    def __init__(self) -> None:
        super().__init__(partitions=3)
        self.sent: list[list[OutboundRecord]] = []
        self.refuse_values: set[bytes] = set()
        self.refuse_topics: dict[str, DeliveryError] = {}
        self.starts_to_fail = 0
        self.gate: asyncio.Event | None = None
        self.gated_topic: str | None = None
        self.waiting = asyncio.Event()

    def producer(self, options: ProducerOptions) -> Producer:
        return Producer(self, options)


class Producer(MemoryProducer):
    def __init__(self, broker: Broker, options: ProducerOptions) -> None:
        super().__init__(broker, options)
        self._of = broker

    async def start(self) -> None:
        if self._of.starts_to_fail:
            self._of.starts_to_fail -= 1
            raise BrokerUnavailableError("nobody there")
        await super().start()

    async def send(self, records: Sequence[OutboundRecord]) -> list[Delivery]:
        broker = self._of
        broker.sent.append(list(records))
        if broker.gate is not None and broker.gated_topic in (None, records[0].topic):
            broker.waiting.set()
            await broker.gate.wait()
        if (error := broker.refuse_topics.get(records[0].topic)) is not None:
            raise DeliveryError(
                str(error),
                indexes=range(len(records)),
                deliveries=[None] * len(records),
                retriable=error.retriable,
                of_topic=error.of_topic,
            )
        # One bad record fails the whole batch of its partition, as with Kafka; here of its key.
        bad = {record.key for record in records if record.value in broker.refuse_values}
        good = [record for record in records if record.key not in bad]
        deliveries = iter(await super().send(good) if good else [])
        outcome = [None if record.key in bad else next(deliveries) for record in records]
        if bad:
            failed = [index for index, delivery in enumerate(outcome) if delivery is None]
            raise DeliveryError("refused", indexes=failed, deliveries=outcome)
        return [delivery for delivery in outcome if delivery is not None]


@pytest.fixture
async def broker() -> Broker:
    return Broker()


@pytest.fixture
async def bench(tmp_path: Path, broker: Broker) -> AsyncIterator[OutboxBench]:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}")
    await create_framework_tables(engine)
    yield OutboxBench(engine, broker, "orders")
    await engine.dispose()


async def test_everything_is_sent_and_deleted(bench: OutboxBench) -> None:
    await bench.write(*(bench.record(f"{number % 9}", f"{number}") for number in range(3000)))
    async with bench.pumping() as pump:
        await bench.until_empty(pump)
        assert pump.status().in_flight == 0
    values = await bench.values()
    assert values == {b"%d" % key: [f"{number}" for number in range(key, 3000, 9)] for key in range(9)}


async def test_no_more_than_the_window_are_on_their_way(bench: OutboxBench, broker: Broker) -> None:
    broker.gate = asyncio.Event()
    await bench.write(*(bench.record(f"{number}", "x") for number in range(500)))
    async with bench.pumping(max_in_flight=100, batch_rows=60) as pump:
        async with asyncio.timeout(DEADLINE):
            await broker.waiting.wait()
        assert pump.status().in_flight <= 100
        broker.gate.set()
        await bench.until_empty(pump)
    assert len(await bench.arrived()) == 500


async def test_stop_waits_for_what_is_on_its_way_and_gives_the_leases_back(bench: OutboxBench, broker: Broker) -> None:
    broker.gate = asyncio.Event()
    await bench.write(bench.record("a", "1"))
    pump = bench.pump()
    supervisor = Supervisor()
    await supervisor.open()
    await supervisor.start([pump])
    async with asyncio.timeout(DEADLINE):
        await broker.waiting.wait()
        stopping = asyncio.create_task(supervisor.stop(pump, timeout=DEADLINE))
        await bench.write(bench.record("b", "2"))
        broker.gate.set()
        await stopping
    await supervisor.close()
    assert not supervisor.failures
    assert len(await bench.arrived()) == 1
    assert await bench.count() == 1
    async with bench.engine.connect() as connection:
        rows = await connection.execute(
            sa.select(kafka_topic_info.c.topic, kafka_topic_info.c.locked_by).where(
                kafka_topic_info.c.topic != "layout"
            )
        )
        owners = {row.topic: row.locked_by for row in rows}
    assert owners == dict.fromkeys(f"slot-{number}" for number in range(8))


async def test_row_that_never_arrives_is_abandoned_at_a_stop_and_stays(bench: OutboxBench, broker: Broker) -> None:
    broker.gate = asyncio.Event()
    await bench.write(bench.record("a", "1"))
    async with bench.pumping(shutdown_timeout=0.05), asyncio.timeout(DEADLINE):
        await broker.waiting.wait()
    assert await bench.count() == 1
    broker.gate.set()
    async with bench.pumping() as pump:
        await bench.until_empty(pump)


async def test_refused_row_blocks_its_key_and_rows_before_it_are_sent(bench: OutboxBench, broker: Broker) -> None:
    broker.refuse_values = {b"bad"}
    await bench.write(
        bench.record("a", "1"),
        bench.record("a", "bad"),
        bench.record("a", "2"),
        *(bench.record(f"other-{number}", "x") for number in range(20)),
    )
    async with bench.pumping() as pump:
        await bench.until(pump, lambda left: left == 2)
        assert pump.status().blocked_keys == 1
        assert not pump.status().failing_topics
    values = await bench.values()
    assert values[b"a"] == ["1"]
    assert len(values) == 21


async def test_topic_that_is_refused_waits_and_others_flow(bench: OutboxBench, broker: Broker) -> None:
    broker.refuse_topics = {"denied": DeliveryError("not authorised", of_topic=True)}
    await bench.write(*(bench.record(f"{number}", "x", topic="denied") for number in range(10)))
    await bench.write(*(bench.record(f"{number}", "x") for number in range(100)))
    async with bench.pumping() as pump:
        await bench.until(pump, lambda left: left == 10)
        assert pump.status().failing_topics == {"denied": "not authorised"}
        assert pump.status().blocked_keys == 0
        broker.refuse_topics.clear()
        await bench.until_empty(pump)
        assert not pump.status().failing_topics
    assert len(await bench.arrived("denied")) == 10


async def test_topic_that_fails_for_now_is_tried_again(bench: OutboxBench, broker: Broker) -> None:
    broker.refuse_topics = {"orders": DeliveryError("no leader", retriable=True)}
    await bench.write(*(bench.record("a", f"{number}") for number in range(10)))
    failed = asyncio.Event()
    bench.events.subscribe("deimos.outbox.produce", lambda event: failed.set())
    async with bench.pumping() as pump:
        async with asyncio.timeout(DEADLINE):
            await failed.wait()
        broker.refuse_topics.clear()
        await bench.until_empty(pump)
    assert await bench.values() == {b"a": [f"{number}" for number in range(10)]}


async def test_topic_that_does_not_answer_holds_up_no_other(bench: OutboxBench, broker: Broker) -> None:
    broker.gate, broker.gated_topic = asyncio.Event(), "stuck"
    await bench.write(*(bench.record(f"{number}", "x", topic="stuck") for number in range(200)))
    await bench.write(*(bench.record(f"{number}", "x") for number in range(300)))
    async with bench.pumping(max_in_flight=100, batch_rows=50) as pump:
        await bench.until(pump, lambda left: left == 200)
        assert len(await bench.arrived()) == 300
        broker.gate.set()
        await bench.until_empty(pump)
    assert len(await bench.arrived("stuck")) == 200


async def test_topic_that_answers_again_is_read_from_the_start_before_its_new_rows(
    bench: OutboxBench, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it does so in between: rows without a shard are looked for before anything is read."""
    broker.gate, broker.gated_topic = asyncio.Event(), "stuck"
    await bench.write(bench.record("a", "1", topic="stuck"))
    async with bench.pumping() as pump, asyncio.timeout(DEADLINE):
        await broker.waiting.wait()
        is_ready, unsharded, landed = False, pump._store.unsharded, asyncio.Event()

        async def answering_meanwhile(limit: int) -> Sequence[Any]:
            if is_ready and not landed.is_set():
                pump.on_change = landed.set
                assert broker.gate is not None
                broker.gate.set()
                await landed.wait()
                await bench.write(bench.record("a", "4", topic="stuck"))
            return await unsharded(limit)

        monkeypatch.setattr(pump._store, "unsharded", answering_meanwhile)
        # What is passed over is below all floors when other rows were read above it twice, a moment after each other.
        while "stuck" not in pump._left_out:
            await bench.write(bench.record("b", "x"))
            await bench.until(pump, lambda left: left == 1)
        await bench.write(bench.record("a", "2", topic="stuck"))
        async with bench.engine.connect() as connection:
            passed = (await connection.execute(sa.select(sa.func.max(kafka_messages.c.id)))).scalar_one()
        while min(pump._intake._trail.values()) < passed:
            await bench.write(bench.record("b", "x"))
            await bench.until(pump, lambda left: left == 2)
        is_ready = True
        now = time.monotonic()
        pump._next_unsharded, pump._next_rescan = now, now + DEADLINE
        await landed.wait()
        await bench.until_empty(pump)
    assert (await bench.values("stuck"))[b"a"] == ["1", "2", "4"]


async def test_cluster_that_is_away_at_first_is_waited_for(bench: OutboxBench, broker: Broker) -> None:
    broker.starts_to_fail = 4
    await bench.write(bench.record("a", "1"))
    async with bench.pumping() as pump:
        await bench.until_empty(pump)
    assert await bench.values() == {b"a": ["1"]}


async def test_message_without_a_key_on_a_compacted_topic_waits(bench: OutboxBench) -> None:
    await bench.create("compacted", **{"cleanup.policy": "compact"})
    await bench.write(bench.record(None, "1", topic="compacted"), bench.record("a", "2", topic="compacted"))
    async with bench.pumping() as pump:
        await bench.until(pump, lambda left: left == 1)
    assert await bench.values("compacted") == {b"a": ["2"]}


async def test_only_the_last_message_of_a_key_is_sent_where_a_topic_is_compacted(
    bench: OutboxBench, broker: Broker
) -> None:
    await bench.write(
        bench.record("1", "first"),
        bench.record("2", "second"),
        bench.record("1", "third"),
        bench.record(None, "without a key"),
        bench.record(None, "nor this"),
    )
    async with bench.pumping(is_compacted=lambda topic: topic == "orders") as pump:
        await bench.until_empty(pump)
    values = await bench.values()
    assert (values[b"1"], values[b"2"]) == (["third"], ["second"])
    assert sorted(values[None]) == ["nor this", "without a key"]


async def test_more_blocked_keys_than_allowed_block_whole_shards(bench: OutboxBench, broker: Broker) -> None:
    broker.refuse_values = {b"bad"}
    await bench.write(*(bench.record(f"{number}", "bad") for number in range(6)))
    await bench.write(*(bench.record(f"good-{number}", "x") for number in range(6)))
    async with bench.pumping(max_blocked_keys=2) as pump:
        await bench.until(pump, lambda left: left <= 6)
        assert await bench.count() == 6
        assert pump.status().blocked_keys >= 3


async def test_rows_that_a_deimos_has_written_are_sent_in_order(bench: OutboxBench) -> None:
    async with bench.engine.begin() as connection:
        for number in range(30):
            await connection.execute(
                sa.insert(kafka_messages).values(
                    topic="orders", message=b"%d" % number, key=b"\x00a", partition_key="a" if number % 2 else "b"
                )
            )
    async with bench.pumping() as pump:
        await bench.until_empty(pump)
    records = await bench.arrived()
    for parity in (0, 1):
        of_key = [int(record.value or b"") for record in records if int(record.value or b"") % 2 == parity]
        assert of_key == list(range(parity, 30, 2))
    ids = {dict(record.headers)["deimos-message-id"] for record in records}
    assert len(ids) == 30


async def test_event_tells_of_every_send_with_its_error(bench: OutboxBench, broker: Broker) -> None:
    told: list[Event] = []
    bench.events.subscribe("deimos.outbox.produce", told.append)
    broker.refuse_topics = {"denied": DeliveryError("not authorised", of_topic=True)}
    await bench.write(bench.record("a", "1"), bench.record("a", "2", topic="denied"))
    async with bench.pumping() as pump:
        await bench.until(pump, lambda left: left == 1)
        async with asyncio.timeout(DEADLINE):
            while len({event["topic"] for event in told}) < 2:
                await bench.until(pump, lambda left: left == 1)
    good = next(event for event in told if event["topic"] == "orders")
    bad = next(event for event in told if event["topic"] == "denied")
    assert [row.message for row in good["messages"]] == [b"1"]
    assert good.error is None
    assert good.duration is not None
    assert isinstance(bad.error, DeliveryError)


async def test_subscriber_that_fails_keeps_no_row_from_being_deleted(bench: OutboxBench) -> None:
    def fail(event: Event) -> None:
        raise RuntimeError("of the subscriber")

    bench.events.subscribe("deimos.outbox.produce", fail)
    await bench.write(bench.record("a", "1"))
    async with bench.pumping() as pump:
        await bench.until_empty(pump)
    assert len(await bench.arrived()) == 1


async def test_pump_says_when_nothing_is_left_to_do(bench: OutboxBench, broker: Broker) -> None:
    broker.refuse_values = {b"bad"}
    async with bench.pumping() as pump:
        async with asyncio.timeout(DEADLINE):
            while not await pump.is_idle():
                await bench.count()
            await bench.write(bench.record("a", "bad"), bench.record("b", "1"))
            while not (await bench.count() == 1 and await pump.is_idle()):
                pass
    assert await bench.values() == {b"b": ["1"]}


async def test_missing_tables_end_it_with_what_to_do(tmp_path: Path, broker: Broker) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'empty.sqlite3'}")
    pump = OutboxBench(engine, broker, "orders").pump()
    with pytest.raises(ConfigurationError, match="migrate"):
        await asyncio.wait_for(pump.run(asyncio.Event()), DEADLINE)
    await engine.dispose()


async def test_another_layout_ends_it(bench: OutboxBench) -> None:
    async with bench.engine.begin() as connection:
        await connection.execute(sa.insert(kafka_topic_info).values(topic="layout", locked_by="shards=7"))
    with pytest.raises(ConfigurationError, match="shards=7"):
        await asyncio.wait_for(bench.pump().run(asyncio.Event()), DEADLINE)


async def test_cancelled_pump_leaves_no_task_and_no_lease_behind(bench: OutboxBench, broker: Broker) -> None:
    broker.gate = asyncio.Event()
    await bench.write(bench.record("a", "1"))
    before = asyncio.all_tasks()
    running = asyncio.create_task(bench.pump().run(asyncio.Event()))
    async with asyncio.timeout(DEADLINE):
        await broker.waiting.wait()
    running.cancel()
    await asyncio.wait([running])
    assert running.cancelled()
    assert asyncio.all_tasks() - before <= {running}
    broker.gate.set()
    async with bench.pumping() as pump:
        await bench.until_empty(pump)


async def test_refused_row_is_put_aside_and_its_key_flows_on(bench: OutboxBench, broker: Broker) -> None:
    broker.refuse_values = {b"bad"}
    store = ParkedStore(bench.engine)
    await bench.write(*(bench.record("a", value) for value in ("1", "bad", "2", "bad", "3")), bench.record("b", "x"))
    async with bench.pumping(parking=store) as pump:
        await bench.until_empty(pump)
        async with asyncio.timeout(DEADLINE):
            while not await pump.is_idle():
                await bench.a_moment()
        assert pump.status().parked == 2
        assert pump.status().blocked_keys == 0
    assert await bench.values() == {b"a": ["1", "2", "3"], b"b": ["x"]}
    assert [(row.code, row.attempts, row.text) for row in await store.rows(ParkedFilter())] == [
        ("refused", 1, "refused")
    ] * 2
    assert bench.metrics.count("deimos.outbox.parked", topic="orders", **{"error.type": "refused"}) == 2


async def test_row_that_cannot_be_put_aside_blocks_its_key_until_it_can(bench: OutboxBench, broker: Broker) -> None:
    broker.refuse_values = {b"bad"}
    tried = asyncio.Event()

    class Parking(ParkedStore):
        async def park(self, *given: Any, **more: Any) -> bool:
            if not tried.is_set():
                tried.set()
                raise DatabaseUnavailableError("away")
            return await super().park(*given, **more)

    ahead = 0.0
    await bench.write(bench.record("a", "bad"), bench.record("a", "2"), bench.record("b", "x"))
    async with bench.pumping(
        parking=Parking(bench.engine), monotonic=lambda: time.monotonic() + ahead, lease_ttl=60.0
    ) as pump:
        async with asyncio.timeout(DEADLINE):
            await tried.wait()
        await bench.until(pump, lambda left: left == 2)
        assert await bench.values() == {b"b": ["x"]}
        ahead = 6.0  # the key's first pause is 5 s
        await bench.until_empty(pump)
    assert await bench.values() == {b"a": ["2"], b"b": ["x"]}


async def test_row_is_not_put_aside_by_a_lease_that_was_lost(bench: OutboxBench, broker: Broker) -> None:
    broker.refuse_values = {b"bad"}
    fences: list[Fence] = []
    asked, may_go_on = asyncio.Event(), asyncio.Event()

    class Parking(ParkedStore):
        async def park(self, id_: int, *, code: str, text: str, attempts: int, fence: Fence | None) -> bool:
            assert fence is not None
            fences.append(fence)
            asked.set()
            await may_go_on.wait()
            return await super().park(id_, code=code, text=text, attempts=attempts, fence=fence)

    await bench.write(bench.record("a", "bad"))
    async with bench.pumping(parking=Parking(bench.engine), worker="me") as pump:
        async with asyncio.timeout(DEADLINE):
            await asked.wait()
        async with bench.engine.begin() as connection:
            slots = sa.update(kafka_topic_info).where(kafka_topic_info.c.topic.startswith("slot-"))
            await connection.execute(slots.values(epoch=kafka_topic_info.c.epoch + 1))
        may_go_on.set()
        async with asyncio.timeout(DEADLINE):
            while len({fence.epoch for fence in fences}) < 2:
                await bench.a_moment()
        await bench.until_empty(pump)
    assert {fence.worker for fence in fences} == {"me"}
    (row,) = await ParkedStore(bench.engine).rows(ParkedFilter())
    assert row.code == "refused"
