"""One measurement in a fresh process: prints what it did, the wall time and the CPU time of the timed part as JSON.

Imports, connections and set-up are outside of the timed part;
consuming is timed from the first call of the handler. CPU time is that of the whole process, all its threads.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import resource
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KAFKA = os.environ.get("DEIMOS_TEST_KAFKA", "localhost:9092")
REGISTRY = os.environ.get("DEIMOS_TEST_REGISTRY", "http://localhost:8081")
SCHEMA = (HERE / "schemas/com/acme/BenchOrder.avsc").read_text()


def order(number: int) -> dict[str, Any]:
    """A record of about 180 bytes with its frame."""
    return {
        "order_id": number,
        "customer": "Marie Skłodowska-Curie",
        "coupon": None if number % 3 else "SPRING-2026",
        "total": number * 1.25,
        "placed_at": datetime(2026, 1, 1, 12, 30, tzinfo=UTC),
        "address": {"street": "36 Quai de Béthune, third floor on the left", "city": "Paris", "zip": "75004"},
        "tags": ["gift", "express", "fragile goods", "second order"],
        "status": ("NEW", "PAID", "SHIPPED")[number % 3],
    }


class Clock:
    """Wall and CPU time since `start`."""

    def start(self) -> None:
        self._cpu = self._used()
        self._wall = time.perf_counter()

    def stop(self) -> dict[str, float]:
        return {"wall": time.perf_counter() - self._wall, "cpu": self._used() - self._cpu}

    @staticmethod
    def _used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


# --- ours ------------------------------------------------------------------------------------------------------


def application(topic: str, *, schema: bool, **settings: Any) -> Any:
    """An application with one topic, and the topic."""
    from deimos_async import Deimos, Key

    app = Deimos(
        {
            "kafka.bootstrap_servers": KAFKA,
            "kafka.create_topics": True,
            "schema.registry_url": REGISTRY,
            "schema.path": str(HERE / "schemas"),
            **settings,
        }
    )
    options: dict[str, Any] = {"key": Key.plain()}
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
            if handled >= count:
                done.set()
    else:

        async def handle(message) -> None:  # type: ignore[no-untyped-def,misc]
            nonlocal handled
            if not handled:
                clock.start()
            message.payload[field]
            handled += 1
            if handled >= count:
                done.set()

    app.consumer(declared, group=f"bench-{uuid.uuid4().hex}", batch=batch, max_batch=500, max_wait=0.2)(handle)
    async with app.running():
        await done.wait()
        return clock.stop()


async def handlers_ours(topic: str, count: int, *, concurrency: int, ordering: str) -> dict[str, float]:
    """Handlers that wait 10 ms, on one partition."""
    app, declared = application(topic, schema=False)
    clock, done = Clock(), asyncio.Event()
    ended = 0

    async def handle(message) -> None:  # type: ignore[no-untyped-def]
        nonlocal ended
        if not ended:
            clock.start()
        await asyncio.sleep(0.01)
        ended += 1
        if ended >= count:
            done.set()

    app.consumer(declared, group=f"bench-{uuid.uuid4().hex}", concurrency=concurrency, ordering=ordering)(handle)
    async with app.running():
        await done.wait()
        return clock.stop()


async def produce_ours(topic: str, count: int, *, schema: bool) -> dict[str, float]:
    app, declared = application(topic, schema=schema)
    producer = app.producer(declared)
    body = b"x" * 176
    messages = [{"payload": order(number) if schema else body, "key": str(number % 1000)} for number in range(count)]
    clock = Clock()
    async with app.running():
        await producer.produce_many(messages[:10])
        clock.start()
        for start in range(0, count, 5000):
            await producer.produce_many(messages[start : start + 5000])
        return clock.stop()


async def codec_ours(count: int, *, decode: bool, coerce: bool = False) -> dict[str, float]:
    from deimos_async.schemas.avro import avro_schema_registry

    compiled = avro_schema_registry.compile(SCHEMA)
    clock = Clock()
    payload = order(1)
    if decode:
        data = b"\0\0\0\0\1" + compiled.encode(compiled.coerce(payload))
        read = compiled.decoder()
        clock.start()
        for _ in range(count):
            read(data, 5)
        return clock.stop()
    clock.start()
    for _ in range(count):
        b"\0\0\0\0\1" + compiled.encode(compiled.coerce(payload) if coerce else payload)
    return clock.stop()


# --- by hand, with the clients alone ---------------------------------------------------------------------------


async def codec_raw(count: int, *, decode: bool) -> dict[str, float]:
    from fastavro import parse_schema, schemaless_reader, schemaless_writer

    parsed = parse_schema(json.loads(SCHEMA))
    clock = Clock()
    payload = order(1)

    def encode() -> bytes:
        out = io.BytesIO()
        out.write(b"\0\0\0\0\1")
        schemaless_writer(out, parsed, payload)
        return out.getvalue()

    if decode:
        data = encode()
        clock.start()
        for _ in range(count):
            source = io.BytesIO(data)
            source.seek(5)
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
        payload["order_id" if schema else 0]
        handled += 1

    clock = Clock()
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
                        source.seek(5)
                        await handle(schemaless_reader(source, parsed, None))
                    else:
                        await handle(record.value)
        return clock.stop()
    finally:
        await consumer.stop()


async def produce_raw(topic: str, count: int, *, schema: bool) -> dict[str, float]:
    from aiokafka import AIOKafkaProducer
    from aiokafka.partitioner import murmur2
    from fastavro import parse_schema, schemaless_writer

    parsed = parse_schema(json.loads(SCHEMA))
    body = b"\0\0\0\0\1" + b"x" * 176
    payloads = [order(number) for number in range(count)] if schema else []
    clock = Clock()
    producer = AIOKafkaProducer(bootstrap_servers=KAFKA, enable_idempotence=True, acks="all", max_batch_size=128 * 1024)
    await producer.start()
    try:
        partitions = len(await producer.partitions_for(topic))
        clock.start()
        for start in range(0, count, 5000):
            batches: list[Any] = []
            batch = producer.create_batch()
            for number in range(start, min(start + 5000, count)):
                if schema:
                    out = io.BytesIO()
                    out.write(b"\0\0\0\0\1")
                    schemaless_writer(out, parsed, payloads[number])
                    value = out.getvalue()
                else:
                    value = body
                key = str(number % 1000).encode()
                assert (murmur2(key) & 0x7FFFFFFF) % partitions == 0
                if batch.append(key=key, value=value, timestamp=None) is None:
                    batches.append(await producer.send_batch(batch, topic, partition=0))
                    batch = producer.create_batch()
                    batch.append(key=key, value=value, timestamp=None)
            batches.append(await producer.send_batch(batch, topic, partition=0))
            await asyncio.gather(*batches)
        return clock.stop()
    finally:
        await producer.stop()


async def fill(topic: str, count: int, *, schema: bool) -> dict[str, float]:
    """A topic to read from."""
    return await produce_ours(topic, count, schema=schema)


CASES: dict[str, Callable[[str, int], Awaitable[dict[str, float]]]] = {
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
    "handlers-by-key": lambda topic, count: handlers_ours(topic, count, concurrency=32, ordering="key"),
    "handlers-in-turn": lambda topic, count: handlers_ours(topic, count, concurrency=1, ordering="partition"),
    "consume-avro-raw": lambda topic, count: consume_raw(topic, count, schema=True),
    "produce-plain": lambda topic, count: produce_ours(topic, count, schema=False),
    "produce-plain-raw": lambda topic, count: produce_raw(topic, count, schema=False),
    "produce-avro": lambda topic, count: produce_ours(topic, count, schema=True),
    "produce-avro-raw": lambda topic, count: produce_raw(topic, count, schema=True),
    "fill-plain": lambda topic, count: fill(topic, count, schema=False),
    "fill-avro": lambda topic, count: fill(topic, count, schema=True),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=sorted(CASES))
    parser.add_argument("--topic", default="")
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    measured = asyncio.run(CASES[arguments.case](arguments.topic, arguments.count))
    print(json.dumps({"count": arguments.count, **measured}))


if __name__ == "__main__":
    main()
