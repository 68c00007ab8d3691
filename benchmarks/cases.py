"""One measurement in a fresh process: prints what it did, the wall time and the CPU time of the timed part as JSON.

Ours, and the same by hand. Imports, connections and set-up are outside of the timed part; consuming is timed from the
first call of the handler to the last, rows of a table until they are committed.
"""

from __future__ import annotations

import asyncio
import gc
import io
import json
import resource
import sys
import uuid
from collections.abc import Callable, Coroutine
from itertools import islice
from pathlib import Path
from typing import Any

from measuring import BATCH_BYTES, BODY, FRAME, HERE, KAFKA, REGISTRY, SCHEMA, Clock, key, order, purchases, run_case

# --- ours ------------------------------------------------------------------------------------------------------


def application(topic: str, *, schema: bool, key_field: str = "", engine: Any = None, **settings: Any) -> Any:
    """An application with one topic, and the topic. Keys are plain unless they are a field of the payload."""
    from deimos_async import Deimos, Key

    app = Deimos(
        {
            "kafka.bootstrap_servers": KAFKA,
            "kafka.create_topics": True,
            "schema.registry_url": REGISTRY,
            "schema.path": str(HERE / "schemas"),
            **settings,
        },
        engine=engine,
    )
    options: dict[str, Any] = {"key": Key.field(key_field) if key_field else Key.plain()}
    if schema:
        options["schema"] = "com.acme.BenchOrder"
    return app, app.topic(topic, **options)


def _set_up_opentelemetry() -> None:
    """Metrics and traces by the SDK, one message in a hundred sampled, nothing exported."""
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.sampling import TraceIdRatioBased

    metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    trace.set_tracer_provider(TracerProvider(sampler=TraceIdRatioBased(0.01)))


async def consume_ours(
    topic: str, count: int, *, schema: bool, batch: bool, telemetry: bool = False
) -> dict[str, float]:
    if telemetry:
        _set_up_opentelemetry()
    app, declared = application(topic, schema=schema)
    clock, done = Clock(), asyncio.Event()
    handled = 0
    field = "order_id" if schema else 0

    if batch:

        async def handle(messages: list) -> None:  # type: ignore[type-arg]
            nonlocal handled
            if not handled:
                clock.start()
            for message in messages:
                message.payload[field]
            handled += len(messages)
            if handled == count:
                clock.stop()
                done.set()
    else:

        async def handle(message) -> None:  # type: ignore[no-untyped-def,misc]
            nonlocal handled
            if not handled:
                clock.start()
            message.payload[field]
            handled += 1
            if handled == count:
                clock.stop()
                done.set()

    app.consumer(declared, group=f"bench-{uuid.uuid4().hex}", batch=batch, max_batch=500, max_wait=0.2)(handle)
    async with app.running():
        await done.wait()
    return clock.measured


async def handlers_ours(topic: str, count: int, *, concurrency: int, ordering: str) -> dict[str, float]:
    """Handlers that wait 10 ms, on one partition."""
    app, declared = application(topic, schema=False)
    clock, done = Clock(), asyncio.Event()
    begun = ended = 0

    async def handle(message) -> None:  # type: ignore[no-untyped-def]
        nonlocal begun, ended
        if not begun:
            clock.start()
        begun += 1
        await asyncio.sleep(0.01)
        ended += 1
        if ended == count:
            clock.stop()
            done.set()

    app.consumer(declared, group=f"bench-{uuid.uuid4().hex}", concurrency=concurrency, ordering=ordering)(handle)
    async with app.running():
        await done.wait()
    return clock.measured


async def produce_ours(topic: str, count: int, *, schema: bool) -> dict[str, float]:
    app, declared = application(topic, schema=schema)
    producer = app.producer(declared)
    messages = [{"payload": order(number) if schema else BODY, "key": key(number)} for number in range(count)]
    clock = Clock()
    async with app.running():
        await producer.produce_many(messages[:10])
        clock.start()
        for start in range(0, count, 5000):
            await producer.produce_many(messages[start : start + 5000])
        return clock.stop()


