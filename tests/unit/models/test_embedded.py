"""An embedded application makes the tables of the models that its consumers keep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from deimos_async import Deimos, Key, Message, ModelConsumer, OnError
from deimos_async.testing import DeimosHarness


class Base(DeclarativeBase):
    pass


class Widget(Base):
    __tablename__ = "widgets"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(20))
    parts: Mapped[list[Part]] = relationship()


class Part(Base):
    __tablename__ = "parts"
    id: Mapped[int] = mapped_column(primary_key=True)
    widget_id: Mapped[int] = mapped_column(sa.ForeignKey("widgets.id"))


SCHEMA = """{"type": "record", "name": "Widget", "namespace": "com.acme", "fields": [
    {"name": "id", "type": "int"}, {"name": "name", "type": ["null", "string"], "default": null}
]}"""


@pytest.fixture
def app(make_app: Callable[..., Deimos], tmp_path: Path) -> Deimos:
    (tmp_path / "com" / "acme").mkdir(parents=True)
    (tmp_path / "com" / "acme" / "Widget.avsc").write_text(SCHEMA)
    return make_app({"schema.path": str(tmp_path)})


async def names(app: Deimos) -> list[tuple[Any, ...]]:
    async with app.session() as session:
        return [tuple(row) for row in await session.execute(sa.select(Widget.id, Widget.name).order_by(Widget.id))]


async def test_topic_is_a_table_in_an_empty_database(app: Deimos, progress: Any) -> None:
    widgets = app.topic("widgets", schema="com.acme.Widget", key=Key.field("id"), partitions=1)
    to_widgets = app.producer(widgets)
    ended: list[int] = []

    @app.consumer(widgets, group="copy", batch=True, max_wait=0.01)
    class Save(ModelConsumer[Widget]):
        pass

    @app.consumer(widgets, group="parts")
    class Touch(ModelConsumer[Part]):
        def process_message(self, message: Message[Any]) -> bool:
            return False

    def heard(event: Any) -> None:
        ended.append(1)
        progress()

    app.events.subscribe("deimos.ar_consumer.consume_batch", heard)
    async with app.running():
        for number in (1, 2):
            await to_widgets.produce({"id": number, "name": f"w{number}"})
            await progress.until(lambda number=number: len(ended) >= number)
        assert await names(app) == [(1, "w1"), (2, "w2")]
        await to_widgets.delete(1)
        await progress.until(lambda: len(ended) >= 3)
        assert await names(app) == [(2, "w2")]


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize("delivery", ["at_least_once", "effectively_once"])
async def test_rows_of_another_table_are_stored_with_the_row(app: Deimos, delivery: Any, batch: bool) -> None:
    widgets = app.topic("widgets", schema="com.acme.Widget", key=Key.field("id"), partitions=1)
    to_widgets = app.producer(widgets)

    @app.consumer(widgets, group="copy", batch=batch, delivery=delivery)
    class Save(ModelConsumer[Widget]):
        def record_attributes(self, payload: Any, key: Any) -> Any:
            return {"name": payload["name"], "parts": [{}] * payload["id"]}

    async with DeimosHarness.running(app) as deimos:
        await to_widgets.produce_many([{"payload": {"id": number, "name": "w"}} for number in (1, 2, 3)])
        await deimos.run_until_idle()
        async with app.session() as session:
            count = sa.func.count()
            found = await session.execute(sa.select(Part.widget_id, count).group_by(Part.widget_id))
            assert sorted(map(tuple, found)) == [(1, 1), (2, 2), (3, 3)]


@pytest.mark.parametrize("delivery", ["at_least_once", "effectively_once"])
async def test_good_messages_are_stored_and_bad_ones_are_dead_letters(app: Deimos, delivery: Any) -> None:
    policy = OnError(attempts=2)
    widgets = app.topic("widgets", schema="com.acme.Widget", key=Key.field("id"), partitions=1, on_error=policy)
    to_widgets = app.producer(widgets)
    inserted: list[int] = []

    @app.consumer(widgets, group="copy", batch=True, delivery=delivery)
    class Save(ModelConsumer[Widget]):
        def record_attributes(self, payload: Any, key: Any) -> Any:
            if payload["name"] is None:
                raise KeyError("name")
            return payload

        async def post_process_batch(self, messages: Any, session: AsyncSession) -> None:
            inserted.extend(message.key for message in messages)

    bad = {2, 5}
    async with DeimosHarness.running(app, {"consumers.reraise_errors": False}) as deimos:
        await to_widgets.produce_many(
            [{"payload": {"id": number, "name": None if number in bad else "fine"}} for number in range(8)]
        )
        await deimos.run_until_idle()
        assert await names(app) == [(number, "fine") for number in range(8) if number not in bad]
        letters = deimos.sent_messages("widgets-dlt")
    assert [letter.key for letter in letters] == [2, 5]
    assert sorted(inserted) == [number for number in range(8) if number not in bad]
    for letter in letters:
        told = " ".join(str(value) for _, value in letter.headers)
        assert "BatchWriteError" in told
        assert f"1 of 1 messages could not be written: key {letter.key} at widgets[0]@" in told
