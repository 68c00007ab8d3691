"""The Kafka adapter where only a real cluster shows what happens: faults, refusals, security."""

import asyncio
import base64
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import GroupCoordinatorNotAvailableError
from aiokafka.protocol.group import LeaveGroupRequest
from fault_proxy import TcpProxy
from servers import KafkaBroker as KafkaServer
from servers.ports import HOST, free_port
from servers.programs import java

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.partitioner import Partitioner
from deimos_async.brokers.protocol import NewTopic, ProducerOptions
from deimos_async.errors import BrokerError, BrokerUnavailableError, CommitError, DeliveryError, OffsetOutOfRangeError
from deimos_async.message import Delivery, OutboundRecord, TopicPartition

from ..contract.conftest import DEADLINE, Bench

own_kafka_needed = pytest.mark.services("own_kafka")


async def _no_deletion(partition: TopicPartition, before: int) -> None:
    raise NotImplementedError


def bench_of(bootstrap: str, name: str, **options) -> Bench:
    return Bench(KafkaBroker("default", KafkaOptions(bootstrap_servers=bootstrap, **options)), name, _no_deletion)


@pytest.fixture
async def bench(kafka_bootstrap: str, unique_name: str) -> AsyncIterator[Bench]:
    bench = bench_of(kafka_bootstrap, unique_name)
    yield bench
    await bench.close()


@pytest.fixture
async def fragile(own_kafka: KafkaServer, unique_name: str) -> AsyncIterator[Bench]:
    """A bench on a broker that the test may stop, with short time-outs."""
    bench = bench_of(own_kafka.bootstrap_servers, unique_name, connect_timeout=2.0, request_timeout=2.0)
    yield bench
    await bench.close()


def kafka_tasks() -> list[str]:
    """Tasks that are there besides the test's own."""
    return [repr(task) for task in asyncio.all_tasks() if task is not asyncio.current_task()]


# Brokers that are away


@pytest.mark.parametrize("part", ["broker", "consumer", "producer"])
async def test_start_without_a_broker_names_setting_and_servers(part: str, unique_name: str):
    servers = f"127.0.0.1:{free_port()}"
    broker = KafkaBroker("orders", KafkaOptions(bootstrap_servers=servers, connect_timeout=1.0))
    bench = Bench(broker, unique_name, _no_deletion)
    what = {
        "broker": broker,
        "consumer": bench.member().consumer,
        "producer": broker.producer(ProducerOptions()),
    }[part]
    async with asyncio.timeout(DEADLINE):
        with pytest.raises(
            BrokerUnavailableError, match=rf"'clusters\.orders\.bootstrap_servers' \({servers}\)"
        ) as got:
            await what.start()
        assert got.value.retriable
        await what.stop()
        await what.stop()
    assert kafka_tasks() == []


@own_kafka_needed
async def test_delivery_timeout_means_unknown_and_the_next_send_works_in_order(own_kafka: KafkaServer, fragile: Bench):
    await fragile.create()
    producer = await fragile.producer(delivery_timeout=1.0)
    await producer.send([OutboundRecord(fragile.topic, value=b"first")])
    await own_kafka.stop()
    with pytest.raises(DeliveryError, match="within 1 s") as caught:
        await producer.send([OutboundRecord(fragile.topic, value=b"lost")])
    assert (caught.value.indexes, caught.value.unknown, caught.value.retriable) == ((0,), True, True)
    await own_kafka.start()
    sent = []
    async with asyncio.timeout(DEADLINE):
        while len(sent) < 3:
            value = b"again %d" % len(sent)
            try:
                await producer.send([OutboundRecord(fragile.topic, value=value)])
            except DeliveryError:
                continue  # it is not up yet
            sent.append(value)
    member = await fragile.member().join()
    got: list[bytes | None] = []
    while sent[-1] not in got:
        got += [record.value for record in await member.read(1)]
    # The one that timed out was on its way through a client that is gone: it cannot come after the later ones.
    assert b"lost" not in got[2:]
    # Attempts that failed as unknown may be there too, before the one that succeeded with the same value.
    assert list(dict.fromkeys(value for value in got if value != b"lost")) == [b"first", *sent]


