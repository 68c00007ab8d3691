"""An application that stores its messages: hosted by a run, and by tests until nothing is left to do."""

from __future__ import annotations

import asyncio

import pytest

from deimos_async import Deimos, Key, Message, Producer
from deimos_async.errors import ConfigurationError
from deimos_async.testing import DeimosHarness

DEADLINE = 30.0


Heard = asyncio.Queue[tuple[object, object]]


def make_app(**settings: object) -> tuple[Deimos, Producer, Heard]:
    app = Deimos({"producers.backend": "outbox", **settings})
    orders = app.topic("orders", key=Key.plain())
    heard: Heard = asyncio.Queue()
    to_orders = app.producer(orders)

    @app.consumer(orders, group="billing")
    async def bill(message: Message[str]) -> None:
        heard.put_nowait((message.key, message.payload))

    return app, to_orders, heard


async def test_run_sends_what_its_producers_store() -> None:
    app, to_orders, heard = make_app(embedded=True)
    async with app.running(), asyncio.timeout(DEADLINE):
        await to_orders.produce(b"alone", key="a")
        assert await heard.get() == ("a", "alone")
        async with app.transaction():
            await to_orders.produce(b"within", key="a")
        assert await heard.get() == ("a", "within")
        health = app.health()
        assert health.alive
        assert health.outbox is not None
        assert health.outbox.started
        assert health.outbox.database is None
    assert heard.empty()


async def test_message_that_cannot_be_sent_is_put_aside_where_the_setting_says_so() -> None:
    app, to_orders, heard = make_app(**{"embedded": True, "outbox.poison": "park", "producers.max_request_bytes": 2000})
    async with app.running(), asyncio.timeout(DEADLINE):
        await to_orders.produce(b"x" * 3000, key="a")
        await to_orders.produce(b"small", key="a")
        assert await heard.get() == ("a", "small")
        health = app.health()
        assert health.outbox is not None
        assert (health.outbox.parked, health.outbox.blocked_keys) == (1, 0)


async def test_run_without_the_outbox_sends_nothing_of_it() -> None:
    app, to_orders, heard = make_app(embedded=True)
    async with app.running(only=("producers", "consumers")):
        await to_orders.produce(b"stays", key="a")
        assert app.health().outbox is None
    assert heard.empty()


async def test_run_of_an_application_that_stores_nothing_has_no_pump() -> None:
    app = Deimos({"embedded": True})
    app.producer(app.topic("orders", key=Key.plain()))
    async with app.running():
        assert app.health().outbox is None


async def test_outbox_that_is_asked_for_without_a_database_is_refused() -> None:
    app = Deimos()
    app.producer(app.topic("orders", key=Key.plain()))
    with pytest.raises(ConfigurationError, match=r"database\.url"):
        async with app.running(only=("outbox",)):
            pass


async def test_tests_run_until_the_outbox_is_empty_too() -> None:
    app, to_orders, heard = make_app()
    async with DeimosHarness.running(app) as deimos:
        async with app.transaction():
            await to_orders.produce(b"1", key="a")
        await deimos.run_until_idle()
        assert heard.get_nowait() == ("a", "1")
        await to_orders.produce(b"2", key="a")
        await deimos.run_until_idle()
        assert heard.get_nowait() == ("a", "2")
        assert heard.empty()
