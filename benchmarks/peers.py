"""The same measurements with other frameworks and with the other client; `make bench` runs it in `.venv-peers`.

`peers.py CASE ...` is one measurement in a fresh process, as in cases.py. `peers.py versions` tells as JSON which
version of each package is here, or why it cannot be used.

Payloads are decoded by fastavro, with a parsed schema, before the handler is called, by the means that each framework
offers for it. Everything that is not mentioned is at its default; so offsets are committed as each framework does it by
itself.
"""

import asyncio
import importlib
import importlib.metadata
import io
import json
import logging
import sys
import tempfile
import uuid
from collections.abc import Callable
from typing import Any

from measuring import BATCH_BYTES, FRAME, KAFKA, SCHEMA, Clock, key, order, run_case

PACKAGES = {
    "aiokafka": "aiokafka",
    "asyncpg": "asyncpg",
    "confluent-kafka": "confluent_kafka",
    "fastavro": "fastavro",
    "faststream": "faststream.kafka",
    "kstreams": "kstreams",
    "quixstreams": "quixstreams",
    "sqlalchemy": "sqlalchemy.ext.asyncio",
}
"""What is imported of each package."""
_POLL_EVERY = 100
"""Messages between two looks for delivery reports."""


def avro_reader() -> Callable[[bytes], Any]:
    """Decodes a framed payload."""
    from fastavro import parse_schema, schemaless_reader

    parsed = parse_schema(json.loads(SCHEMA))

    def read(data: bytes) -> Any:
        source = io.BytesIO(data)
        source.seek(len(FRAME))
        return schemaless_reader(source, parsed, None)

    return read


def faststream(topic: str, count: int, *, schema: bool, decoder: bool = False, tuned: bool = False) -> dict[str, float]:
    """`KafkaBroker(logger=None)`. With Avro the subscriber gets bytes, and hands on what fastavro reads.

    decoder: fastavro is called by a `decoder=` instead, which saves FastStream's own try to read JSON.
    tuned: that, without Avro too, and `apply_types=False`, which saves the injection.
    """
    from faststream.kafka import KafkaBroker, KafkaMessage

    async def main() -> dict[str, float]:
        read = avro_reader()
        clock, done = Clock(), asyncio.Event()
        handled = 0
        kind, field = (dict, "order_id") if schema else (bytes, 0)

        async def handle(payload: kind) -> None:  # the annotation that an application would have
            nonlocal handled
            if not handled:
                clock.start()
            payload[field]
            handled += 1
            if handled == count:
                clock.stop()
                done.set()

        async def subscriber(body: bytes) -> None:
            await handle(read(body))

        async def decode(message: KafkaMessage) -> Any:
            return read(message.body) if schema else message.body

        options: dict[str, Any] = {"decoder": decode} if decoder or tuned else {}
        broker = KafkaBroker(KAFKA, logger=None, **({"apply_types": False} if tuned else {}))
        broker.subscriber(topic, group_id=group(), auto_offset_reset="earliest", **options)(
            subscriber if schema and not options else handle
        )
        await broker.start()
        await done.wait()
        await broker.stop()
        return clock.measured

    return asyncio.run(main())


def faststream_upsert(topic: str, count: int, *, how: str, tuned: bool = False) -> dict[str, float]:
    """`KafkaBroker(logger=None)`, whose handlers write into PostgreSQL what fastavro reads.

    how: `"row"`: message mode, an upsert by SQLAlchemy and a commit for each message. `"executemany"`: batch mode,
    SQLAlchemy's `executemany` of the same statement. `"copy"`: batch mode, asyncpg's COPY and a merge. A batch has one
    transaction, and is compacted before.
    tuned: fastavro is called by a `decoder=`, and `apply_types=False`.
    """
    from faststream.kafka import KafkaBroker, KafkaMessage
    from sqlalchemy.dialects.postgresql import insert
    from upserting import BATCH, COLUMNS, OTHERS, Purchase, check, copy_and_merge, emptied, row_of

    async def main() -> dict[str, float]:
        read = avro_reader()
        clock, done = Clock(), asyncio.Event()
        handled = 0
        new = insert(Purchase)
        upsert = new.on_conflict_do_update(
            index_elements=["order_id"], set_={name: new.excluded[name] for name in OTHERS}
        )

        async with emptied("postgres") as engine, copy_and_merge(engine) as copy:

            async def handle(payloads: list[dict[str, Any]]) -> None:
                nonlocal handled
                if not handled:
                    clock.start()
                rows = {payload["order_id"]: row_of(payload) for payload in payloads}.values()
                if how == "copy":
                    await copy(rows)
                else:
                    async with engine.begin() as connection:
                        await connection.execute(upsert, [dict(zip(COLUMNS, row, strict=True)) for row in rows])
                handled += len(payloads)
                if handled == count:
                    clock.stop()
                    done.set()

            async def one(body: bytes) -> None:
                await handle([read(body)])

            async def several(bodies: list[bytes]) -> None:
                await handle([read(body) for body in bodies])

            async def decode(message: KafkaMessage) -> Any:
                return [read(body) for body in message.body]

            options: dict[str, Any] = {"decoder": decode} if tuned else {}
            if how != "row":
                options |= {"batch": True, "max_records": BATCH}
            broker = KafkaBroker(KAFKA, logger=None, **({"apply_types": False} if tuned else {}))
            broker.subscriber(topic, group_id=group(), auto_offset_reset="earliest", **options)(
                handle if tuned else one if how == "row" else several
            )
            await broker.start()
            await done.wait()
            await broker.stop()
            await check(engine, count)
        return clock.measured

    return asyncio.run(main())