@own_kafka_needed
async def test_everything_stops_in_bounded_time_and_leaves_no_task_when_the_broker_is_dead(
    own_kafka: KafkaServer, fragile: Bench
):
    await fragile.create(2)
    producer = await fragile.producer(delivery_timeout=60.0)
    member = await fragile.member().join()
    fetching = asyncio.create_task(member.consumer.fetch(10, DEADLINE))
    await producer.send([OutboundRecord(fragile.topic, value=b"x")])
    await fetching
    await own_kafka.kill()
    sending = asyncio.create_task(producer.send([OutboundRecord(fragile.topic, value=b"y")]))
    assert list(await member.consumer.fetch(10, 0.1)) == []
    async with asyncio.timeout(DEADLINE):
        await asyncio.gather(producer.stop(), member.consumer.stop(), fragile.broker.stop())
        with pytest.raises(DeliveryError) as caught:
            await sending
    assert caught.value.unknown
    assert kafka_tasks() == []


@own_kafka_needed
async def test_commit_without_a_broker_is_retriable_and_works_when_it_is_back(own_kafka: KafkaServer, fragile: Bench):
    await fragile.create()
    member = await fragile.member().join()
    await own_kafka.stop()
    with pytest.raises(CommitError) as caught:
        await member.consumer.commit({fragile.at(0): 0})
    assert (caught.value.lost, caught.value.retriable) == (False, True)
    with pytest.raises(BrokerError):
        await member.consumer.end_offsets([fragile.at(0)])
    await own_kafka.start()
    async with asyncio.timeout(DEADLINE):
        while await fragile.broker.group_offsets(fragile.group) == {}:
            await member.consumer.fetch(1, 0.1)
            with contextlib.suppress(CommitError):  # its session may have ended meanwhile; then it joins again
                await member.consumer.commit({fragile.at(0): 0})


@own_kafka_needed
async def test_member_goes_on_when_the_broker_was_away(own_kafka: KafkaServer, fragile: Bench):
    await fragile.create()
    producer = await fragile.producer()
    member = await fragile.member().join()
    await producer.send([OutboundRecord(fragile.topic, value=b"1")])
    assert [record.value for record in await member.read(1)] == [b"1"]
    await member.consumer.commit({fragile.at(0): 1})
    await own_kafka.kill()
    assert list(await member.consumer.fetch(10, 0.1)) == []
    await own_kafka.start()
    await producer.send([OutboundRecord(fragile.topic, value=b"2")])
    assert [record.value for record in await member.read(1)] == [b"2"]


def _move(server: KafkaServer) -> None:
    """Another port from its next start on. Its properties were written before the first one."""
    old, server.port = server.port, free_port()
    file = server._properties_file
    file.write_text(file.read_text().replace(f"CLIENT://{HOST}:{old}", f"CLIENT://{HOST}:{server.port}"))


@own_kafka_needed
async def test_member_finds_brokers_that_have_new_addresses_by_the_first_servers(
    own_kafka: KafkaServer, unique_name: str
):
    front = free_port()  # an address that stays, as a service's name does; the broker itself tells its own
    bench = bench_of(f"{HOST}:{front}", unique_name, request_timeout=5.0)
    try:
        async with TcpProxy(front, (HOST, own_kafka.port)):
            await bench.create()
            producer = await bench.producer()
            await producer.send([OutboundRecord(bench.topic, value=b"1")])
            await producer.stop()
            member = await bench.member().join()
            assert [record.value for record in await member.read(1)] == [b"1"]
            await member.consumer.commit({bench.at(0): 1})
            await own_kafka.stop()
        _move(own_kafka)
        await own_kafka.start()
        async with TcpProxy(front, (HOST, own_kafka.port)):
            producer = await bench.producer()
            await producer.send([OutboundRecord(bench.topic, value=b"2")])
            assert [record.value for record in await member.read(1)] == [b"2"]
            await _commit_when_joined(member, bench.at(0), 2)
    finally:
        await bench.close()


