"""Mistakes in a model consumer are seen at start, and all together."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy import inspect
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from deimos_async import ConfigurationError, Consumer, Deimos, Key, LifecycleError, ModelConsumer
from deimos_async.models.mapping import ModelTable
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
    name: Mapped[str | None] = mapped_column(sa.String(20))


class Short(Base):
    __tablename__ = "shorts"
    id: Mapped[int] = mapped_column(primary_key=True)
    bulk_import_id: Mapped[str | None] = mapped_column(sa.String(20))


class Counted(Base):
    __tablename__ = "counted"
    id: Mapped[int] = mapped_column(primary_key=True)
    bulk_import_id: Mapped[int | None]


class Group(Base):
    __tablename__ = "groups"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(sa.String(20))
    through: Mapped[list[Widget]] = relationship(secondary="group_widgets")
    seen: Mapped[list[GroupWidget]] = relationship(viewonly=True)
    odd: Mapped[list[GroupWidget]] = relationship(
        primaryjoin="and_(Group.id == GroupWidget.group_id, GroupWidget.widget_id > 3)", overlaps="through"
    )
    gadgets: Mapped[list[Gadget]] = relationship(
        primaryjoin="Group.id == foreign(Gadget.group_id)",
    )


class GroupWidget(Base):
    __tablename__ = "group_widgets"
    group_id: Mapped[int] = mapped_column(sa.ForeignKey("groups.id"), primary_key=True)
    widget_id: Mapped[int] = mapped_column(sa.ForeignKey("widgets.id"), primary_key=True)


class Gadget(Widget):
    __tablename__ = "gadgets"
    id: Mapped[int] = mapped_column(sa.ForeignKey("widgets.id"), primary_key=True)
    group_id: Mapped[int | None]


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


@pytest.mark.parametrize("model", [dict, "Nothing", Widget.__table__])
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
        bulk_import_id_column = ""
        replace_associations = 1  # type: ignore[assignment]
        save_associations_first = None  # type: ignore[assignment]

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
        "bulk_import_id_column='' is not possible; the name of a column, or None",
        "replace_associations=1 is not possible; True or False",
        "save_associations_first=None is not possible; True or False",
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


@pytest.mark.parametrize("batch", [True, False])
async def test_relationships_that_cannot_be_written_are_told_with_the_way_out(app: Deimos, batch: bool) -> None:
    class Save(ModelConsumer[Group]):
        replace_associations = False

    told = await problems(app, Save, batch=batch)
    for wanted in (
        "replace_associations needs a relationship of Group, and it has none that can be written",
        "relationship Group.through is many-to-many, through 'group_widgets'; map that table as a class",
        "relationship Group.seen is viewonly; give rows under the one that writes its foreign key",
        "relationship Group.odd joins by more than equal columns",
        "relationship Group.gadgets leads to Gadget, which is not mapped to one table",
    ):
        assert wanted in told


async def test_relationship_that_cannot_be_written_fails_the_message_that_names_it() -> None:
    columns, problem = (
        ModelTable(
            inspect(Group), DefaultDialect(), epoch_unit="seconds", truncate=False, timestamps_from_payload=False
        ),
        "relationship Group.through is many-to-many",
    )
    with pytest.raises(ValueError, match=problem):
        columns.fit_one({"name": "a", "through": []})
    with pytest.raises(ValueError, match=problem):
        columns.split({"through": []})


@pytest.mark.parametrize("model", [Short, Counted])
async def test_column_that_cannot_hold_import_ids_is_a_mistake(app: Deimos, model: Any) -> None:
    class Save(ModelConsumer[model]):
        pass

    assert "cannot hold a UUID as text, 36 characters; change its type" in await problems(app, Save)
    Save.bulk_import_id_generator = staticmethod(lambda: 1)
    async with app.running(only=("producers",)):
        pass


async def test_import_column_that_no_table_has_is_a_mistake(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        bulk_import_id_column = "import_id"

    assert "bulk_import_id_column names 'import_id', and neither the table nor one next" in await problems(app, Save)


async def test_import_column_with_another_use_is_a_mistake(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        bulk_import_id_column = "name"

        def key_columns(self) -> list[str]:
            return ["sku"]

    class SaveByName(Save):
        bulk_import_id_column = "sku"

    assert "bulk_import_id_column 'sku' has another use already" in await problems(app, SaveByName)


@pytest.mark.parametrize("generator", ["text", lambda size: size])
async def test_generator_that_cannot_be_called_is_a_mistake(app: Deimos, generator: Any) -> None:
    class Save(ModelConsumer[Widget]):
        bulk_import_id_generator = staticmethod(generator) if callable(generator) else generator

    told = await problems(app, Save)
    assert "is not possible; a plain function without arguments, or None" in told


async def test_versions_and_rows_written_first_exclude_each_other(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        version_column = "version"
        deleted_column = "deleted"
        save_associations_first = True

    assert "version_column and save_associations_first exclude each other" in await problems(app, Save)


async def test_columns_that_hooks_say_of_other_models_are_checked(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        def record_attributes(self, payload: Any, key: Any) -> Any:
            return payload

        def key_columns(self, model: Any = None) -> Any:
            return ["widget_id"] if model is Part else ["sku"]

        def columns(self, model: Any = None) -> Any:
            return ["nothing"] if model is Part else None

    told = await problems(app, Save)
    assert "columns(Part) names 'nothing', and table 'parts' has no such column" in told
    assert "table 'parts': no unique index is declared on widget_id" in told


async def test_hook_that_knows_only_some_models_is_a_mistake(app: Deimos) -> None:
    class Save(ModelConsumer[Widget]):
        def record_attributes(self, payload: Any, key: Any) -> Any:
            return payload

        def key_columns(self, model: Any = None) -> Any:
            return {Widget: ["sku"]}[model]

    assert "key_columns(Part) raised KeyError; return None where it says nothing" in await problems(app, Save)


async def test_options_of_the_topic_are_checked_where_they_are_said(app: Deimos) -> None:
    with pytest.raises(ConfigurationError) as caught:
        app.topic(
            "widgets",
            max_db_batch_size=0,
            bulk_import_id_column="",
            bulk_import_id_generator=5,  # type: ignore[arg-type]
            replace_associations=1,  # type: ignore[arg-type]
            save_associations_first=None,  # type: ignore[arg-type]
        )
    assert len(caught.value.problems) == 5


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
