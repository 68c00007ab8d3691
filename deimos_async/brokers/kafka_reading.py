"""Reading stretches of partitions without a group, by aiokafka.

The client is assigned its partitions by hand and thrown away afterwards; it joins nothing and commits nothing. A
partition that was read to its end, or to its limit, is paused so that the others have the connection for themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import errors as kafka

from deimos_async.errors import BrokerError, BrokerUnavailableError
from deimos_async.message import InboundRecord, TopicPartition

__all__ = ["read_ranges"]

_MAX_RECORDS = 500
"""Most records in one list."""
_POLL_TIMEOUT_MS = 200
"""Where offsets at the end of a range hold no records (markers of transactions) nothing comes, and the position is
looked at after that time."""


async def read_ranges(
    client: AIOKafkaConsumer,
    ranges: Mapping[TopicPartition, tuple[int, int]],
    *,
    limit: int | None,
    timeout: float,
) -> AsyncGenerator[Sequence[InboundRecord], None]:
    """Records of each range, of a started client without group. See `Broker.read`.

    Args:
        client: Its `auto_offset_reset` must be `"earliest"`: what retention took away meanwhile is passed over.
        ranges: Within what the partitions hold, none empty.
        timeout: Seconds without any progress after which the brokers count as away.

    Raises:
        BrokerUnavailableError: No progress within the timeout.
        BrokerError: A header's name is not UTF-8, which the client library cannot read.
    """
    loop = asyncio.get_running_loop()
    left = {KafkaPartition(*partition): limit for partition in ranges}
    stops = {KafkaPartition(*partition): stop for partition, (_, stop) in ranges.items()}
    positions = {KafkaPartition(*partition): start for partition, (start, _) in ranges.items()}
    client.assign(list(stops))
    for partition, start in positions.items():
        client.seek(partition, start)
    deadline = loop.time() + timeout
    while stops:
        try:
            fetched = await client.getmany(*stops, timeout_ms=_POLL_TIMEOUT_MS, max_records=_MAX_RECORDS)
        except UnicodeDecodeError as error:
            names = ", ".join(sorted({partition.topic for partition in stops}))
            raise BrokerError(
                f"the name of a header in {names} is not UTF-8; the client library cannot read that record"
            ) from error
        except kafka.RecordTooLargeError as error:
            raise BrokerError(f"a record is larger than max_partition_fetch_bytes: {error}") from error
        for partition, records in fetched.items():
            stop, rest = stops[partition], left[partition]
            wanted = [record for record in records if record.offset < stop]
            if rest is not None:
                wanted = wanted[:rest]
                left[partition] = rest - len(wanted)
            if wanted:
                yield wanted
        done = []
        for partition, stop in stops.items():
            position = await _position(client, partition, positions[partition])
            if position != positions[partition]:
                positions[partition] = position
                deadline = loop.time() + timeout
            if position >= stop or left[partition] == 0:
                done.append(partition)
        for partition in done:
            del stops[partition]
        if fetched:
            deadline = loop.time() + timeout  # the reader may have taken its time with them
        if done and stops:
            client.pause(*done)
        if stops and loop.time() > deadline:
            topics = ", ".join(sorted({partition.topic for partition in stops}))
            raise BrokerUnavailableError(f"reading {topics}: nothing came within {timeout:g} s")


async def _position(client: AIOKafkaConsumer, partition: KafkaPartition, before: int) -> int:
    """Next offset; the one from before while the client has none, as after it had to begin anew."""
    try:
        async with asyncio.timeout(_POLL_TIMEOUT_MS / 1000):
            return int(await client.position(partition))
    except TimeoutError:
        return before