async def _commit_when_joined(member: Any, partition: TopicPartition, offset: int) -> None:
    """The group may be about to begin anew, which a commit then hears of."""
    async with asyncio.timeout(DEADLINE):
        while True:
            await member.read_until(lambda: partition in member.consumer.assignment())
            try:
                await member.consumer.commit({partition: offset})
            except CommitError as error:
                if not error.lost and not error.retriable:
                    raise
            else:
                return


# Groups


@pytest.mark.services("kafka")
async def test_member_that_the_group_has_removed_hears_on_lost_and_joins_again(bench: Bench, kafka_bootstrap: str):
    await bench.create()
    member = await bench.member().join()
    refused = []

    async def commit(partitions):
        with pytest.raises(CommitError) as caught:
            await member.consumer.commit(dict.fromkeys(partitions, 1))
        refused.append(caught.value.lost)

    member.hooks["lost"] = commit
    await _remove_from_group(kafka_bootstrap, bench.group)
    await member.until(lambda: [event for event, _ in member.events] == ["assigned", "lost", "assigned"])
    assert member.events[1] == ("lost", {bench.at(0)})
    assert refused == [True]
    assert await bench.broker.group_offsets(bench.group) == {}


@pytest.mark.services("kafka")
async def test_member_whose_instance_id_another_one_takes_ends_and_leaves_it_alone(bench: Bench):
    await bench.create(2)
    producer = await bench.producer()
    older = await bench.member(instance_id="pod-1").join()
    newer = await bench.member(instance_id="pod-1").join()
    assert newer.consumer.assignment() == {bench.at(0), bench.at(1)}
    with pytest.raises(BrokerError, match=r"another process has joined as 'pod-1'.*consumers\.instance_id") as caught:
        await older.read_until(lambda: False)
    assert not caught.value.retriable
    assert older.events[-1] == ("lost", {bench.at(0), bench.at(1)})
    assert older.consumer.assignment() == frozenset()
    with pytest.raises(BrokerError, match="another process"):
        await older.consumer.fetch(1, 0.1)
    with pytest.raises(CommitError) as refused:
        await older.consumer.commit({bench.at(0): 1})
    assert refused.value.lost
    await producer.send([OutboundRecord(bench.topic, value=b"1")])
    assert [record.value for record in await newer.read(1)] == [b"1"]
    await older.consumer.stop()
    await producer.send([OutboundRecord(bench.topic, value=b"2")])
    assert [record.value for record in await newer.read(1)] == [b"2"]
    assert [event for event, _ in newer.events] == ["assigned"], "nobody has taken the place from it"


@pytest.mark.services("kafka")
async def test_member_that_comes_back_with_its_instance_id_disturbs_nobody(bench: Bench):
    await bench.create(2)
    stays = await bench.member(instance_id="pod-1").join()
    leaves = bench.member(instance_id="pod-2")
    await leaves.consumer.start()
    shared = ["assigned", "revoked", "assigned"]
    await stays.read_until(lambda: [event for event, _ in stays.events] == shared)
    await leaves.until(lambda: bool(leaves.events))
    left = leaves.consumer.assignment()
    await leaves.consumer.stop()
    back = await bench.member(instance_id="pod-2").join()
    assert back.consumer.assignment() == left
    producer = await bench.producer()
    (mine,) = stays.consumer.assignment()
    await producer.send([OutboundRecord(bench.topic, value=b"v", partition=mine.partition)])
    await stays.read(1)
    assert [event for event, _ in stays.events] == shared


@pytest.mark.services("kafka")
async def test_member_with_an_instance_id_whose_place_is_free_joins_again(bench: Bench, kafka_bootstrap: str):
    await bench.create()
    member = await bench.member(instance_id="pod-1").join()
    await _remove_from_group(kafka_bootstrap, bench.group)
    await member.read_until(lambda: [event for event, _ in member.events] == ["assigned", "lost", "assigned"])


