"""Sources and model producers in an application's own tests, in memory."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from deimos_async import Deimos, KafkaSource, Key, Message, ModelProducer, Producer
from deimos_async.testing import DeimosHarness

WIDGET = {
    "type": "record",
    "name": "Widget",
    "namespace": "com.acme",
    "fields": [{"name": "id", "type": "int"}, {"name": "name", "type": "string"}],
}


class Shop:
    """Widgets are sent as they change; each message about one makes another widget, once."""

    def __init__(self, folder: Path) -> None:
        path = folder / "com" / "acme" / "Widget.avsc"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(WIDGET))
        app = self.app = Deimos({"schema.path": str(folder)}, metrics=None, tracing=None)
        self.topic = app.topic("widgets", schema="com.acme.Widget", key=Key.field("id"))

        class Base(DeclarativeBase):
            pass

        class Widget(Base, KafkaSource):
            __tablename__ = "widgets"
            id: Mapped[int] = mapped_column(primary_key=True)
            name: Mapped[str]
            secret: Mapped[str | None]

            @classmethod
            def kafka_producers(cls) -> Sequence[Producer]:
                return [self.producer]

        class WidgetProducer(ModelProducer[Widget]):
            pass

        self.widget: Any = Widget
        self.producer = app.producer(self.topic, WidgetProducer)

        async def copy(message: Message[Any], session: AsyncSession) -> None:
            if not message.payload["name"].startswith("copy"):
                session.add(Widget(name=f"copy of {message.payload['name']}"))

        copy.__annotations__ |= {"message": Message, "session": AsyncSession, "return": None}
        self.copy = app.consumer(self.topic, group="copies")(copy)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
async def deimos(shop: Shop) -> AsyncIterator[DeimosHarness]:
    async with DeimosHarness.running(shop.app) as harness:
        yield harness


async def test_changes_are_among_the_sent_messages(shop: Shop, deimos: DeimosHarness) -> None:
    async with shop.app.transaction() as session:
        widget = shop.widget(name="a", secret="s")
        session.add(widget)
        await session.flush()
        deimos.assert_not_sent(shop.topic)
    deimos.assert_sent(shop.topic, {"id": 1, "name": "a"}, key=1)
    deimos.clear_sent_messages()
    async with shop.app.transaction() as session:
        await session.execute(insert(shop.widget), [{"name": "b"}])
        await session.delete(await session.get_one(shop.widget, 1))
    deimos.assert_sent(shop.topic, {"id": 2, "name": "b"}, key=2)
    deimos.assert_sent(shop.topic, None, key=1)


async def test_handler_changes_rows_in_its_transaction(shop: Shop, deimos: DeimosHarness) -> None:
    await deimos.consume_message(shop.copy, {"id": 7, "name": "a"})
    deimos.assert_sent(shop.topic, {"id": 1, "name": "copy of a"}, key=1)


async def test_chain_of_changes_runs_to_its_end(shop: Shop, deimos: DeimosHarness) -> None:
    async with shop.app.transaction() as session:
        session.add(shop.widget(name="a"))
    await deimos.run_until_idle()
    assert [message.payload["name"] for message in deimos.sent_messages(shop.topic)] == ["a", "copy of a"]


async def test_mocked_backends_take_attributes_as_they_are(shop: Shop, deimos: DeimosHarness) -> None:
    with deimos.mock_backends():
        await shop.producer.send_event(shop.widget(id=3, name="a", secret="s"))
        async with shop.app.transaction() as session:
            session.add(shop.widget(name="b"))
    assert [message.key for message in deimos.sent_messages(shop.topic)] == [3, 1]
