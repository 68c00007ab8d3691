"""What a topic takes is known before anything is sent, and a refusal says whether it is the topic's."""

from __future__ import annotations

import pytest

from deimos_async.brokers.partitioner import size_alone
from deimos_async.brokers.protocol import TopicLimits
from deimos_async.errors import DeliveryError
from deimos_async.message import OutboundRecord

from .conftest import Bench


async def test_limits_are_those_the_topic_was_made_with(bench: Bench) -> None:
    config = {"max.message.bytes": "5000", "cleanup.policy": "compact"}
    await bench.create(partitions=3, topic=f"{bench.topic}.small", **config)
    await bench.create(partitions=2)
    found = await bench.broker.limits([bench.topic, f"{bench.topic}.small", f"{bench.topic}.missing"])
    assert found[f"{bench.topic}.small"] == TopicLimits(3, 5000, True)
    assert (found[bench.topic].partitions, found[bench.topic].is_compacted) == (2, False)
    assert f"{bench.topic}.missing" not in found
    assert await bench.broker.limits([]) == {}


async def test_record_at_the_limit_is_taken_and_a_larger_one_is_refused_for_itself(bench: Bench) -> None:
    await bench.create(**{"max.message.bytes": "1000"})
    limit = (await bench.broker.limits([bench.topic]))[bench.topic].max_message_bytes
    assert limit == 1000
    rest = limit - size_alone(OutboundRecord(bench.topic, b"k", b"v" * 500))
    fits = OutboundRecord(bench.topic, b"k", b"v" * (500 + rest))
    producer = await bench.producer()
    await producer.send([fits])
    with pytest.raises(DeliveryError) as caught:
        await producer.send([fits._replace(value=b"v" * (501 + rest)), fits])
    assert caught.value.indexes == (0,)
    assert not caught.value.of_topic
    assert not caught.value.retriable


async def test_refusal_of_a_topic_that_does_not_exist_is_the_topic_s(bench: Bench) -> None:
    producer = await bench.producer()
    with pytest.raises(DeliveryError) as caught:
        await producer.send([OutboundRecord(f"{bench.topic}.missing", b"k", b"v")])
    assert caught.value.of_topic


async def test_compacted_topic_refuses_what_has_no_key(bench: Bench) -> None:
    await bench.create(**{"cleanup.policy": "compact"})
    producer = await bench.producer()
    with pytest.raises(DeliveryError) as caught:
        await producer.send([OutboundRecord(bench.topic, None, b"v")])
    assert not caught.value.of_topic
    assert not caught.value.retriable