async def _remove_from_group(bootstrap: str, group: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    network = AIOKafkaClient(bootstrap_servers=bootstrap)
    await admin.start()
    await network.bootstrap()
    try:
        coordinator = await admin.find_coordinator(group)
        [described] = await admin.describe_consumer_groups([group])
        [(_, _, _, _, _, members, *_)] = described.groups
        for member in members:
            response = await network.send(coordinator, LeaveGroupRequest(group, member[0]))
            assert response.error_code == 0
    finally:
        await network.close()
        await admin.close()


@pytest.mark.services("kafka")
async def test_fetch_that_fails_is_not_counted_as_running_for_ever(bench: Bench):
    await bench.create()
    member = await bench.member().join()
    for _ in range(2):
        member.consumer.seek(bench.at(0), 99)
        with pytest.raises(OffsetOutOfRangeError):
            await member.read(1)
        # Else aiokafka would never again see that nobody polls.
        assert member.consumer._client._subscription._fetch_count == 0


@pytest.mark.services("kafka")
async def test_records_that_come_while_partitions_go_and_a_fetch_ends_by_time_are_given(bench: Bench, monkeypatch):
    """A rebalance takes up what was fetched at the very moment at which the time of a fetch is over."""
    await bench.create()
    member = await bench.member().join()
    producer = await bench.producer()
    consumer = member.consumer
    wait, polled = consumer._signal.wait, asyncio.Event()

    async def wait_until_a_rebalance_comes_first():
        while consumer._poll is not None and not consumer._poll.done():
            consumer._signal.clear()
            await wait()
        monkeypatch.undo()
        consumer._drop_fetched([])
        polled.set()
        raise TimeoutError

    monkeypatch.setattr(consumer._signal, "wait", wait_until_a_rebalance_comes_first)
    fetching = asyncio.create_task(consumer.fetch(10, DEADLINE))
    await producer.send([OutboundRecord(bench.topic, value=b"x")])
    async with asyncio.timeout(DEADLINE):
        found = await fetching
    assert polled.is_set()
    assert [record.value for _, records in found for record in records] == [b"x"]


@pytest.mark.services("kafka")
async def test_commit_that_is_repeated_while_partitions_go_is_not_made_in_the_next_generation(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    await bench.create(2)
    member = await bench.member().join()
    coordinator = member.consumer._client._coordinator
    send, sent = coordinator._do_commit_offsets, asyncio.Event()

    async def refused_until_the_next_generation(assignment, offsets):
        if len(member.events) < 3:
            sent.set()
            raise GroupCoordinatorNotAvailableError
        await send(assignment, offsets)

    monkeypatch.setattr(coordinator, "_do_commit_offsets", refused_until_the_next_generation)
    committing = asyncio.create_task(member.consumer.commit({bench.at(0): 1, bench.at(1): 1}))
    async with asyncio.timeout(DEADLINE):
        await sent.wait()
    await bench.member().join()
    await member.read_until(lambda: [event for event, _ in member.events] == ["assigned", "revoked", "assigned"])
    with pytest.raises(CommitError) as caught:
        await committing
    assert caught.value.lost
    # By the same way one of now is made.
    (mine,) = member.consumer.assignment()
    await member.consumer.commit({mine: 0})
    assert await bench.broker.group_offsets(bench.group) == {mine: 0}


@pytest.mark.services("kafka")
async def test_first_position_at_latest_is_committed_at_once(bench: Bench):
    await bench.create(2)
    producer = await bench.producer()
    await producer.send([OutboundRecord(bench.topic, value=b"x", partition=1)])
    await bench.member(start_from="latest").join()
    assert await bench.broker.group_offsets(bench.group) == {bench.at(0): 0, bench.at(1): 1}


@pytest.mark.services("kafka")
async def test_cancelled_start_leaves_nothing_behind(bench: Bench):
    await bench.create()
    for turns in range(0, 60, 4):
        member = bench.member()
        starting = asyncio.create_task(member.consumer.start())
        for _ in range(turns):
            await asyncio.sleep(0)
        starting.cancel()
        await asyncio.wait({starting})
        await member.consumer.stop()
        assert kafka_tasks() == []


@pytest.mark.services("kafka")
async def test_header_name_that_is_not_utf8_is_an_error_that_names_the_record(bench: Bench, kafka_bootstrap: str):
    await bench.create()
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap)
    await producer.start()
    try:
        for name in ("good", "bad!", "good"):
            batch = producer.create_batch()
            batch.append(timestamp=None, key=None, value=b"v", headers=[(name, b"1")])
            await _spoil(batch)
            await (await producer.send_batch(batch, bench.topic, partition=0))
    finally:
        await producer.stop()
    member = await bench.member().join()
    assert [record.offset for record in await member.read(1)] == [0]
    for _ in range(2):
        with pytest.raises(BrokerError, match=f"topic '{bench.topic}' partition 0 offset 1: the name of a header"):
            await member.read(1)
    member.consumer.seek(bench.at(0), 2)
    assert [record.offset for record in await member.read(1)] == [2]


async def _spoil(batch) -> None:
    """Make the header name `bad!` one that is not UTF-8, with a right checksum."""
    from aiokafka.record.util import calc_crc32c

    data = bytearray(batch._build())
    data = data.replace(b"bad!", b"\xff\xfe\xfd!")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    batch._buffer = data


# Producing


@pytest.mark.services("kafka")
async def test_batch_above_the_limit_of_the_topic_is_split_and_only_the_large_record_fails(bench: Bench):
    await bench.create(1, None, **{"max.message.bytes": "2000"})
    producer = await bench.producer()
    records = [OutboundRecord(bench.topic, value=b"%d" % n * 50) for n in range(40)]
    records[17] = OutboundRecord(bench.topic, value=b"x" * 5000)
    with pytest.raises(DeliveryError, match="Too") as caught:
        await producer.send(records)
    assert caught.value.indexes == (17,)
    assert (caught.value.unknown, caught.value.retriable) == (False, False)
    stored = [delivery for delivery in caught.value.deliveries if delivery is not None]
    assert stored == [Delivery(bench.topic, 0, n) for n in range(39)]
    got = [record.value for record in await (await bench.member().join()).read(39)]
    assert got == [record.value for n, record in enumerate(records) if n != 17]
    # The partition is not spoiled for what comes after.
    assert await producer.send([OutboundRecord(bench.topic, value=b"after")]) == [Delivery(bench.topic, 0, 39)]


@pytest.mark.services("kafka")
async def test_refused_record_fails_its_batch_as_certainly_not_stored_and_other_partitions_go_on(bench: Bench):
    await bench.create(2, None, **{"message.timestamp.before.max.ms": "60000"})
    producer = await bench.producer()
    old = OutboundRecord(bench.topic, value=b"old", partition=0, timestamp=1000)
    with pytest.raises(DeliveryError, match="InvalidTimestamp") as caught:
        await producer.send([old, OutboundRecord(bench.topic, value=b"fine", partition=1)])
    assert caught.value.indexes == (0,)
    assert caught.value.deliveries[1] == Delivery(bench.topic, 1, 0)
    assert caught.value.unknown is False
    assert await producer.send([OutboundRecord(bench.topic, value=b"new", partition=0)]) == [
        Delivery(bench.topic, 0, 0)
    ]


@pytest.mark.services("kafka")
async def test_value_that_is_no_bytes_fails_alone(bench: Bench):
    await bench.create()
    producer = await bench.producer()
    records = [OutboundRecord(bench.topic, value=value) for value in (b"a", "text", b"b", b"c")]  # type: ignore[arg-type]
    with pytest.raises(DeliveryError, match="not a record") as caught:
        await producer.send(records)
    assert caught.value.indexes == (1,)
    assert [d and d.offset for d in caught.value.deliveries] == [0, None, 1, 2]


@pytest.mark.services("kafka")
async def test_cancelled_send_does_not_disturb_the_others(bench: Bench):
    await bench.create()
    producer = await bench.producer()
    sending = [asyncio.create_task(producer.send([OutboundRecord(bench.topic, value=b"%d" % n)])) for n in range(50)]
    await asyncio.sleep(0)
    for task in sending[::2]:
        task.cancel()
    results = await asyncio.gather(*sending, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])
    offsets = [result[0].offset for result in results[1::2]]
    assert offsets == sorted(set(offsets))


