"""Programs as processes, what they print as it comes, and another client's producer and consumer."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DEADLINE = 90.0
"""Generous: machines are shared. Nothing here is about speed."""


class Program:
    """One `python -m deimos_async run` whose ledger lines are read as they come."""

    def __init__(self, target: str, environment: dict[str, str], *arguments: str) -> None:
        self.handled: list[tuple[int, int, int]] = []
        """(partition, offset, order_id) in the order of handling."""
        self.errors = ""
        self._command = [sys.executable, "-m", "deimos_async", "run", target, *arguments]
        self._environment = {**os.environ, **environment}
        self._changed = asyncio.Event()

    async def start(self) -> Program:
        self.process = await asyncio.create_subprocess_exec(
            *self._command,
            cwd=HERE,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.gather(self._read_ledger(), self._read_errors())
        return self

    async def _read_ledger(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            partition, offset, order = line.split()
            self.handled.append((int(partition), int(offset), int(order)))
            self._changed.set()
        self._changed.set()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.errors += line.decode()
            self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds; it is asked again whenever the program has said something."""
        async with asyncio.timeout(DEADLINE):
            while not condition():
                if self._reading.done():
                    raise AssertionError(f"the program ended too early:\n{self.errors[-4000:]}")
                self._changed.clear()
                await self._changed.wait()

    async def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, read to the end, and return the exit status."""
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end by itself; everything it has said is read then."""
        async with asyncio.timeout(DEADLINE):
            await self._reading
            return await self.process.wait()

    async def remove(self) -> None:
        """At the end of a test, whatever happened."""
        if self.process.returncode is None:
            self.process.kill()
        await self._reading
        await self.process.wait()


async def either(programs: Sequence[Program], condition: Callable[[], bool]) -> None:
    """Wait until a condition over several programs holds."""
    async with asyncio.timeout(DEADLINE):
        while not condition():
            waits = []
            for program in programs:
                program._changed.clear()
                waits.append(asyncio.create_task(program._changed.wait()))
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()


def duplicates(*ledgers: Sequence[tuple[int, int, int]]) -> dict[int, list[int]]:
    """Offsets that were handled more than once, ascending, by partition."""
    times = Counter((partition, offset) for ledger in ledgers for partition, offset, _ in ledger)
    found: dict[int, list[int]] = {}
    for (partition, offset), count in sorted(times.items()):
        if count > 1:
            found.setdefault(partition, []).append(offset)
    return found


def order(number: int, **more: Any) -> dict[str, Any]:
    """A payload as another client writes it."""
    from datetime import UTC, datetime
    from decimal import Decimal

    return {
        "order_id": number,
        "customer": {"name": f"customer {number}", "email": None if number % 2 else f"{number}@example.com"},
        "total": Decimal(number).scaleb(-2),
        "placed_at": datetime(2026, 1, 1, 12, 0, 0, 250_000, tzinfo=UTC),
        "tags": ["new"],
    } | more


class ForeignClient:
    """confluent-kafka with its Avro serializers: what other teams use."""

    def __init__(self, bootstrap: str, registry: str, prefix: str) -> None:
        self.bootstrap = bootstrap
        self.prefix = prefix
        self._registry_url = registry

    @contextmanager
    def _registry_client(self) -> Iterator[Any]:
        from confluent_kafka.schema_registry import SchemaRegistryClient

        with SchemaRegistryClient({"url": self._registry_url, "timeout": 5, "max.retries": 5}) as client:
            yield client

    def write(self, topic: str, schema: str, key_schema: str, messages: Sequence[tuple[Any, Any]]) -> None:
        """Write (key, value) pairs, both as Avro, and wait until all are acknowledged."""
        with self._registry_client() as registry:
            self._write(registry, topic, schema, key_schema, messages)

    def _write(
        self, registry: Any, topic: str, schema: str, key_schema: str, messages: Sequence[tuple[Any, Any]]
    ) -> None:
        from confluent_kafka import Producer
        from confluent_kafka.schema_registry.avro import AvroSerializer
        from confluent_kafka.serialization import MessageField, SerializationContext

        value_serializer, key_serializer = AvroSerializer(registry, schema), AvroSerializer(registry, key_schema)
        name = self.prefix + topic
        failures: list[Any] = []
        producer = Producer(
            {"bootstrap.servers": self.bootstrap, "partitioner": "murmur2_random", "linger.ms": 5, "acks": "all"}
        )
        for key, value in messages:
            producer.produce(
                name,
                key=key_serializer(key, SerializationContext(name, MessageField.KEY)),
                value=value_serializer(value, SerializationContext(name, MessageField.VALUE)),
                headers=[("source", b"foreign")],
                on_delivery=lambda error, message: failures.append(error) if error else None,
            )
            producer.poll(0)
        assert producer.flush(DEADLINE) == 0
        assert not failures

    def read(self, topic: str, count: int) -> list[tuple[Any, Any, dict[str, bytes], int]]:
        """Read that many messages from the start: (key, value, headers, partition)."""
        with self._registry_client() as registry:
            return self._read(registry, topic, count)

    def _read(self, registry: Any, topic: str, count: int) -> list[tuple[Any, Any, dict[str, bytes], int]]:
        from confluent_kafka import Consumer
        from confluent_kafka.schema_registry.avro import AvroDeserializer
        from confluent_kafka.serialization import MessageField, SerializationContext

        deserializer = AvroDeserializer(registry)
        name = self.prefix + topic
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": f"{self.prefix}foreign",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
            }
        )
        consumer.subscribe([name])
        found: list[tuple[Any, Any, dict[str, bytes], int]] = []
        try:
            while len(found) < count:
                message = consumer.poll(DEADLINE)
                assert message is not None, f"only {len(found)} of {count} messages came"
                assert message.error() is None, message.error()
                found.append(
                    (
                        deserializer(message.key(), SerializationContext(name, MessageField.KEY)),
                        deserializer(message.value(), SerializationContext(name, MessageField.VALUE)),
                        dict(message.headers() or []),
                        message.partition(),
                    )
                )
        finally:
            consumer.close()
        return found
