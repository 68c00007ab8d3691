"""`run_until_idle` runs pollers: what they send is consumed, and nobody waits for their next run."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import String, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from deimos_async import Deimos, Key, Message, ModelProducer
from deimos_async.testing import DeimosHarness

SCHEMA = {
    "type": "record",
    "name": "Widget",
    "namespace": "com.acme",
    "fields": [{"name": "id", "type": "int"}, {"name": "name", "type": "string"}],
}


class Base(DeclarativeBase):
    pass


class Widget(Base):
    __tablename__ = "polled_widgets"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(20))
    state: Mapped[str | None] = mapped_column(String(20))
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())


class WidgetProducer(ModelProducer[Widget]):
    def generate_payload(self, attributes: dict[str, Any], record: Widget) -> Any:
        if record.name == "bad":
            raise RuntimeError("no")
        return attributes


@pytest.fixture
def app(tmp_path: Path) -> Deimos:
    path = tmp_path / "com" / "acme" / "Widget.avsc"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(SCHEMA))
    app = Deimos({"schema.path": str(tmp_path)}, metrics=None, tracing=None)
    widgets = app.topic("widgets", schema="com.acme.Widget", key=Key.field("id"))
    producer = app.producer(widgets, WidgetProducer)
    app.poller(producer, name="by time", retries=0)

    @app.consumer(widgets, group="labels")
    async def label(message: Message, session: AsyncSession) -> None:
        widget = await session.get_one(Widget, message.key)
        if widget.name == "first":
            session.add(Widget(id=widget.id + 100, name="second"))

    return app


async def test_rows_that_handlers_write_are_polled_and_consumed_in_turn(app: Deimos) -> None:
    async with DeimosHarness.running(app) as deimos:
        async with app.transaction() as session:
            session.add_all([Widget(id=1, name="first"), Widget(id=2, name="bad")])
        await deimos.run_until_idle()
        sent = [(message.key, message.payload) for message in deimos.sent_messages("widgets")]
        assert sent == [(1, {"id": 1, "name": "first"}), (101, {"id": 101, "name": "second"})]
        await deimos.run_until_idle()
        assert len(deimos.sent_messages("widgets")) == 2


async def test_time_that_is_left_alone_leaves_young_rows_alone(app: Deimos) -> None:
    async with DeimosHarness.running(app) as deimos:
        async with app.transaction() as session:
            session.add(Widget(id=1, name="x"))
        await deimos.run_until_idle(advance=False)
        assert deimos.sent_messages("widgets") == []
        deimos.advance(120)
        await deimos.run_until_idle(advance=False)
        assert [message.key for message in deimos.sent_messages("widgets")] == [1]