CODECS = ["gzip", "snappy", "lz4", "zstd"]


@pytest.mark.services("kafka")
@pytest.mark.parametrize("compression", [None, *CODECS])
async def test_compressed_batches_come_back(bench: Bench, compression: str | None):
    await bench.create()
    producer = await bench.producer(compression=compression)
    await producer.send([OutboundRecord(bench.topic, value=b"x" * 1000 + b"%d" % n) for n in range(500)])
    records = await (await bench.member().join()).read(500)
    assert [record.value for record in records] == [b"x" * 1000 + b"%d" % n for n in range(500)]


async def _send_by_another_client(bootstrap: str, topic: str, compression: str) -> None:
    confluent_kafka = pytest.importorskip("confluent_kafka")
    producer = confluent_kafka.Producer({"bootstrap.servers": bootstrap, "compression.type": compression})
    for number in range(50):
        producer.produce(topic, b"x" * 1000 + b"%d" % number)
    assert await asyncio.to_thread(producer.flush, DEADLINE) == 0


@pytest.mark.services("kafka")
@pytest.mark.parametrize("compression", CODECS)
async def test_batches_that_another_client_has_compressed_are_read(
    bench: Bench, kafka_bootstrap: str, compression: str
):
    await bench.create()
    await _send_by_another_client(kafka_bootstrap, bench.topic, compression)
    records = await (await bench.member().join()).read(50)
    assert [record.value for record in records] == [b"x" * 1000 + b"%d" % number for number in range(50)]


