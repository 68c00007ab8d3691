"""Mistakes in a model consumer are seen at start, and all together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from deimos_async import ConfigurationError, Consumer, Deimos, Key, LifecycleError, ModelConsumer
from deimos_async.topics import Topic

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


class Widget(Base):
    __tablename__ = "widgets"
    id: Mapped[int] = mapped_column(primary_key=True)
    sku: Mapped[str] = mapped_column(sa.String(20), unique=True)
    name: Mapped[str | None] = mapped_column(sa.String(20))
    version: Mapped[int | None]
    deleted: Mapped[bool] = mapped_column(default=False)
    parts: Mapped[list[Part]] = relationship()


class Part(Base):
    __tablename__ = "parts"
    id: Mapped[int] = mapped_column(primary_key=True)
    widget_id: Mapped[int] = mapped_column(sa.ForeignKey("widgets.id"))


class Gadget(Widget):
    __tablename__ = "gadgets"
    id: Mapped[int] = mapped_column(sa.ForeignKey("widgets.id"), primary_key=True)


async def problems(app: Deimos, cls: Any, *, batch: bool = True) -> str:
    """What the start of an application with this consumer says."""
    widgets = app.topic("widgets", key=Key.plain())
    app.consumer(widgets, group="copy", batch=batch)(cls)
    with pytest.raises(ConfigurationError) as caught:
        async with app.running():
            pass
    assert all(problem.startswith(f"consumer {cls.__name__!r}") for problem in caught.value.problems)
    return "\n".join(caught.value.problems)


async def test_class_without_a_model_is_a_mistake(app: Deimos) -> None:
    class Save(ModelConsumer):
        pass

    assert "names no model; derive it from ModelConsumer[Model]" in await problems(app, Save)


@pytest.mark.parametrize("model", [dict, "Widget", Widget.__table__])
async def test_model_that_is_not_mapped_is_a_mistake(app: Deimos, model: Any) -> None:
    class Save(ModelConsumer[model]):
        pass

    assert "is no class that SQLAlchemy maps" in await problems(app, Save)


async def test_model_of_two_tables_is_a_mistake(app: Deimos) -> None:
    class Save(ModelConsumer[Gadget]):
        pass

    assert "Gadget is not mapped to one table" in await problems(app, Save)


async def test_model_is_found_through_a_base_of_one_s_own(app: Deimos) -> None:
    class Shared(ModelConsumer[T], Generic[T]):
        max_db_batch_size = 0

    class Save(Shared[Widget]):
        pass

    class SaveMore(Save):
        def key_columns(self) -> list[str]:
            return ["nothing"]

    assert "max_db_batch_size=0 is not possible" in await problems(app, SaveMore)
    SaveMore.max_db_batch_size = None  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="names 'nothing', and table 'widgets' has no such column"):
        async with app.running():
            pass


async def test_application_without_a_database_is_a_mistake(make_app: Callable[..., Deimos]) -> None:
    app = make_app({"embedded": False})

    class Save(ModelConsumer[Widget]):
        pass

    assert "there is no database; set 'database.url'" in await problems(app, Save)


async def test_database_without_bulk_writes_is_a_mistake_in_batch_mode(make_app: Callable[..., Deimos]) -> None:
    app = make_app(engine=create_async_engine("sqlite+aiosqlite://"))
    app._engine.dialect.driver = "other"  # type: ignore[union-attr]

    class Save(ModelConsumer[Widget]):
        pass

    assert "no bulk writes for sqlite+other" in await problems(app, Save)


@pytest.mark.parametrize("batch", [True, False])
@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (["nothing"], "key_columns() names 'nothing', and table 'widgets' has no such column"),
        (["name"], "no unique index is declared on name"),
        (["sku", "name"], "no unique index is declared on sku, name"),
        ("sku", "key_columns() must be a list of names of columns, not str"),
    ],
)
async def test_columns_that_identify_nothing_are_a_mistake(
    app: Deimos, batch: bool, columns: Any, problem: str
) -> None:
    class Save(ModelConsumer[Widget]):
        def key_columns(self) -> Any:
            return columns

    assert problem in await problems(app, Save, batch=batch)


async def test_all_mistakes_are_told_together(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        compacted = 1  # type: ignore[assignment]
        batch_message_fallback = None  # type: ignore[assignment]
        max_db_batch_size = True
        epoch_unit = "minutes"  # type: ignore[assignment]
        version_column = 5  # type: ignore[assignment]
        tombstone_values = "name"  # type: ignore[assignment]
        bulk_import_id_column = "bulk_import_id"
        replace_associations = True

        def record_attributes(self, payload: Any) -> Any:  # type: ignore[override]
            return payload

        async def should_consume(self, record: Any, message: Any) -> bool:  # type: ignore[override]
            return True

        def pre_process(self, messages: Any) -> None:  # type: ignore[override]
            pass

        columns = 7  # type: ignore[assignment]

    told = await problems(app, Save)
    for wanted in (
        "compacted=1 is not possible; True or False",
        "batch_message_fallback=None is not possible",
        "max_db_batch_size=True is not possible",
        "epoch_unit='minutes' is not possible; one of 'seconds', 'milliseconds', 'microseconds'",
        "version_column=5 is not possible; the name of a column",
        "tombstone_values='name' is not possible; a mapping",
        "this version does not have bulk_import_id_column",
        "this version does not have replace_associations",
        "record_attributes is called with other arguments than it takes",
        "write it as record_attributes(self, payload, key)",
        "should_consume must be a plain method, not async def",
        "pre_process must be async def",
        "columns must be a method",
    ):
        assert wanted in told


async def test_version_column_needs_a_mark_for_deleted_rows_where_rows_are_deleted(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        version_column = "version"

    assert "version_column needs deleted_column" in await problems(app, Save)


async def test_version_column_is_of_batch_mode(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        version_column = "version"
        deleted_column = "deleted"

    told = await problems(app, Save, batch=False)
    assert "version_column needs batch mode; declare batch=True" in told
    assert "deleted_column needs batch mode; declare batch=True" in told


async def test_columns_of_settings_must_exist(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        version_column = "versions"
        deleted_column = "deletion"
        tombstone_values = {"nothing": 1}  # noqa: RUF012

    told = await problems(app, Save)
    for wanted in (
        "version_column names 'versions'",
        "deleted_column names 'deletion'",
        "tombstone_values names 'nothing'",
    ):
        assert wanted in told


@pytest.mark.parametrize(
    ("batch", "unused"),
    [
        (True, "assign_key, destroy_record not called in batch mode"),
        (False, "deleted_query not called in message mode"),
    ],
)
async def test_hooks_of_the_other_mode_are_warned_of(
    app: Deimos, caplog: pytest.LogCaptureFixture, batch: bool, unused: str
) -> None:
    widgets: Topic = app.topic("widgets", key=Key.plain())

    @app.consumer(widgets, group="copy", batch=batch)
    class Save(ModelConsumer[Widget]):
        def assign_key(self, record: Widget, payload: Any, key: Any) -> None:
            record.id = key

        async def destroy_record(self, session: Any, record: Widget) -> None:
            record.deleted = True

        def deleted_query(self, messages: Any) -> Any:
            return sa.delete(Widget)

    with caplog.at_level(logging.WARNING, "deimos_async.models"):
        async with app.running(only=("producers",)):
            pass
    assert f"consumer 'Save': {unused}" in caplog.text


def test_hooks_cannot_be_used_before_the_application_has_started() -> None:
    class Save(ModelConsumer[Widget]):
        pass

    with pytest.raises(LifecycleError, match="Save is used before the application has started it"):
        Save().key_columns()


def test_other_consumers_need_nothing_of_their_surroundings() -> None:
    assert Consumer()._prepare(None) == ()  # type: ignore[arg-type]