def kstreams(topic: str, count: int) -> dict[str, float]:
    """A stream of records whose middleware decodes them."""
    from kstreams import ConsumerRecord, create_engine
    from kstreams.backends import Kafka
    from kstreams.middleware import BaseMiddleware, Middleware

    read = avro_reader()

    class Decode(BaseMiddleware):
        async def __call__(self, cr: ConsumerRecord) -> Any:
            cr.value = read(cr.value)
            return await self.next_call(cr)

    async def main() -> dict[str, float]:
        engine = create_engine(title="bench", backend=Kafka(bootstrap_servers=[KAFKA]))
        clock, done = Clock(), asyncio.Event()
        handled = 0

        async def handle(cr: ConsumerRecord) -> None:
            nonlocal handled
            if not handled:
                clock.start()
            cr.value["order_id"]
            handled += 1
            if handled == count:
                clock.stop()
                done.set()

        engine.stream(topic, group_id=group(), auto_offset_reset="earliest", middlewares=[Middleware(Decode)])(handle)
        await engine.start()
        await done.wait()
        await engine.stop()
        return clock.measured

    return asyncio.run(main())


def quixstreams(topic: str, count: int) -> dict[str, float]:
    """An application whose topic has a deserializer of its own, and a dataframe with one `update`."""
    from quixstreams import Application
    from quixstreams.models import Deserializer

    read = avro_reader()

    class Decode(Deserializer):  # type: ignore[misc]
        def __call__(self, value: bytes, ctx: Any) -> Any:
            return read(value)

    with tempfile.TemporaryDirectory() as state:
        app = Application(
            KAFKA, consumer_group=group(), auto_offset_reset="earliest", state_dir=state, loglevel="WARNING"
        )
        clock = Clock()
        handled = 0

        def handle(value: Any) -> None:
            nonlocal handled
            if not handled:
                clock.start()
            value["order_id"]
            handled += 1
            if handled == count:
                clock.stop()
                app.stop()

        app.dataframe(app.topic(topic, value_deserializer=Decode())).update(handle)
        app.run()
    return clock.measured


def confluent(topic: str, count: int) -> dict[str, float]:
    """fastavro and `produce` with a delivery callback for each message; it is over when all are acknowledged."""
    from confluent_kafka import Producer
    from fastavro import parse_schema, schemaless_writer

    parsed = parse_schema(json.loads(SCHEMA))
    messages = [(key(number), order(number)) for number in range(count)]
    producer = Producer(
        {
            "bootstrap.servers": KAFKA,
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": "none",
            "partitioner": "murmur2_random",
            "batch.size": BATCH_BYTES,
            "linger.ms": 5,
        }
    )
    acknowledged = 0

    def delivered(error: Any, message: Any) -> None:
        nonlocal acknowledged
        if error is not None:
            raise RuntimeError(str(error))
        acknowledged += 1

    def send(name: str, payload: Any) -> None:
        out = io.BytesIO()
        out.write(FRAME)
        schemaless_writer(out, parsed, payload)
        producer.produce(topic, value=out.getvalue(), key=name, on_delivery=delivered)

    for name, payload in messages[:10]:
        send(name, payload)
    producer.flush()
    acknowledged = 0
    clock = Clock()
    clock.start()
    for start in range(0, count, _POLL_EVERY):
        for name, payload in messages[start : start + _POLL_EVERY]:
            send(name, payload)
        producer.poll(0)
    producer.flush()
    clock.stop()
    if acknowledged != count:
        raise RuntimeError(f"{acknowledged} of {count} messages were acknowledged")
    return clock.measured


def group() -> str:
    """A group that reads from the beginning."""
    return f"bench-{uuid.uuid4().hex}"


def versions() -> dict[str, dict[str, str]]:
    """Of each package its `version`, or as `problem` why it cannot be used."""
    found = {}
    for package, module in PACKAGES.items():
        try:
            importlib.import_module(module)
            found[package] = {"version": importlib.metadata.version(package)}
        except Exception as error:
            found[package] = {"problem": f"{type(error).__name__}: {error}"}
    return found


CASES: dict[str, Callable[[str, int], dict[str, float]]] = {
    "faststream-plain": lambda topic, count: faststream(topic, count, schema=False),
    "faststream-plain-tuned": lambda topic, count: faststream(topic, count, schema=False, tuned=True),
    "faststream-avro": lambda topic, count: faststream(topic, count, schema=True),
    "faststream-avro-decoder": lambda topic, count: faststream(topic, count, schema=True, decoder=True),
    "faststream-avro-tuned": lambda topic, count: faststream(topic, count, schema=True, tuned=True),
    "faststream-upsert-row": lambda topic, count: faststream_upsert(topic, count, how="row"),
    "faststream-upsert-executemany": lambda topic, count: faststream_upsert(topic, count, how="executemany"),
    "faststream-upsert-executemany-tuned": lambda topic, count: faststream_upsert(
        topic, count, how="executemany", tuned=True
    ),
    "faststream-upsert-copy": lambda topic, count: faststream_upsert(topic, count, how="copy"),
    "faststream-upsert-copy-tuned": lambda topic, count: faststream_upsert(topic, count, how="copy", tuned=True),
    "kstreams-avro": kstreams,
    "quixstreams-avro": quixstreams,
    "confluent-avro": confluent,
}

if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    if sys.argv[1:] == ["versions"]:
        print(json.dumps(versions()))
    else:
        run_case(CASES)