@pytest.mark.services("kafka")
@pytest.mark.parametrize("compression", CODECS[1:])
async def test_compressed_record_without_its_library_names_what_to_install_and_is_not_skipped(
    bench: Bench, kafka_bootstrap: str, compression: str, monkeypatch: pytest.MonkeyPatch
):
    await bench.create()
    producer = await bench.producer()
    await producer.send([OutboundRecord(bench.topic, value=b"first")])
    await _send_by_another_client(kafka_bootstrap, bench.topic, compression)
    member = await bench.member().join()
    with monkeypatch.context() as without:
        without.setattr(f"aiokafka.codec.has_{compression}", lambda: False)
        assert [record.value for record in await member.read(1)] == [b"first"]
        for _ in range(3):  # and not only once
            with pytest.raises(BrokerError, match=r"pip install 'deimos-async\[compression\]'") as caught:
                await member.read(1)
            assert not caught.value.retriable
        with pytest.raises(BrokerError, match="compression"):
            _ = [records async for records in bench.broker.read({bench.at(0): (1, 2)})]
    assert [record.offset for record in await member.read(2)] == [1, 2]


@pytest.mark.services("kafka")
async def test_keys_are_placed_as_by_other_clients(bench: Bench, kafka_bootstrap: str):
    confluent_kafka = pytest.importorskip("confluent_kafka")
    await bench.create(7)
    theirs = confluent_kafka.Producer({"bootstrap.servers": kafka_bootstrap, "partitioner": "murmur2_random"})
    placed = {}
    keys = [b"key-%d" % n * (n % 5 + 1) for n in range(300)]
    for key in keys:
        theirs.produce(
            bench.topic, key=key, callback=lambda error, message: placed.update({message.key(): message.partition()})
        )
    assert await asyncio.to_thread(theirs.flush, DEADLINE) == 0
    partitioner = Partitioner()
    assert placed == {key: partitioner.keyed(key, 7) for key in keys}


# Topics


