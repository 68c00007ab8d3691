"""From what a user gives to a record: headers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from deimos_async import Deimos, Key
from deimos_async.brokers.memory import MemoryBroker


@pytest.mark.parametrize("as_pairs", [False, True])
async def test_headers_that_this_library_writes_itself_are_left_out(
    make_app: Callable[..., Deimos], as_pairs: bool
) -> None:
    app = make_app()
    producer = app.producer(app.topic("orders", key=Key.plain(), partitions=1))
    reserved = [
        "deimos-dlq-topic",
        "deimos-retry-group",
        "deimos-retry-due",
        "deimos-replay-group",
        "deimos-replay-topic",
        "deimos-replays",
        "deimos-replayed-from",
        "deimos-message-id",
        "deimos-seq",
        "deimos-enqueued-at",
    ]
    kept = {"deimos-other": b"1", "theirs-dlq-topic": b"2", "x-deimos-dlq-topic": b"3"}
    headers: Any = kept | dict.fromkeys(reserved, b"planted")
    async with app.running(only=["producers"]):
        await producer.produce(b"v", key="k", headers=list(headers.items()) if as_pairs else headers)
        broker = app._started("test").brokers["default"]
        assert isinstance(broker, MemoryBroker)
        (record,) = broker.records("orders")
    assert {name: value for name, value in record.headers if "deimos" in name or "theirs" in name} == kept