async def memory_ours(topic: str, count: int, *, topics: int, in_memory: bool) -> dict[str, float]:
    """Avro messages, sent to declared topics and handled by a consumer of each; every tenth of them goes to topics
    that the others did not use, where there are so many.

    Returns:
        `first`: resident MB after the first tenth. `most`: the most after any other tenth. What the interpreter would
        free at its next collection is not counted, nor what the broker in memory would keep: it is told to delete.
    """
    from deimos_async import Key
    from deimos_async.brokers.memory import MemoryBroker
    from deimos_async.message import TopicPartition

    # The broker in memory wakes all its consumers at whatever happens, so each looks after a hundred topics.
    clusters = [f"c{number}" for number in range(topics // 100)] if in_memory else ["default"]
    more = {f"clusters.{cluster}.bootstrap_servers": KAFKA for cluster in clusters if in_memory}
    app, declared = application(topic, schema=True, embedded=in_memory, **more)
    brokers = {cluster: MemoryBroker(cluster, partitions=1) for cluster in ("default", *clusters)}
    if in_memory:
        # As the test plugin does it: nobody can reach the brokers that `embedded` would make.
        app._broker_factory = lambda cluster, settings: brokers[cluster]
    producer = app.producer(declared)
    places = {topic: "default"}
    options: dict[str, Any] = {"schema": "com.acme.BenchOrder", "key": Key.plain()}
    for number in range(1, topics):
        cluster = clusters[number * len(clusters) // topics]
        places[app.topic(f"{topic}-{number}", cluster=cluster, **options).name] = cluster
    names = list(places)
    handled, wanted, reached = 0, 0, asyncio.Event()

    async def handle(message) -> None:  # type: ignore[no-untyped-def]
        nonlocal handled
        message.payload["order_id"]
        handled += 1
        if handled == wanted:
            reached.set()

    for name in names:
        app.consumer(name, group=f"bench-{uuid.uuid4().hex}")(handle)
    clock, sizes = Clock(), []
    tenth = count // 10
    async with app.running():
        clock.start()
        for number in range(10):
            share = names[number * topics // 10 : (number + 1) * topics // 10] or names
            each = tenth // len(share)
            sent = [(name, which) for name in share for which in range(each)]
            for start in range(0, len(sent), 5000):
                part = sent[start : start + 5000]
                wanted += len(part)
                reached.clear()
                await producer.produce_many(
                    [{"topic": name, "payload": order(which), "key": key(which)} for name, which in part]
                )
                await reached.wait()
                if in_memory:
                    for name in {name for name, _ in part}:
                        broker = brokers[places[name]]
                        await broker.delete_before(await broker.end_offsets([TopicPartition(name, 0)]))
            sizes.append(resident())
            print(f"    {wanted} messages: {sizes[-1]:.1f} MB", file=sys.stderr, flush=True)
        clock.stop()
    return {"first": sizes[0], "most": max(sizes[1:]), **clock.measured}


async def upsert_fill(topic: str, count: int) -> dict[str, float]:
    """Send what the area "upsert" reads."""
    app, declared = application(topic, schema=True, key_field="order_id")
    producer = app.producer(declared)
    messages, clock = purchases(count), Clock()
    async with app.running():
        clock.start()
        while part := list(islice(messages, 5000)):
            await producer.produce_many([{"payload": record} for record in part])
        return clock.stop()


class Kept:
    """How many messages a model consumer has brought into the table for good."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.reached = asyncio.Event()
        self.wanted = 0
        self._begun = False
        self._written = 0

    def begin(self) -> None:
        if not self._begun:
            self._begun = True
            self.clock.start()

    def wrote(self, count: int) -> None:
        self._written += count

    def committed(self, event: Any) -> None:
        if self._written == self.wanted:
            self.clock.stop()
            self.reached.set()


def keep(app: Any, topic: Any, *, delivery: str) -> Kept:
    """Declare the model consumer of the area "upsert"."""
    from upserting import BATCH, Purchase

    from deimos_async import ModelConsumer

    kept = Kept()

    class KeepPurchases(ModelConsumer[Purchase]):  # type: ignore[misc]
        async def pre_process(self, messages: Any) -> None:
            kept.begin()

        async def post_process_batch(self, messages: Any, session: Any) -> None:
            kept.wrote(len(messages))

    app.consumer(
        topic, group=f"bench-{uuid.uuid4().hex}", batch=True, max_batch=BATCH, max_wait=0.2, delivery=delivery
    )(KeepPurchases)
    app.events.subscribe("deimos.ar_consumer.consume_batch", kept.committed)  # told after the commit
    return kept


async def upsert_ours(topic: str, count: int, *, server: str, delivery: str = "at_least_once") -> dict[str, float]:
    from upserting import check, emptied

    from deimos_async.database.creation import create_framework_tables

    async with emptied(server) as engine:
        if delivery == "effectively_once":
            await create_framework_tables(engine)
        app, declared = application(topic, schema=True, key_field="order_id", engine=engine)
        kept = keep(app, declared, delivery=delivery)
        kept.wanted = count
        async with app.running():
            await kept.reached.wait()
        await check(engine, count)
    return kept.clock.measured


async def memory_upsert(topic: str, count: int) -> dict[str, float]:
    """As `memory_ours` with one topic, whose messages become rows in PostgreSQL."""
    from upserting import check, emptied

    async with emptied("postgres") as engine:
        app, declared = application(topic, schema=True, key_field="order_id", engine=engine)
        producer = app.producer(declared)
        kept = keep(app, declared, delivery="at_least_once")
        messages, sizes = purchases(count), []
        async with app.running():
            while part := list(islice(messages, 5000)):
                kept.wanted += len(part)
                kept.reached.clear()
                await producer.produce_many([{"payload": record} for record in part])
                await kept.reached.wait()
                if kept.wanted * 10 // count > len(sizes):
                    sizes.append(resident())
                    print(f"    {kept.wanted} messages: {sizes[-1]:.1f} MB", file=sys.stderr, flush=True)
        await check(engine, count)
    return {"first": sizes[0], "most": max(sizes[1:]), **kept.clock.measured}


def resident() -> float:
    """Resident memory in MB, without garbage."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


async def codec_ours(count: int, *, decode: bool, coerce: bool = False) -> dict[str, float]:
    from deimos_async.schemas.avro import avro_schema_registry

    compiled = avro_schema_registry.compile(SCHEMA)
    clock = Clock()
    payload = order(1)
    if decode:
        data = FRAME + compiled.encode(compiled.coerce(payload))
        read = compiled.decoder()
        clock.start()
        for _ in range(count):
            read(data, len(FRAME))
        return clock.stop()
    clock.start()
    for _ in range(count):
        FRAME + compiled.encode(compiled.coerce(payload) if coerce else payload)
    return clock.stop()


# --- by hand, with the clients alone ---------------------------------------------------------------------------


async def codec_raw(count: int, *, decode: bool) -> dict[str, float]:
    from fastavro import parse_schema, schemaless_reader, schemaless_writer

    parsed = parse_schema(json.loads(SCHEMA))
    clock = Clock()
    payload = order(1)

    def encode() -> bytes:
        out = io.BytesIO()
        out.write(FRAME)
        schemaless_writer(out, parsed, payload)
        return out.getvalue()

    if decode:
        data = encode()
        clock.start()
        for _ in range(count):
            source = io.BytesIO(data)
            source.seek(len(FRAME))
            schemaless_reader(source, parsed, None)
        return clock.stop()
    clock.start()
    for _ in range(count):
        encode()
    return clock.stop()


async def consume_raw(topic: str, count: int, *, schema: bool) -> dict[str, float]:
    from aiokafka import AIOKafkaConsumer
    from fastavro import parse_schema, schemaless_reader

    parsed = parse_schema(json.loads(SCHEMA))
    handled = 0

    async def handle(payload: Any) -> None:
        nonlocal handled
        if not handled:
            clock.start()
        payload[field]
        handled += 1
        if handled == count:
            clock.stop()

    clock = Clock()
    field = "order_id" if schema else 0
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=KAFKA,
        group_id=f"bench-{uuid.uuid4().hex}",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    await consumer.start()
    try:
        while handled < count:
            for records in (await consumer.getmany(timeout_ms=500, max_records=500)).values():
                for record in records:
                    if schema:
                        source = io.BytesIO(record.value)
                        source.seek(len(FRAME))
                        await handle(schemaless_reader(source, parsed, None))
                    else:
                        await handle(record.value)
    finally:
        await consumer.stop()
    return clock.measured


async def produce_raw(topic: str, count: int, *, schema: bool) -> dict[str, float]:
    from aiokafka import AIOKafkaProducer
    from aiokafka.partitioner import murmur2
    from fastavro import parse_schema, schemaless_writer

    parsed = parse_schema(json.loads(SCHEMA))
    messages = [(key(number), order(number) if schema else BODY) for number in range(count)]
    clock = Clock()
    producer = AIOKafkaProducer(
        bootstrap_servers=KAFKA, enable_idempotence=True, acks="all", max_batch_size=BATCH_BYTES
    )
    await producer.start()
    try:
        partitions = len(await producer.partitions_for(topic))
        clock.start()
        for start in range(0, count, 5000):
            batches: list[Any] = []
            batch = producer.create_batch()
            for name, payload in messages[start : start + 5000]:
                if schema:
                    out = io.BytesIO()
                    out.write(FRAME)
                    schemaless_writer(out, parsed, payload)
                    value = out.getvalue()
                else:
                    value = payload
                encoded = name.encode()
                assert (murmur2(encoded) & 0x7FFFFFFF) % partitions == 0
                if batch.append(key=encoded, value=value, timestamp=None) is None:
                    batches.append(await producer.send_batch(batch, topic, partition=0))
                    batch = producer.create_batch()
                    batch.append(key=encoded, value=value, timestamp=None)
            batches.append(await producer.send_batch(batch, topic, partition=0))
            await asyncio.gather(*batches)
        return clock.stop()
    finally:
        await producer.stop()


async def upsert_raw(topic: str, count: int, *, server: str) -> dict[str, float]:
    """Batches of what one fetch has, the last message of each key in them; offsets are committed after the rows."""
    from aiokafka import AIOKafkaConsumer
    from fastavro import parse_schema, schemaless_reader
    from upserting import BATCH, BY_HAND, check, emptied, row_of

    parsed = parse_schema(json.loads(SCHEMA))
    clock = Clock()
    handled = 0
    async with emptied(server) as engine, BY_HAND[server](engine) as write:
        consumer = AIOKafkaConsumer(
            topic,
            bootstrap_servers=KAFKA,
            group_id=f"bench-{uuid.uuid4().hex}",
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        await consumer.start()
        try:
            while handled < count:
                for records in (await consumer.getmany(timeout_ms=500, max_records=BATCH)).values():
                    rows = {}
                    for record in records:
                        source = io.BytesIO(record.value)
                        source.seek(len(FRAME))
                        row = row_of(schemaless_reader(source, parsed, None))
                        rows[row[0]] = row
                    if not handled:
                        clock.start()
                    await write(rows.values())
                    handled += len(records)
                    if handled == count:
                        clock.stop()
                    await consumer.commit()
        finally:
            await consumer.stop()
        await check(engine, count)
    return clock.measured


async def enqueue(count: int, *, server: Any, by_hand: bool = False) -> dict[str, float]:
    """Encoded messages become rows of the outbox."""
    from enqueuing import enqueue_ours, enqueue_raw

    return await (enqueue_raw if by_hand else enqueue_ours)(count, server=server)


async def poll(topic: str, count: int, *, server: Any, by_hand: bool = False) -> dict[str, float]:
    """Rows of a table become messages."""
    from polling import poll_ours, poll_raw

    return await (poll_raw if by_hand else poll_ours)(topic, count, server=server)


CASES: dict[str, Callable[[str, int], Coroutine[Any, Any, dict[str, float]]]] = {
    "codec-coerce": lambda topic, count: codec_ours(count, decode=False, coerce=True),
    "codec-encode": lambda topic, count: codec_ours(count, decode=False),
    "codec-decode": lambda topic, count: codec_ours(count, decode=True),
    "codec-encode-raw": lambda topic, count: codec_raw(count, decode=False),
    "codec-decode-raw": lambda topic, count: codec_raw(count, decode=True),
    "consume-plain": lambda topic, count: consume_ours(topic, count, schema=False, batch=False),
    "consume-plain-raw": lambda topic, count: consume_raw(topic, count, schema=False),
    "consume-avro": lambda topic, count: consume_ours(topic, count, schema=True, batch=False),
    "consume-avro-batch": lambda topic, count: consume_ours(topic, count, schema=True, batch=True),
    "consume-avro-telemetry": lambda topic, count: consume_ours(topic, count, schema=True, batch=False, telemetry=True),
    "consume-avro-raw": lambda topic, count: consume_raw(topic, count, schema=True),
    "handlers-by-key": lambda topic, count: handlers_ours(topic, count, concurrency=32, ordering="key"),
    "handlers-in-turn": lambda topic, count: handlers_ours(topic, count, concurrency=1, ordering="partition"),
    "produce-plain": lambda topic, count: produce_ours(topic, count, schema=False),
    "produce-plain-raw": lambda topic, count: produce_raw(topic, count, schema=False),
    "produce-avro": lambda topic, count: produce_ours(topic, count, schema=True),
    "produce-avro-raw": lambda topic, count: produce_raw(topic, count, schema=True),
    "memory-topics": lambda topic, count: memory_ours(topic, count, topics=5000, in_memory=True),
    "memory-kafka": lambda topic, count: memory_ours(topic, count, topics=1, in_memory=False),
    "memory-upsert": memory_upsert,
    "upsert-fill": upsert_fill,
    "upsert-postgres": lambda topic, count: upsert_ours(topic, count, server="postgres"),
    "upsert-postgres-once": lambda topic, count: upsert_ours(
        topic, count, server="postgres", delivery="effectively_once"
    ),
    "upsert-postgres-raw": lambda topic, count: upsert_raw(topic, count, server="postgres"),
    "upsert-mariadb": lambda topic, count: upsert_ours(topic, count, server="mariadb"),
    "upsert-mariadb-raw": lambda topic, count: upsert_raw(topic, count, server="mariadb"),
    "upsert-sqlite": lambda topic, count: upsert_ours(topic, count, server="sqlite"),
    "upsert-sqlite-raw": lambda topic, count: upsert_raw(topic, count, server="sqlite"),
    "enqueue-postgres": lambda topic, count: enqueue(count, server="postgres"),
    "enqueue-postgres-raw": lambda topic, count: enqueue(count, server="postgres", by_hand=True),
    "enqueue-mariadb": lambda topic, count: enqueue(count, server="mariadb"),
    "enqueue-mariadb-raw": lambda topic, count: enqueue(count, server="mariadb", by_hand=True),
    "enqueue-sqlite": lambda topic, count: enqueue(count, server="sqlite"),
    "enqueue-sqlite-raw": lambda topic, count: enqueue(count, server="sqlite", by_hand=True),
    "poll-postgres": lambda topic, count: poll(topic, count, server="postgres"),
    "poll-postgres-raw": lambda topic, count: poll(topic, count, server="postgres", by_hand=True),
    "poll-mariadb": lambda topic, count: poll(topic, count, server="mariadb"),
    "poll-mariadb-raw": lambda topic, count: poll(topic, count, server="mariadb", by_hand=True),
}


def in_loop(case: Callable[[str, int], Coroutine[Any, Any, dict[str, float]]]) -> Callable[..., dict[str, float]]:
    return lambda topic, count: asyncio.run(case(topic, count))


if __name__ == "__main__":
    run_case({name: in_loop(case) for name, case in CASES.items()})