@pytest.mark.services("kafka")
async def test_topic_takes_its_configuration(bench: Bench, kafka_bootstrap: str):
    await bench.broker.create_topics(
        [NewTopic(bench.topic, 2, config={"cleanup.policy": "compact"}), NewTopic(f"{bench.topic}.x", 1, 1)]
    )
    found = await bench.broker.topics([bench.topic, f"{bench.topic}.x"])
    assert {name: info.partitions for name, info in found.items()} == {bench.topic: 2, f"{bench.topic}.x": 1}
    producer = await bench.producer()
    # A compacted topic takes no record without a key.
    with pytest.raises(DeliveryError):
        await producer.send([OutboundRecord(bench.topic, value=b"no key")])


@pytest.mark.services("kafka")
async def test_topic_that_the_cluster_refuses_is_named(bench: Bench):
    with pytest.raises(BrokerError, match=r"'no spaces allowed'.*could not be made"):
        await bench.broker.create_topics([NewTopic("no spaces allowed", 1)])


# Security


@pytest.fixture(scope="module")
def key_store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A server's key for 127.0.0.1, and its certificate as PEM text."""
    store = tmp_path_factory.mktemp("tls") / "server.p12"
    keytool = str(Path(java()).with_name("keytool"))
    common = ["-alias", "server", "-keystore", str(store), "-storepass", "changeit"]
    made = ["-keyalg", "RSA", "-dname", "CN=test", "-ext", "san=ip:127.0.0.1", "-storetype", "PKCS12", "-validity", "2"]
    subprocess.run([keytool, "-genkeypair", *common, *made], check=True, capture_output=True)
    exported = subprocess.run([keytool, "-exportcert", "-rfc", *common], check=True, capture_output=True, text=True)
    return store, exported.stdout


def _unsecured_token() -> str:
    """A token that a broker without validator configuration takes: unsigned, for `client`."""

    def part(content: dict) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    now = int(time.time())
    return f"{part({'alg': 'none'})}.{part({'sub': 'client', 'iat': now, 'exp': now + 3600})}."


async def fresh_token() -> str:
    return _unsecured_token()


@own_kafka_needed
async def test_tls_with_every_sasl_mechanism(key_store: tuple[Path, str], unique_name: str):
    store, certificate = key_store
    modules = "org.apache.kafka.common.security"
    properties = {
        "sasl.enabled.mechanisms": "PLAIN,OAUTHBEARER",
        "ssl.keystore.location": str(store),
        "ssl.keystore.password": "changeit",
        "ssl.keystore.type": "PKCS12",
        "listener.name.client.plain.sasl.jaas.config": (
            f'{modules}.plain.PlainLoginModule required user_client="secret-1";'
        ),
        "listener.name.client.oauthbearer.sasl.jaas.config": (
            f'{modules}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
        ),
    }
    async with KafkaServer(client_protocol="SASL_SSL", properties=properties) as server:
        trusted = {
            "bootstrap_servers": server.bootstrap_servers,
            "security_protocol": "SASL_SSL",
            "ssl_ca": certificate,
            "connect_timeout": 5.0,
        }
        plain = {"sasl_mechanism": "PLAIN", "sasl_username": "client", "sasl_password": "secret-1"}
        bearer = {"sasl_mechanism": "OAUTHBEARER", "sasl_oauth_token_provider": f"{__name__}:fresh_token"}
        for way in (plain, bearer):
            bench = Bench(KafkaBroker("default", KafkaOptions(**trusted, **way)), unique_name, _no_deletion)
            try:
                topic = await bench.create(topic=f"{unique_name}.{way['sasl_mechanism']}")
                producer = await bench.producer()
                await producer.send([OutboundRecord(topic, value=b"x")])
                member = await bench.member([topic]).join()
                assert [record.value for record in await member.read(1)] == [b"x"]
            finally:
                await bench.close()
        wrong_password = {**plain, "sasl_password": "secret-2"}
        untrusted = {**trusted, "ssl_ca": None}
        for options in ({**trusted, **wrong_password}, {**untrusted, **plain}):
            broker = KafkaBroker("default", KafkaOptions(**options))
            with pytest.raises(BrokerUnavailableError) as caught:
                await broker.start()
            assert "secret" not in str(caught.value) + repr(caught.value.__cause__)
