"""Kafka behind a proxy, and the other client library: writes, reads dead letters, looks at offsets."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from fault_ledger import Ledger
from servers import KafkaBroker, KafkaCluster, free_port
from servers.ports import HOST

PARTITIONS = 6
KEYS = 8
"""Keys of each partition."""
_MOVING = {
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError._WAIT_COORD,
    KafkaError._TRANSPORT,
}
"""A coordinator that is elsewhere by now, or not there yet."""
_TIMEOUT = 60.0
"""Seconds for questions to the brokers; they may be restarting."""


class Brokers(Protocol):
    """A cluster as a trial sees it."""

    @property
    def members_address(self) -> str:
        """Bootstrap servers for the members under test."""

    @property
    def direct_address(self) -> str:
        """Bootstrap servers for writer and checker: not behind the proxy."""

    @property
    def replicas(self) -> int: ...


class ProxiedKafka(KafkaBroker):
    """A broker that sends its clients to `proxy_port`, where a proxy may listen, and keeps a second listener."""

    def __init__(self) -> None:
        super().__init__()
        self.proxy_port = free_port()

    @property
    def members_address(self) -> str:
        return f"{HOST}:{self.proxy_port}"

    @property
    def direct_address(self) -> str:
        return f"{HOST}:{self._internal_port}"

    @property
    def replicas(self) -> int:
        return 1

    def _server_properties(self) -> dict[str, str]:
        advertised = f"CLIENT://{self.members_address},INTERNAL://{self.direct_address}"
        return super()._server_properties() | {"advertised.listeners": advertised}


class ReplicatedKafka(KafkaCluster):
    """Three brokers; two must have what is acknowledged."""

    def __init__(self) -> None:
        super().__init__(3, properties={"min.insync.replicas": "2", "default.replication.factor": "3"})

    async def __aexit__(self, *exc_info: object) -> None:
        # An orderly end of all at once takes the last ones a while, as they find no majority, and serves nobody.
        await self.kill()
        self.remove()

    @property
    def members_address(self) -> str:
        return self.bootstrap_servers

    @property
    def direct_address(self) -> str:
        return self.bootstrap_servers

    @property
    def replicas(self) -> int:
        return 3


def create_topics(bootstrap: str, names: list[str], replicas: int) -> None:
    """Make topics of `PARTITIONS` partitions; returns when they can be used."""
    client = AdminClient({"bootstrap.servers": bootstrap})
    for made in client.create_topics([NewTopic(name, PARTITIONS, replicas) for name in names]).values():
        made.result(_TIMEOUT)


Encode = Callable[[str, str, int], tuple[bytes, bytes]]
"""(topic, key, number) -> bytes of key and value."""


def encode_plain(topic: str, key: str, number: int) -> tuple[bytes, bytes]:
    """Text, as the topics without a schema carry it."""
    return key.encode(), f"{key}:{number}".encode()


class Writer:
    """Writes on and on in a thread of its own, never more than `backlog` messages ahead of the slowest group.

    Message number i goes to partition i modulo `PARTITIONS`; keys take turns within a partition. So every partition
    and every key gets the same, and the numbers of a key ascend.
    """

    def __init__(self, bootstrap: str, topic: str, ledger: Ledger, *, backlog: int, encode: Encode) -> None:
        self.failures: list[str] = []
        self.written = 0
        self._topic, self._ledger, self._backlog, self._encode = topic, ledger, backlog, encode
        self._stop = threading.Event()
        self._covered = 0
        self._progressed = threading.Condition()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap,
                "acks": "all",
                "enable.idempotence": True,
                "linger.ms": 5,
                "delivery.timeout.ms": 300_000,
                "reconnect.backoff.max.ms": 500,
            }
        )
        self._thread = threading.Thread(target=self._run, name="fault writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def covered(self, count: int) -> None:
        """So many messages are done with by the slowest group."""
        if count != self._covered:
            with self._progressed:
                self._covered = count
                self._progressed.notify()

    async def finish(self) -> None:
        """Write no more, and wait until the brokers have acknowledged everything."""
        self._stop.set()
        with self._progressed:
            self._progressed.notify()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def write(self, count: int) -> None:
        """Write so many and wait for the acknowledgements; not while the thread runs."""
        for _ in range(count):
            self._produce()
        self._producer.flush(_TIMEOUT)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self._progressed:
                while self.written - self._covered >= self._backlog and not self._stop.is_set():
                    self._producer.poll(0)
                    self._progressed.wait(0.05)
            for _ in range(PARTITIONS):
                self._produce()
        self._producer.flush(_TIMEOUT)

    def _produce(self) -> None:
        number = self.written
        self.written += 1
        partition, turn = number % PARTITIONS, number // PARTITIONS
        key = f"{partition}.{turn % KEYS}"
        key_bytes, value = self._encode(self._topic, key, number)

        def delivered(error: Any, message: Any) -> None:
            if error is not None:
                self.failures.append(str(error))
            else:
                self._ledger.acknowledged[message.partition(), message.offset()] = key, number

        self._producer.produce(self._topic, key=key_bytes, value=value, partition=partition, on_delivery=delivered)
        self._producer.poll(0)


class LetterReader:
    """Reads the dead-letter topic as it fills, in a thread of its own.

    Args:
        arrived: Called in the event loop with the headers of each letter.
    """

    def __init__(self, bootstrap: str, topic: str, arrived: Callable[[Mapping[str, str]], None]) -> None:
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "fault-letters",
                "enable.auto.commit": False,
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 1000,
            }
        )
        # By hand: no group, so that no rebalance and no coordinator can hold it up.
        self._consumer.assign([TopicPartition(topic, partition, 0) for partition in range(PARTITIONS)])
        self._thread = threading.Thread(target=self._run, name="fault letters", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            message = self._consumer.poll(0.2)
            if message is None or message.error() is not None:
                continue
            headers = {name: bytes(value or b"").decode(errors="replace") for name, value in message.headers() or []}
            self._loop.call_soon_threadsafe(self._arrived, headers)
        self._consumer.close()

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join)


class OffsetReader:
    """Looks at what groups have committed and where a topic ends; never joins a group."""

    def __init__(self, bootstrap: str, topic: str, groups: Mapping[str, str]) -> None:
        """
        Args:
            groups: Name in the ledger -> name in Kafka.
        """
        self._partitions = [TopicPartition(topic, partition) for partition in range(PARTITIONS)]
        self._consumers = {
            name: Consumer({"bootstrap.servers": bootstrap, "group.id": group, "reconnect.backoff.max.ms": 500})
            for name, group in groups.items()
        }

    async def committed(self) -> dict[str, dict[int, int]]:
        """Next offset to read by group and partition; partitions without one are left out."""
        return await asyncio.to_thread(self._committed)

    def _committed(self) -> dict[str, dict[int, int]]:
        return {
            name: {found.partition: found.offset for found in self._ask(consumer) if found.offset >= 0}
            for name, consumer in self._consumers.items()
        }

    def _ask(self, consumer: Consumer) -> list[TopicPartition]:
        """What the group has committed; asked again while its coordinator moves or loads."""
        pause = threading.Event()
        deadline = time.monotonic() + _TIMEOUT
        while True:
            try:
                return consumer.committed(self._partitions, timeout=_TIMEOUT)
            except KafkaException as error:
                if not error.args[0].retriable() and error.args[0].code() not in _MOVING:
                    raise
                if time.monotonic() > deadline:
                    raise
                pause.wait(0.2)

    async def ends(self) -> dict[int, int]:
        """End offset by partition."""
        return await asyncio.to_thread(self._ends)

    def _ends(self) -> dict[int, int]:
        consumer = next(iter(self._consumers.values()))
        return {
            partition.partition: consumer.get_watermark_offsets(partition, timeout=_TIMEOUT)[1]
            for partition in self._partitions
        }

    async def stop(self) -> None:
        for consumer in self._consumers.values():
            await asyncio.to_thread(consumer.close)
