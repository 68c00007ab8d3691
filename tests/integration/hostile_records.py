"""Writes floods of headers and a compression bomb, or reads them; prints what came of it.

Run by `test_hostile_records.py`, each step in a process of its own: what a writer needs is not counted for the reader.
The consumer fails for every flood, so that each must become a dead letter.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from aiokafka import AIOKafkaProducer

from deimos_async import Deimos, Key, Message, OnError
from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.protocol import Broker, NewTopic
from deimos_async.message import InboundRecord, TopicPartition

DEADLINE = 120.0
MEGABYTE = 1 << 20
ROOM = 200
"""Bytes of a batch that are not headers: its frame, and what the numbers of a record take."""
Headers = list[tuple[str, bytes | None]]

FLOODS: dict[str, list[Headers]] = {
    "ten thousand": [[(f"name-{number}", b"value") for number in range(10_000)]] * 5,
    # As many as a broker takes with its own limit for a batch.
    "megabyte in one": [[("h", b"x" * (MEGABYTE - ROOM))]] * 3,
    "megabyte of many": [[("name", b"x" * 93)] * ((MEGABYTE - ROOM) // 100)] * 3,
    # Two bytes each, the most that fit.
    "half a million": [[("", None)] * ((MEGABYTE - ROOM) // 2)] * 2,
}
BOMB = 64
"""Records of a megabyte each, in one batch of 64 kilobytes."""


class Loop:
    """How long the event loop was held at most, in seconds."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            self.longest = max(self.longest, time.perf_counter() - before - 0.002)


@contextmanager
def watched() -> Iterator[Loop]:
    loop = Loop()
    task = asyncio.create_task(loop.watch())
    try:
        yield loop
    finally:
        task.cancel()


def peak() -> int:
    """Bytes that the process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def write(bootstrap: str, topic: str, floods: list[Headers]) -> None:
    """By a client that refuses nothing."""
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, max_request_size=4 * MEGABYTE)
    await producer.start()
    for headers in floods:
        # A batch of its own, as the limit is for batches.
        await producer.send_and_wait(topic, b"v", headers=headers)
    await producer.stop()


async def write_bomb(bootstrap: str, topic: str) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=bootstrap,
        compression_type="gzip",
        max_batch_size=2 * BOMB * MEGABYTE,
    )
    await producer.start()
    batch = producer.create_batch()
    for _ in range(BOMB):
        assert batch.append(key=None, value=bytes(MEGABYTE), timestamp=None) is not None
    await (await producer.send_batch(batch, topic, partition=0))
    await producer.stop()


async def write_all(bootstrap: str, prefix: str, kind: str) -> dict[str, Any]:
    broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=bootstrap))
    await broker.start()
    topic = f"{prefix}records"
    await broker.create_topics([NewTopic(topic, 1), NewTopic(f"{topic}-dlt", 1)])
    await broker.stop()
    if kind == "bomb":
        await write_bomb(bootstrap, topic)
    else:
        await write(bootstrap, topic, FLOODS[kind])
    return {}


async def read_all(bootstrap: str, prefix: str, kind: str) -> dict[str, Any]:
    app = Deimos({"kafka.bootstrap_servers": bootstrap, "producers.topic_prefix": prefix}, metrics=None, tracing=None)
    topic = app.topic("records", schema_backend="plain", key=Key.none(), on_error=OnError(attempts=1))
    expected = BOMB if kind == "bomb" else len(FLOODS[kind])
    seen = 0
    done = asyncio.Event()

    @app.consumer(topic, group="g")
    async def handle(message: Message) -> None:
        nonlocal seen
        seen += 1
        if seen >= expected:
            done.set()
        if kind != "bomb":
            raise ValueError("refused")

    before = peak()
    with watched() as loop:
        async with app.running(), asyncio.timeout(DEADLINE):
            await done.wait()
    # The stop has waited for the last letter.
    held, grown = loop.longest, peak() - before
    async with app.administration() as opened:
        broker = opened.brokers["default"]
        letters = [kept_and_added(record, kind) async for record in read(broker, f"{prefix}records-dlt")]
        committed = (await broker.group_offsets(f"{prefix}g")).get(TopicPartition(f"{prefix}records", 0))
    return {
        "seen": seen, "expected": expected, "letters": letters, "committed": committed, "held": held, "grown": grown
    }  # fmt: skip


async def read(broker: Broker, topic: str) -> AsyncIterator[InboundRecord]:
    id = TopicPartition(topic, 0)
    async for records in broker.read({id: (0, (await broker.end_offsets([id]))[id])}):
        for record in records:
            yield record


def kept_and_added(record: InboundRecord, kind: str) -> tuple[bool, int]:
    """Whether a letter has the headers that were written, and how many of ours."""
    ours = [name for name, _ in record.headers if name.startswith("deimos-dlq-")]
    return list(record.headers[: len(record.headers) - len(ours)]) == FLOODS[kind][0], len(ours)


if __name__ == "__main__":
    step = {"write": write_all, "read": read_all}[sys.argv[1]]
    print(json.dumps(asyncio.run(step(*sys.argv[2:]))))
