"""What producers tell to the metrics."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deimos_async import Deimos, DeliveryError, Key
from deimos_async.telemetry import names
from deimos_async.telemetry.mock import Mock

App = Callable[..., Deimos]
TOO_LARGE = b"x" * 2_000_000


async def test_send_is_counted_and_timed_by_topic(make_app: App) -> None:
    mock = Mock()
    app = make_app({"producers.topic_prefix": "test."}, metrics=mock)
    first, second = (app.producer(app.topic(name, key=Key.none())) for name in ("first", "second"))
    async with app.running():
        await first.produce_many([{"payload": b"1"}, {"payload": b"2"}, {"payload": b"3", "topic": "second"}])
        await second.produce(b"4", backend="kafka_async")
        await app.flush()
    sent = {"messaging.system": "kafka", "messaging.operation.name": "send"}
    assert mock.count(names.SENT, **sent, **{"messaging.destination.name": "test.first"}) == 2
    assert mock.count(names.SENT, **sent, **{"messaging.destination.name": "test.second"}) == 1 + 1
    assert mock.count("publish", topic="test.second", status="success") == 2
    timed = [
        call.tags["messaging.destination.name"] for call in mock.histograms if call.name == names.OPERATION_DURATION
    ]
    assert timed == ["test.first", "test.second"]  # what is buffered is not timed
    assert {call.tags["topic"] for call in mock.histograms if call.name == names.ENCODE_TIME} >= {"test.second"}
    assert mock.count(names.DELIVERY_FAILURES) == 0


async def test_partial_failure_counts_each_message_as_what_became_of_it(make_app: App) -> None:
    mock = Mock()
    app = make_app(metrics=mock)
    orders = app.producer(app.topic("orders", key=Key.none()))
    async with app.running():
        with pytest.raises(DeliveryError) as caught:
            await orders.produce_many([{"payload": TOO_LARGE}, {"payload": b"small"}, {"payload": TOO_LARGE}])
    assert caught.value.indexes == (0, 2)
    assert mock.count(names.SENT, **{"error.type": "DeliveryError"}) == 2
    assert mock.count("publish", topic="orders", status="success") == 1
    assert mock.count("publish", topic="orders", status="error") == 2
    assert mock.count(names.DELIVERY_FAILURES, topic="orders") == 2


async def test_buffered_message_that_fails_is_a_delivery_failure(make_app: App) -> None:
    mock = Mock()
    app = make_app(metrics=mock)
    orders = app.producer(app.topic("orders", key=Key.none()), backend="kafka_async")
    async with app.running():
        await orders.produce(TOO_LARGE)
        await orders.produce(TOO_LARGE)
        await orders.produce(b"small")
        await app.flush()
    assert mock.count(names.SENT) == 3  # taken by the buffer
    assert mock.count(names.DELIVERY_FAILURES, topic="orders") == 2
    assert mock.count("publish_error", topic="orders") == 2
