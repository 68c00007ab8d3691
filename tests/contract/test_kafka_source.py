"""Rows are sent as they change, on PostgreSQL, MariaDB and SQLite: objects, bulk statements, transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from source_bench import DATABASES, MARIADB, POSTGRESQL, SourceBench, source_bench, storing_bench
from sqlalchemy import event
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, deferred, mapped_column, relationship

from deimos_async import (
    ConfigurationError,
    DatabaseError,
    EncodeError,
    KafkaConfig,
    Key,
    LifecycleError,
    ModelProducer,
    NotRunningError,
    Producer,
)
from deimos_async.database.fencing import FencedSession
from deimos_async.database.transactions import enter_scope, leave_scope
from deimos_async.schemas.memory_registry import MemorySchemaRegistry

DEADLINE = 60.0
"""Seconds after which a wait has failed."""


@pytest.fixture(params=DATABASES)
async def bench(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[SourceBench]:
    """One database after the other."""
    async with source_bench(request.param, request.getfixturevalue, unique_name, tmp_path) as found:
        yield found


@pytest.fixture
async def lite(unique_name: str, tmp_path: Path) -> AsyncIterator[SourceBench]:
    """SQLite, for what has nothing to do with the database."""
    async with source_bench("sqlite", str, unique_name, tmp_path) as found:
        yield found


class Watching(ModelProducer[Any]):
    """Watches what it is told."""

    watched: Collection[str] = ()

    def watched_attributes(self, record: Any) -> Collection[str]:
        return self.watched


# --- objects ---------------------------------------------------------------------------------------------------------


async def test_created_changed_and_deleted_objects_are_sent_after_the_commit(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        widget = model(name="a", some_int=1, secret="s")
        session.add(widget)
        await session.flush()
        assert not bench.records()
        await session.commit()
        assert await bench.sent() == [
            (widget.id, {"id": widget.id, "name": "a", "model_id": None, "some_int": 1, "state": "new"})
        ]
        widget.name = "b"
        await session.commit()
        assert await bench.sent("widgets", "name", "state") == [(widget.id, ("b", "new"))]
        await session.delete(widget)
        await session.commit()
        assert await bench.sent() == [(widget.id, None)]
        assert await bench.rows(model, "id") == []


async def test_many_objects_of_one_flush_have_the_ids_and_defaults_that_the_database_gave(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        session.add_all([model(name=f"w{number}") for number in range(700)])
        with statements(bench) as executed:
            await session.commit()
        if bench.kind == "postgresql":
            assert [text for text in executed if not text.startswith("INSERT")] == []
        sent = await bench.sent("widgets", "id", "name", "state")
    assert [payload for _, payload in sent] == [(*row, "new") for row in await bench.rows(model, "id", "name")]
    assert [key for key, _ in sent] == [payload[0] for _, payload in sent]


async def test_rollback_sends_nothing_and_the_session_goes_on(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        session.add(model(name="gone"))
        await session.flush()
        await session.execute(sa.insert(model), [{"name": "gone too"}])
        await session.rollback()
        session.add(model(name="stays"))
        await session.commit()
        assert [payload for _, payload in await bench.sent("widgets", "name")] == [("stays",)]


async def test_what_a_savepoint_has_rolled_back_is_not_sent(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        first = model(name="first")
        session.add(first)
        async with session.begin_nested():
            session.add(model(name="second"))
            await session.execute(sa.insert(model), [{"name": "third"}])
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                session.add(model(name="lost"))
                first.name = "lost"
                await session.flush()
                await session.execute(sa.insert(model), [{"name": "lost too"}])
                async with session.begin_nested():
                    session.add(model(name="released and lost"))
                raise ZeroDivisionError
        session.add(model(name="last"))
        await session.commit()
        assert [payload for _, payload in await bench.sent("widgets", "name")] == [
            ("first",), ("second",), ("third",), ("last",)
        ]  # fmt: skip
    assert [row[1] for row in await bench.rows(model, "id", "name")] == ["first", "second", "third", "last"]


async def test_each_flush_sends_what_the_row_was_then(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        widget = model(name="a")
        session.add(widget)
        await session.flush()
        widget.name = "b"
        await session.flush()
        widget.name = "c"
        await session.delete(widget)
        await session.commit()
        assert await bench.sent("widgets", "name") == [(widget.id, ("a",)), (widget.id, ("b",)), (widget.id, None)]


async def test_row_that_takes_over_a_key_comes_after_the_tombstone_of_the_same_flush(bench: SourceBench) -> None:
    by_name = bench.topic("by_name", key=Key.field("name"))
    model = bench.model(bench.app.producer(by_name, ModelProducer))
    async with bench.running(), bench.session() as session:
        old = model(name="n", some_int=1)
        session.add(old)
        await session.commit()
        await bench.sent("by_name")
        await session.delete(old)
        session.add(model(name="n", some_int=2))
        await session.commit()
        assert await bench.sent("by_name", "some_int") == [("n", None), ("n", (2,))]


async def test_only_real_changes_of_watched_attributes_are_sent_to_a_producer(bench: SourceBench) -> None:
    names = bench.app.producer(bench.topic("names"), Watching)
    ints = bench.app.producer(bench.topic("ints"), Watching)
    names.watched, ints.watched = {"name", "state"}, {"some_int", "state", "updated_at"}
    model = bench.model(names, ints)
    async with bench.running(), bench.session() as session:
        widget = model(name="a", some_int=1, state="x")
        session.add(widget)
        await session.commit()
        assert len(await bench.sent("names")) == len(await bench.sent("ints")) == 1

        async def seen_after(**changes: Any) -> tuple[int, int]:
            for name, value in changes.items():
                setattr(widget, name, value)
            await session.commit()
            return len(await bench.sent("names")), len(await bench.sent("ints"))

        assert await seen_after(name="b") == (1, 0)
        assert await seen_after(some_int=2) == (0, 1)
        assert await seen_after(state="y") == (1, 1)
        assert await seen_after(secret="s") == (0, 0)
        assert await seen_after(updated_at=datetime(2024, 1, 1)) == (0, 0)  # noqa: DTZ001  # the column has no zone
        assert await seen_after(name="b", some_int=2, state="y") == (0, 0)
        assert await seen_after(name=sa.literal("c") + "d") == (1, 0)
        widget.name = "x"
        widget.name = "cd"
        await session.commit()
        assert await bench.sent("names") == []


async def test_by_default_the_fields_of_the_schema_are_watched(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        widget = model(name="a")
        session.add(widget)
        await session.commit()
        await bench.sent()
        widget.secret = "not a field"
        await session.commit()
        assert await bench.sent() == []
        widget.some_int = 5
        await session.commit()
        assert await bench.sent("widgets", "some_int") == [(widget.id, (5,))]


async def test_value_that_was_not_loaded_is_compared_with_the_row(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session(expire_on_commit=True) as session:
        widgets = [model(name="a", some_int=number) for number in range(3)]
        session.add_all(widgets)
        await session.commit()
        await bench.sent()
        for widget in widgets:
            widget.name = "a"
        widgets[1].some_int = 7
        with statements(bench) as executed:
            await session.commit()
        assert [payload for _, payload in await bench.sent("widgets", "name", "some_int")] == [("a", 7)]
        assert len([text for text in executed if text.startswith("SELECT")]) == 1


async def test_deferred_column_is_loaded_where_the_schema_has_it(bench: SourceBench) -> None:
    plain = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    body = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "name": deferred(mapped_column(sa.String(20))),
        "secret": deferred(mapped_column(sa.String(20))),
        "some_int": mapped_column(sa.Integer),
    }
    model = bench.model(bench.app.producer(bench.topic("deferred"), ModelProducer), table="_deferred", body=body)
    assert plain is not model
    async with bench.running():
        async with bench.session() as session:
            session.add(model(id=1, name="a", secret="s", some_int=1))
            await session.commit()
        await bench.sent("deferred")
        async with bench.session() as session:
            widget = await session.get_one(model, 1)
            widget.some_int = 2
            await session.commit()
            assert "secret" not in widget.__dict__
            assert await bench.sent("deferred", "name", "some_int") == [(1, ("a", 2))]
            widget.name = "a"
            await session.commit()
            assert await bench.sent("deferred") == []


async def test_expired_object_is_deleted_with_what_its_tombstone_needs(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.topic("by_model", key=Key.field("model_id")), ModelProducer))
    async with bench.running(), bench.session(expire_on_commit=True) as session:
        widgets = [model(model_id=f"m{number}") for number in range(3)]
        session.add_all(widgets)
        await session.commit()
        await bench.sent("by_model")
        for widget in widgets:
            await session.delete(widget)
        await session.commit()
        assert sorted(await bench.sent("by_model")) == [("m0", None), ("m1", None), ("m2", None)]


async def test_orphan_that_a_flush_deletes_is_sent(bench: SourceBench) -> None:
    producer = bench.app.producer(bench.widgets, ModelProducer)
    parent = bench.model(table="_parent", base=(), body={"id": mapped_column(sa.Integer, primary_key=True)})
    child = bench.model(
        producer,
        body={
            "id": mapped_column(sa.Integer, primary_key=True),
            "name": mapped_column(sa.String(20)),
            "parent_id": mapped_column(sa.ForeignKey(parent.id)),
        },
    )
    parent.children = relationship(child, cascade="all, delete-orphan", lazy="selectin")
    async with bench.running(), bench.session(expire_on_commit=True) as session:
        record = parent(id=1, children=[child(id=1, name="a"), child(id=2, name="b")])
        session.add(record)
        await session.commit()
        assert sorted(await bench.sent("widgets", "name")) == [(1, ("a",)), (2, ("b",))]
        await session.refresh(record, ["children"])
        session.expire(record.children[0])
        del record.children[0]
        await session.commit()
        assert await bench.sent() == [(1, None)]


async def test_two_producers_send_with_their_own_keys(bench: SourceBench) -> None:
    model = bench.model(
        bench.app.producer(bench.widgets, ModelProducer),
        bench.app.producer(bench.topic("by_model", key=Key.field("model_id")), ModelProducer),
        bench.app.producer(bench.topic("plainly", key=Key.plain()), ByHand),
    )
    async with bench.running(), bench.session() as session:
        widget = model(name="a", model_id="m")
        session.add(widget)
        await session.commit()
        assert await bench.sent("widgets", "name") == [(widget.id, ("a",))]
        assert await bench.sent("by_model", "name") == [("m", ("a",))]
        assert await bench.sent("plainly", "name") == [("key of a", ("A",))]
        await session.delete(widget)
        await session.commit()
        assert await bench.sent() == [(widget.id, None)]
        assert await bench.sent("by_model") == [("m", None)]
        assert await bench.sent("plainly") == [("deleted a", None)]


class ByHand(ModelProducer[Any]):
    """Makes payloads and keys itself."""

    def generate_payload(self, attributes: dict[str, Any], record: Any) -> Any:
        return attributes | {"name": record.name.upper(), "payload_key": f"key of {record.name}"}

    def generate_deletion_payload(self, record: Any) -> Any:
        return {"payload_key": f"deleted {record.name}"}


async def test_plain_producer_sends_attributes_and_the_models_own_deletion_payload(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.topic("plainly", key=Key.plain())))
    model.deletion_payload = lambda self: {"payload_key": f"gone {self.name}"}
    bench.app.defaults()
    async with bench.running(), bench.session() as session:
        producer = model.kafka_producers()[0]
        assert type(producer) is Producer
        widget = model(name="a")
        session.add(widget)
        with pytest.raises(EncodeError, match="a key is required"):
            await session.commit()
        await session.rollback()
        async with bench.engine.begin() as connection:
            await connection.execute(sa.insert(model.__table__).values(id=1, name="b"))
        widget = await session.get_one(model, 1)
        await session.delete(widget)
        await session.commit()
        assert await bench.sent("plainly") == [("gone b", None)]


async def test_key_of_several_columns_is_a_mapping(bench: SourceBench) -> None:
    topic = bench.topic("parts", key=Key.schema("com.acme.WidgetKey"))

    class Parts(ModelProducer[Any]):
        def generate_payload(self, attributes: dict[str, Any], record: Any) -> Any:
            return {"id": 1, "name": record.name, "payload_key": attributes}

    body = {
        "part_one": mapped_column(sa.String(20), primary_key=True),
        "part_two": mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        "name": mapped_column(sa.String(20)),
    }
    model = bench.model(bench.app.producer(topic, Parts), body=body)
    key = {"part_one": "a", "part_two": 2}
    async with bench.running(), bench.session(expire_on_commit=True) as session:
        record = model(**key, name="n")
        session.add(record)
        await session.commit()
        assert await bench.sent("parts", "name") == [(key, ("n",))]
        record.name = "m"
        await session.commit()
        await session.delete(record)
        await session.commit()
        await session.execute(sa.insert(model), [{**key, "name": "x"}, {**key, "part_two": 3, "name": "y"}])
        await session.execute(sa.update(model).where(model.part_two == 3).values(name="z"))
        await session.execute(sa.delete(model).where(model.part_two == 2))
        await session.commit()
        assert await bench.sent("parts", "name") == [
            (key, ("m",)), (key, None),
            (key, ("x",)), ({**key, "part_two": 3}, ("y",)), ({**key, "part_two": 3}, ("z",)), (key, None),
        ]  # fmt: skip


async def test_column_of_another_name_is_sent_under_the_name_that_the_schema_has(bench: SourceBench) -> None:
    body = {
        "number": mapped_column("id", sa.Integer, primary_key=True),
        "title": mapped_column("name", sa.String(20)),
    }
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer), body=body)
    async with bench.running(), bench.session() as session:
        record = model(number=3, title="a")
        session.add(record)
        await session.commit()
        record.title = "b"
        await session.commit()
        await session.execute(sa.insert(model), [{"number": 4, "title": "c"}])
        await session.execute(sa.update(model).where(model.number == 4).values(title="d"))
        await session.execute(sa.update(model), [{"number": 4, "title": "e"}])
        await session.delete(record)
        await session.commit()
        assert await bench.sent("widgets", "name") == [
            (3, ("a",)), (3, ("b",)), (4, ("c",)), (4, ("d",)), (4, ("e",)), (3, None)
        ]  # fmt: skip


# --- switches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", ["create", "update", "delete", "bulk"])
async def test_each_kind_of_change_can_be_switched_off(bench: SourceBench, off: str) -> None:
    config = KafkaConfig(**{off: False})
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer), config=config)
    async with bench.running(), bench.session() as session:
        seen = []
        widget = model(id=1, name="a")
        session.add(widget)
        await session.commit()
        seen.append(bool(await bench.sent()))
        widget.name = "b"
        await session.commit()
        seen.append(bool(await bench.sent()))
        await session.delete(widget)
        await session.commit()
        seen.append(bool(await bench.sent()))
        await session.execute(sa.insert(model), [{"id": 2, "name": "c"}])
        await session.commit()
        seen.append(bool(await bench.sent()))
    assert seen == [off != kind for kind in ("create", "update", "delete", "bulk")]


async def test_stopped_producers_send_nothing_and_the_others_do(bench: SourceBench) -> None:
    first = bench.app.producer(bench.widgets, ModelProducer)
    second = bench.app.producer(bench.topic("second"), ModelProducer)
    model = bench.model(first, second)
    async with bench.running(), bench.session() as session:
        with bench.app.disable_producers(first):
            session.add(model(name="a"))
            await session.flush()
            await session.execute(sa.insert(model), [{"name": "b"}])
        await session.commit()
        assert (await bench.sent(), len(await bench.sent("second"))) == ([], 2)
        with bench.app.disable_producers():
            session.add(model(name="c"))
            await session.execute(sa.insert(model), [{"name": "d"}])
            await session.commit()
        assert await bench.sent() == await bench.sent("second") == []
    assert len(await bench.rows(model, "id")) == 4


async def test_switched_off_producers_cost_no_queries(lite: SourceBench) -> None:
    model = lite.model(lite.app.producer(lite.widgets, ModelProducer), config=KafkaConfig(bulk=False))
    async with lite.running(), lite.session() as session:
        with statements(lite) as executed:
            await session.execute(sa.insert(model), [{"name": "a"}, {"name": "b"}])
            await session.execute(sa.update(model).values(name="c"))
            await session.commit()
    assert [text.split()[0] for text in executed] == ["INSERT", "UPDATE"]
    assert [text for text in executed if "RETURNING" in text] == []


async def test_class_without_kafka_producers_says_so_with_its_first_change(lite: SourceBench) -> None:
    model = lite.model()
    del model.kafka_producers
    async with lite.running(), lite.session() as session:
        session.add(model(name="a"))
        with pytest.raises(ConfigurationError, match="Widget is a KafkaSource without kafka_producers"):
            await session.commit()
        await session.rollback()
        with pytest.raises(ConfigurationError, match="Widget is a KafkaSource without kafka_producers"):
            await session.execute(sa.insert(model), [{"name": "a"}])
    assert await lite.rows(model, "id") == []


async def test_kafka_producers_that_returns_something_else_says_so(lite: SourceBench) -> None:
    model = lite.model()
    model.kafka_producers = classmethod(lambda cls: [ModelProducer])
    async with lite.running(), lite.session() as session:
        session.add(model(name="a"))
        with pytest.raises(ConfigurationError, match=r"Widget.kafka_producers\(\) returns a list of what"):
            await session.commit()


async def test_change_while_the_application_does_not_run_is_an_error(lite: SourceBench) -> None:
    model = lite.model(lite.app.producer(lite.widgets, ModelProducer))
    await lite.make_tables()
    async with lite.session() as session:
        session.add(model(name="a"))
        with pytest.raises(NotRunningError):
            await session.commit()
    assert await lite.rows(model, "id") == []


# --- bulk statements -------------------------------------------------------------------------------------------------


@contextmanager
def statements(bench: SourceBench) -> Iterator[list[str]]:
    """Texts of what is executed within the block."""
    found: list[str] = []

    def note(connection: Any, cursor: Any, text: str, parameters: Any, context: Any, many: bool) -> None:
        found.append(text)

    event.listen(bench.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(bench.engine.sync_engine, "before_cursor_execute", note)


def upsert(bench: SourceBench, model: Any, *keys: Any, ignore: bool = False) -> Any:
    """`INSERT` that updates `name` where the unique column `model_id` is there already, or leaves it."""
    if bench.kind == "mysql":
        made = mysql.insert(model)
        return made.prefix_with("IGNORE") if ignore else made.on_duplicate_key_update(name=made.inserted.name)
    insert = postgresql.insert if bench.kind == "postgresql" else sqlite.insert
    statement: Any = insert(model)
    if ignore:
        return statement.on_conflict_do_nothing()
    return statement.on_conflict_do_update(index_elements=[model.model_id], set_={"name": statement.excluded.name})


async def test_inserted_rows_are_sent_with_their_real_ids(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        with statements(bench) as executed:
            await session.execute(sa.insert(model), [{"name": f"w{number}"} for number in range(50)])
            await session.execute(sa.insert(model).values(name="alone"))
            await session.execute(sa.insert(model).values([{"name": "x"}, {"name": "y"}]))
            await session.execute(sa.insert(model).from_select(["name"], sa.select(sa.literal("selected"))))
            await session.commit()
        sent = await bench.sent("widgets", "id", "name", "state")
    rows = await bench.rows(model, "id", "name", "state")
    assert sorted(payload for _, payload in sent) == rows
    assert len(rows) == 54
    assert [key for key, _ in sent] == [payload[0] for _, payload in sent]
    assert len([text for text in executed if text.startswith("INSERT")]) == 4


async def test_ignored_duplicates_send_nothing_and_shift_nothing(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        await session.execute(sa.insert(model), [{"model_id": "b", "name": "old"}])
        await session.commit()
        await bench.sent()
        rows = [{"model_id": letter, "name": f"new {letter}"} for letter in "abc"]
        await session.execute(upsert(bench, model, ignore=True), rows)
        await session.commit()
        sent = await bench.sent("widgets", "id", "model_id", "name")
    stored = {row[1]: row for row in await bench.rows(model, "id", "model_id", "name")}
    assert sorted(payload for _, payload in sent) == sorted([stored["a"], stored["c"]])
    assert stored["b"][2] == "old"


async def test_upserted_rows_are_sent_with_new_values_and_their_ids(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        await session.execute(sa.insert(model), [{"model_id": "b", "name": "old", "some_int": 7}])
        await session.commit()
        await bench.sent()
        rows = [{"model_id": letter, "name": f"new {letter}"} for letter in "abc"]
        await session.execute(upsert(bench, model), rows)
        await session.commit()
        sent = await bench.sent("widgets", "id", "model_id", "name", "some_int")
    stored = await bench.rows(model, "id", "model_id", "name", "some_int")
    assert sorted(payload for _, payload in sent) == stored
    assert sorted(row[1:] for row in stored) == [("a", "new a", None), ("b", "new b", 7), ("c", "new c", None)]


async def test_bulk_updates_send_the_rows_that_they_changed(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        await session.execute(sa.insert(model), [{"id": n, "name": f"w{n}", "some_int": n} for n in range(1, 6)])
        await bench_commit(bench, session)
        result = await session.execute(
            sa.update(model).where(model.some_int > 3).values(name="big", some_int=model.some_int + 10)
        )
        assert result.rowcount == 2
        await session.commit()
        assert sorted(await bench.sent("widgets", "name", "some_int")) == [(4, ("big", 14)), (5, ("big", 15))]
        await session.execute(sa.update(model), [{"id": 1, "name": "one"}, {"id": 2, "name": "two"}])
        await session.commit()
        assert await bench.sent("widgets", "name") == [(1, ("one",)), (2, ("two",))]
        await session.execute(sa.update(model).where(model.id == 99).values(name="nobody"))
        await session.execute(sa.update(model).where(model.id == 1).values(secret="not watched"))
        await session.commit()
        assert await bench.sent() == []
    assert (await bench.rows(model, "id", "name"))[3:] == [(4, "big"), (5, "big")]


async def bench_commit(bench: SourceBench, session: AsyncSession) -> None:
    """Commit, and forget what was sent."""
    await session.commit()
    await bench.sent()


async def test_update_with_a_condition_on_its_own_column_sends_its_rows(bench: SourceBench) -> None:
    """The rows that a condition finds are others once the statement has run."""
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        await session.execute(sa.insert(model), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
        await bench_commit(bench, session)
        await session.execute(sa.update(model).where(model.name == sa.bindparam("old")).values(name="z"), {"old": "a"})
        await session.commit()
        assert await bench.sent("widgets", "name") == [(1, ("z",))]


async def test_bulk_deletes_send_tombstones(bench: SourceBench) -> None:
    model = bench.model(
        bench.app.producer(bench.widgets, ModelProducer),
        bench.app.producer(bench.topic("by_model", key=Key.field("model_id")), ModelProducer),
        bench.app.producer(bench.topic("plainly", key=Key.plain()), ByHand),
    )
    async with bench.running(), bench.session() as session:
        rows = [{"id": n, "model_id": f"m{n}", "name": f"w{n}"} for n in (1, 2, 3)]
        await session.execute(sa.insert(model), rows)
        await session.commit()
        for topic in ("widgets", "by_model", "plainly"):
            await bench.sent(topic)
        result = await session.execute(sa.delete(model).where(model.id < 3))
        assert result.rowcount == 2
        await session.commit()
        assert sorted(await bench.sent()) == [(1, None), (2, None)]
        assert sorted(await bench.sent("by_model")) == [("m1", None), ("m2", None)]
        assert sorted(await bench.sent("plainly")) == [("deleted w1", None), ("deleted w2", None)]
    assert await bench.rows(model, "id") == [(3,)]


async def test_statements_that_join_other_tables_send_each_row_once(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    other = bench.model(
        table="_other",
        base=(),
        body={"id": mapped_column(sa.Integer, primary_key=True), "widget": mapped_column(sa.Integer)},
    )
    async with bench.running(), bench.session() as session:
        await session.execute(sa.insert(model), [{"id": n, "name": f"w{n}"} for n in (1, 2, 3)])
        await session.execute(sa.insert(other), [{"id": n, "widget": n % 2 + 1} for n in range(1, 5)])
        await bench_commit(bench, session)
        options = {"synchronize_session": False}
        joined = other.widget == model.id
        await session.execute(sa.update(model).where(joined).values(name="joined"), execution_options=options)
        await session.commit()
        assert sorted(await bench.sent("widgets", "name")) == [(1, ("joined",)), (2, ("joined",))]
        if bench.kind != "sqlite":  # which has no DELETE of several tables
            await session.execute(sa.delete(model).where(joined), execution_options=options)
            await session.commit()
            assert sorted(await bench.sent()) == [(1, None), (2, None)]


async def test_result_of_a_statement_stays_as_it_was(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        result: Any = await session.execute(sa.insert(model).values(id=5, name="a"))
        assert (result.rowcount, tuple(result.inserted_primary_key)) == (1, (5,))
        assert not result.returns_rows
        with pytest.raises(sa.exc.ResourceClosedError):
            result.all()
        made = sa.insert(model).returning(model.name, model.id)
        rows = (await session.execute(made, [{"id": 6, "name": "b"}, {"id": 7, "name": "c"}])).all()
        assert sorted(rows) == [("b", 6), ("c", 7)]
        assert rows[0]._fields == ("name", "id")
        one = (await session.scalars(sa.insert(model).returning(model), [{"id": 8, "name": "d"}])).one()
        assert (one in session, one.name, one.id) == (True, "d", 8)
        if bench.kind != "mysql":
            changed = sa.update(model).where(model.id == 6).values(name="B").returning(model.id)
            assert (await session.execute(changed)).scalar_one() == 6
        if bench.kind != "sqlite":
            gone = sa.delete(model).where(model.id == 7).returning(model.name)
            assert (await session.scalars(gone)).all() == ["c"]
        await session.commit()
        assert one.name == "d"


async def test_objects_in_the_session_follow_bulk_statements_as_before(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        widget = model(name="a")
        session.add(widget)
        await session.execute(sa.update(model).where(model.name == "a").values(name="b"))
        assert widget.name == "b"
        await session.execute(sa.delete(model).where(model.name == "b"))
        assert widget not in session
        await session.commit()
        assert await bench.sent("widgets", "name") == [(widget.id, ("a",)), (widget.id, ("b",)), (widget.id, None)]


async def test_hook_of_a_bulk_statement_gets_the_objects_by_one_query(bench: SourceBench) -> None:
    class Titled(ModelProducer[Any]):
        def generate_payload(self, attributes: dict[str, Any], record: Any) -> Any:
            return attributes | {"name": record.name.title()}

    model = bench.model(bench.app.producer(bench.widgets, Titled))
    async with bench.running(), bench.session() as session:
        with statements(bench) as executed:
            await session.execute(sa.insert(model), [{"name": f"the {n}"} for n in range(20)])
            await session.commit()
        assert len([text for text in executed if text.startswith("SELECT")]) == 1
        sent = await bench.sent("widgets", "name")
        assert sorted(payload[0] for _, payload in sent) == sorted(f"The {n}" for n in range(20))


async def test_bulk_statement_on_the_table_itself_is_not_seen(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        await session.execute(sa.insert(model.__table__), [{"name": "a"}])
        await session.commit()
        assert await bench.sent() == []


async def test_empty_list_of_rows_sends_nothing(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        await session.execute(sa.update(model), [])
        await session.execute(sa.delete(model))
        await session.commit()
        assert await bench.sent() == []


async def test_rows_of_several_classes_in_one_table_go_to_the_producers_of_their_class(bench: SourceBench) -> None:
    base_producer = bench.app.producer(bench.widgets, ModelProducer)
    special_producer = bench.app.producer(bench.topic("special"), ModelProducer)
    model = bench.model(base_producer)
    model_body = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "kind": mapped_column(sa.String(10)),
        "name": mapped_column(sa.String(20)),
        "__mapper_args__": {"polymorphic_on": "kind", "polymorphic_identity": "plain"},
    }
    plain = bench.model(base_producer, table="_kinds", body=model_body)
    special = type(
        "Special",
        (plain,),
        {
            "__mapper_args__": {"polymorphic_identity": "special"},
            "kafka_producers": classmethod(lambda cls: [special_producer]),
        },
    )
    assert model is not plain
    async with bench.running(), bench.session() as session:
        session.add_all([plain(id=1, name="a"), special(id=2, name="b")])
        await session.commit()
        await session.execute(sa.update(plain).values(name="c"))
        await session.execute(sa.delete(plain))
        await session.commit()
        assert await bench.sent("widgets", "name") == [(1, ("a",)), (1, ("c",)), (1, None)]
        assert await bench.sent("special", "name") == [(2, ("b",)), (2, ("c",)), (2, None)]


@pytest.mark.services("mariadb")
async def test_rows_that_come_between_looking_and_writing_are_not_lost(
    mariadb_url: str, unique_name: str, tmp_path: Path
) -> None:
    """MariaDB does not tell which rows it updates; below REPEATABLE READ others may come after they were looked for."""
    async with source_bench("mariadb", lambda _: mariadb_url, unique_name, tmp_path) as bench:
        model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
        other = sa.create_engine(sa.make_url(mariadb_url).set(drivername="mysql+pymysql"))

        def come_between(connection: Any, cursor: Any, text: str, parameters: Any, context: Any, many: bool) -> None:
            if text.startswith("UPDATE"):
                with other.begin() as between:
                    between.execute(sa.insert(model.__table__).values(name="a"))

        async with bench.running(), bench.session() as session:
            await session.execute(sa.insert(model), [{"name": "a"}])
            await bench_commit(bench, session)
            await session.connection(execution_options={"isolation_level": "READ COMMITTED"})
            event.listen(bench.engine.sync_engine, "before_cursor_execute", come_between)
            with pytest.raises(DatabaseError, match="wrote rows that were not there") as caught:
                await session.execute(sa.update(model).where(model.name == "a").values(name="b"))
            assert caught.value.retriable
            with pytest.raises(LifecycleError, match="cannot be committed"):
                await session.commit()
            await session.rollback()
            event.remove(bench.engine.sync_engine, "before_cursor_execute", come_between)
            await session.execute(sa.update(model).where(model.name == "a").values(name="b"))
            await session.commit()
            assert [payload for _, payload in await bench.sent("widgets", "name")] == [("b",), ("b",)]
        other.dispose()


async def test_update_that_is_given_its_values_as_a_parameter_sends_its_rows(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        session.add_all([model(id=1, name="a"), model(id=2, name="b")])
        await session.commit()
        await bench.sent()
        await session.execute(sa.update(model).where(model.id == 1), {"name": "A"})
        renaming = sa.update(model).where(model.name == sa.bindparam("old")).values(name=sa.bindparam("new"))
        await session.execute(renaming, {"old": "b", "new": "B"})
        await session.commit()
        assert await bench.sent("widgets", "name") == [(1, ("A",)), (2, ("B",))]


@pytest.mark.parametrize("kind", [MARIADB, POSTGRESQL])
@pytest.mark.parametrize("by_key", [False, True])
async def test_row_that_a_statement_leaves_as_it_is_is_sent_as_others_have_committed_it(
    request: pytest.FixtureRequest, unique_name: str, tmp_path: Path, kind: str, by_key: bool
) -> None:
    """MySQL and MariaDB do not write such a row, so a transaction goes on to see it as it was when it began."""
    async with source_bench(kind, request.getfixturevalue, unique_name, tmp_path) as bench:
        model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
        async with bench.running(), bench.session() as session, bench.session() as other:
            session.add(model(id=1, name="a", some_int=1))
            await session.commit()
            await session.execute(sa.select(model.id))
            await other.execute(sa.update(model).values(name="b", some_int=2))
            await other.commit()
            await bench.sent()
            if by_key:
                await session.execute(sa.update(model), [{"id": 1, "some_int": 2}])
            else:
                await session.execute(sa.update(model).where(model.id == 1).values(some_int=2))
            await session.commit()
            assert await bench.sent("widgets", "name", "some_int") == [(1, ("b", 2))]


@pytest.mark.parametrize("strategy", ["auto", "orm", "core_only"])
async def test_list_of_updates_without_primary_keys_is_refused(bench: SourceBench, strategy: str) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    renaming = sa.update(model).where(model.name == sa.bindparam("old")).values(name=sa.bindparam("new"))
    renaming = renaming.execution_options(dml_strategy=strategy, synchronize_session=None)
    async with bench.running(), bench.session() as session:
        session.add(model(name="a"))
        await session.flush()
        with pytest.raises(ConfigurationError, match="need their primary keys"):
            await session.execute(renaming, [{"old": "a", "new": "A"}])
        await session.commit()
        assert [payload for _, payload in await bench.sent("widgets", "name")] == [("a",)]
    assert [row[1] for row in await bench.rows(model, "id", "name")] == ["a"]


async def test_rows_of_a_list_that_fails_half_way_are_not_committed_without_messages(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    insert = sa.insert(model).execution_options(insertmanyvalues_page_size=2)
    async with bench.running(), bench.session() as session:
        session.add(model(id=5, name="there"))
        await session.commit()
        await bench.sent()
        with pytest.raises(IntegrityError):
            await session.execute(insert, [{"id": number} for number in (1, 2, 3, 4, 5)])
        with pytest.raises(LifecycleError, match="cannot be committed"):
            await session.commit()
        await session.rollback()
        with pytest.raises(IntegrityError):
            async with session.begin_nested():
                await session.execute(insert, [{"id": number} for number in (6, 7, 5)])
        await session.execute(insert, [{"id": 8}])
        await session.commit()
        assert [key for key, _ in await bench.sent()] == [8]
    assert await bench.rows(model, "id") == [(5,), (8,)]


async def test_statement_on_a_class_sends_rows_of_others_with_the_columns_that_only_these_have(
    bench: SourceBench,
) -> None:
    body = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "name": mapped_column(sa.String(20)),
        "kind": mapped_column(sa.String(20)),
        "__mapper_args__": {"polymorphic_on": "kind", "polymorphic_identity": "base"},
    }
    base = bench.model(bench.app.producer(bench.widgets, ModelProducer), body=body)
    joined = type(
        "Joined",
        (base,),
        {
            "__tablename__": f"{bench.name}joined",
            "id": mapped_column(sa.ForeignKey(base.id), primary_key=True),
            "some_int": mapped_column(sa.Integer),
            "__mapper_args__": {"polymorphic_identity": "joined"},
        },
    )
    single = type(
        "Single",
        (base,),
        {"state": mapped_column(sa.String(20)), "__mapper_args__": {"polymorphic_identity": "single"}},
    )
    async with bench.running(), bench.session() as session:
        session.add_all([joined(id=1, some_int=1), single(id=2, state="s"), base(id=3)])
        await session.commit()
        await bench.sent()
        await session.execute(sa.update(base).values(name="b"))
        await session.commit()
        assert sorted(await bench.sent("widgets", "name", "some_int", "state")) == [
            (1, ("b", 1, None)), (2, ("b", None, "s")), (3, ("b", None, None))
        ]  # fmt: skip


async def test_streamed_rows_of_a_statement_are_sent_too(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        statement = sa.insert(model).returning(model.name)
        result = await session.stream(statement, [{"name": "a"}, {"name": "b"}])
        assert sorted([row.name async for row in result]) == ["a", "b"]
        assert await session.scalar(sa.insert(model).values(name="c").returning(model.name)) == "c"
        await session.commit()
        assert sorted(payload for _, payload in await bench.sent("widgets", "name")) == [("a",), ("b",), ("c",)]


# --- where the database does not tell --------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", MARIADB])
async def silent(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[SourceBench]:
    """A database that has no RETURNING, as MySQL."""
    async with source_bench(request.param, request.getfixturevalue, unique_name, tmp_path) as found:
        async with found.engine.connect():
            pass  # what a database can do is found out with the first connection
        dialect = found.engine.dialect
        dialect.insert_returning = dialect.update_returning = dialect.delete_returning = False
        dialect.insert_executemany_returning = dialect.insert_executemany_returning_sort_by_parameter_order = False
        yield found


async def test_without_returning_rows_are_found_by_their_keys(silent: SourceBench) -> None:
    bench = silent
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        await session.execute(sa.insert(model), [{"id": 2, "name": "b"}, {"id": 1, "name": "a"}])
        await session.execute(sa.insert(model).values(name="alone"))
        await session.execute(sa.update(model).where(model.name == "b").values(name="B"))
        await session.execute(sa.delete(model).where(model.name == "a"))
        await session.commit()
        sent = await bench.sent("widgets", "name", "state")
        alone = (await bench.rows(model, "id", "name"))[-1][0]
        assert sent == [
            (2, ("b", "new")), (1, ("a", "new")), (alone, ("alone", "new")), (2, ("B", "new")), (1, None)
        ]  # fmt: skip


async def test_without_returning_ignored_and_updated_duplicates_are_told_apart(silent: SourceBench) -> None:
    bench = silent
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        await session.execute(sa.insert(model), [{"id": 1, "model_id": "b", "name": "old"}])
        await bench_commit(bench, session)
        rows = [{"model_id": letter, "name": f"new {letter}"} for letter in "abc"]
        await session.execute(upsert(bench, model, ignore=True), rows)
        await session.commit()
        assert sorted(payload for _, payload in await bench.sent("widgets", "model_id", "name")) == [
            ("a", "new a"), ("c", "new c")
        ]  # fmt: skip
        rows = [{"model_id": letter, "name": "newest"} for letter in "bd"]
        await session.execute(upsert(bench, model), rows)
        await session.commit()
        assert sorted(payload for _, payload in await bench.sent("widgets", "model_id", "name")) == [
            ("b", "newest"), ("d", "newest")
        ]  # fmt: skip


async def test_without_returning_a_new_primary_key_is_refused_however_it_is_given(silent: SourceBench) -> None:
    bench = silent
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        for statement, given in ((sa.update(model).values(id=9), {}), (sa.update(model), {"id": 9})):
            with pytest.raises(ConfigurationError, match="sets the primary key"):
                await session.execute(statement, given)


async def test_without_returning_rows_that_nobody_could_find_again_are_refused(silent: SourceBench) -> None:
    bench = silent
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        for statement, rows in (
            (sa.insert(model), [{"name": "a"}, {"name": "b"}]),
            (sa.insert(model).values([{"name": "a"}, {"name": "b"}]), None),
            (sa.insert(model).from_select(["name"], sa.select(sa.literal("a"))), None),
        ):
            with pytest.raises(ConfigurationError, match="Widget: this database does not tell the keys of rows"):
                await session.execute(statement, rows)
        with pytest.raises(ConfigurationError, match="Widget: this database does not tell which rows are meant"):
            await session.execute(sa.update(model).values(id=model.id + 1))
        await session.commit()
        assert await bench.sent() == []
    assert await bench.rows(model, "id") == []


# --- transactions and surroundings -----------------------------------------------------------------------------------


async def test_changes_in_app_transaction_leave_with_it(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    plain = bench.app.producer(bench.widgets)
    async with bench.running():
        async with bench.app.transaction() as session:
            await plain.produce({"id": 100, "name": "by hand"})
            session.add(model(id=1, name="a"))
            await session.flush()
            await plain.produce({"id": 101, "name": "by hand"})
            assert not bench.records()
        assert [key for key, _ in await bench.sent()] == [100, 1, 101]
        with pytest.raises(ZeroDivisionError):
            async with bench.app.transaction() as session:
                session.add(model(id=2, name="b"))
                await session.flush()
                raise ZeroDivisionError
        assert await bench.sent() == []


async def test_listener_that_adds_rows_when_the_commit_has_begun_is_heard(bench: SourceBench) -> None:
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        added: list[Any] = []

        def add_late(inner: Session) -> None:
            if not added and inner.get_nested_transaction() is None:
                added.append(model(name="late"))
                inner.add(added[0])

        event.listen(session.sync_session, "before_commit", add_late)
        await session.commit()  # nothing has begun: nothing is committed
        await session.execute(sa.select(model))
        await session.commit()
        assert [payload for _, payload in await bench.sent("widgets", "name")] == [("late",)]
    assert [row[1] for row in await bench.rows(model, "id", "name")] == ["late"]


async def test_payload_that_does_not_fit_lets_nothing_be_committed(bench: SourceBench) -> None:
    class Odd(ModelProducer[Any]):
        def generate_payload(self, attributes: dict[str, Any], record: Any) -> Any:
            return attributes | ({"some_int": "many"} if record.name == "bad" else {})

    model = bench.model(bench.app.producer(bench.widgets, Odd))
    async with bench.running(), bench.session() as session:
        session.add(model(name="good"))
        await session.flush()
        session.add(model(name="bad"))
        with pytest.raises(EncodeError, match="some_int"):
            await session.commit()
        await session.rollback()
        assert await bench.sent() == []
    assert await bench.rows(model, "id") == []


async def test_statement_whose_messages_cannot_be_made_must_be_rolled_back(bench: SourceBench) -> None:
    class Odd(ModelProducer[Any]):
        def generate_payload(self, attributes: dict[str, Any], record: Any) -> Any:
            return attributes | ({"some_int": "many"} if record.name == "bad" else {})

    model = bench.model(bench.app.producer(bench.widgets, Odd))
    async with bench.running(), bench.session() as session:
        with pytest.raises(EncodeError, match="some_int"):
            await session.execute(sa.insert(model), [{"name": "bad"}])
        with pytest.raises(LifecycleError, match=r"could not be made \(EncodeError\), so it cannot be committed"):
            await session.commit()
        await session.rollback()
        session.add(model(name="good"))
        await session.flush()
        with pytest.raises(EncodeError, match="some_int"):
            async with session.begin_nested():
                await session.execute(sa.insert(model), [{"name": "bad"}])
        await session.commit()
        assert [payload for _, payload in await bench.sent("widgets", "name")] == [("good",)]
    assert [row[1] for row in await bench.rows(model, "id", "name")] == ["good"]


async def test_object_that_takes_the_place_of_a_deleted_one_is_sent(bench: SourceBench) -> None:
    """SQLAlchemy writes the two as one UPDATE, which leaves columns alone that the new one does not speak of."""
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        old = model(id=1, name="old", some_int=1)
        session.add(old)
        await bench_commit(bench, session)
        await session.delete(old)
        session.add(model(id=1, name="new"))
        await session.commit()
        assert await bench.sent("widgets", "name", "some_int") == [(1, ("new", 1))]
    assert await bench.rows(model, "id", "name", "some_int") == [(1, "new", 1)]


async def test_class_with_two_tables_is_sent_as_one_row(bench: SourceBench) -> None:
    producer = bench.app.producer(bench.widgets, ModelProducer)
    base_body = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "kind": mapped_column(sa.String(10)),
        "name": mapped_column(sa.String(20)),
        "__mapper_args__": {
            "polymorphic_on": "kind",
            "polymorphic_identity": "plain",
            "with_polymorphic": "*",
        },
    }
    plain = bench.model(producer, table="_base", body=base_body)
    special = type(
        "Special",
        (plain,),
        {
            "__tablename__": f"{bench.name}_special",
            "__mapper_args__": {"polymorphic_identity": "special"},
            "id": mapped_column(sa.ForeignKey(plain.id), primary_key=True),
            "some_int": mapped_column(sa.Integer),
        },
    )
    async with bench.running(), bench.session() as session:
        record = special(id=1, name="a", some_int=1)
        session.add_all([record, plain(id=2, name="b")])
        await session.commit()
        assert await bench.sent("widgets", "name", "some_int") == [(1, ("a", 1)), (2, ("b", None))]
        record.name = "A"
        await session.commit()
        record.some_int = 2
        await session.commit()
        assert await bench.sent("widgets", "name", "some_int") == [(1, ("A", 1)), (1, ("A", 2))]
        await session.execute(sa.insert(special), [{"id": 3, "name": "c", "some_int": 3}])
        await session.execute(sa.update(special).where(special.id == 3).values(some_int=4))
        await session.execute(sa.update(special), [{"id": 3, "name": "C", "some_int": 5}])
        await session.commit()
        assert await bench.sent("widgets", "name", "some_int") == [(3, ("c", 3)), (3, ("c", 4)), (3, ("C", 5))]
        for each in (record, await session.get_one(plain, 2)):
            session.expire(each)
            each.name = "A"
        await session.commit()
        assert await bench.sent("widgets", "name", "some_int") == [(2, ("A", None))]
        await session.delete(record)
        await session.commit()
        assert await bench.sent() == [(1, None)]


async def test_handler_that_stores_offsets_may_not_change_rows_whose_messages_could_be_lost(bench: SourceBench) -> None:
    lossy = bench.app.producer(bench.widgets, ModelProducer, backend="kafka")
    model = bench.model(lossy)
    async with bench.running(), AsyncSession(bench.engine, sync_session_class=FencedSession) as session:
        scope, token = enter_scope(bench.app, session)
        try:
            session.add(model(name="a"))
            with pytest.raises(ConfigurationError, match="sends after the commit, and a crash"):
                await session.flush()
        finally:
            leave_scope(scope, token)
    assert await bench.rows(model, "id") == []


async def test_hooks_may_touch_what_belongs_to_the_record(bench: SourceBench) -> None:
    class WithParent(ModelProducer[Any]):
        def generate_payload(self, attributes: dict[str, Any], record: Any) -> Any:
            return attributes | {"name": f"{record.name} of {record.parent.name}"}

        def generate_deletion_payload(self, record: Any) -> Any:
            return {"payload_key": record.id}

    parent = bench.model(
        table="_parent",
        base=(),
        body={"id": mapped_column(sa.Integer, primary_key=True), "name": mapped_column(sa.String(20))},
    )
    child = bench.model(
        bench.app.producer(bench.widgets, WithParent),
        body={
            "id": mapped_column(sa.Integer, primary_key=True),
            "name": mapped_column(sa.String(20)),
            "parent_id": mapped_column(sa.ForeignKey(parent.id)),
            "parent": relationship(parent),
        },
    )
    async with bench.running(), bench.session() as session:
        session.add(parent(id=1, name="p"))
        await session.commit()
        session.add(child(id=1, name="a", parent_id=1))
        await session.flush()
        await session.execute(sa.insert(child), [{"id": 2, "name": "b", "parent_id": 1}])
        await session.commit()
        assert await bench.sent("widgets", "name") == [(1, ("a of p",)), (2, ("b of p",))]


async def test_post_process_is_called_when_the_messages_have_left(bench: SourceBench) -> None:
    seen: list[tuple[int, Sequence[Any]]] = []

    class Noting(ModelProducer[Any]):
        async def post_process(self, records: Sequence[Any]) -> None:
            seen.append((len(bench.records()), [record.name for record in records]))

        def generate_payload(self, attributes: dict[str, Any], record: Any) -> Any:
            return None if record.name == "skipped" else attributes

    model = bench.model(bench.app.producer(bench.widgets, Noting))
    async with bench.running(), bench.session() as session:
        session.add_all([model(name="a"), model(name="skipped")])
        await session.flush()
        session.add(model(name="b"))
        assert seen == []
        await session.commit()
        assert seen == [(2, ["a", "skipped", "b"])]
        session.add(model(name="lost"))
        await session.flush()
        await session.rollback()
        assert len(seen) == 1


async def test_text_is_cut_in_the_message_alone(unique_name: str, tmp_path: Path) -> None:
    settings = {"producers.truncate_columns": True}
    for cuts in (True, False):
        body = {
            "id": mapped_column(sa.Integer, primary_key=True),
            "name": mapped_column(sa.String(100)),
            "model_id": mapped_column(sa.String),
            "state": mapped_column(sa.Text),
        }
        folder = tmp_path / str(cuts)
        folder.mkdir()
        async with source_bench("sqlite", str, unique_name, folder, settings if cuts else None) as bench:
            model = bench.model(bench.app.producer(bench.widgets, ModelProducer), body=body)
            async with bench.running(), bench.session() as session:
                long = "a" * 500
                widget = model(name=long, model_id=long, state=long)
                session.add(widget)
                await session.commit()
                widget.name = "b" * 500
                await session.commit()
                await session.execute(sa.insert(model), [{"name": long, "model_id": "x", "state": "y"}])
                await session.commit()
                sent = [payload for _, payload in await bench.sent("widgets", "name", "model_id", "state")]
                limit = 100 if cuts else 500
                assert [len(payload[0]) for payload in sent] == [limit] * 3
                assert [len(text) for text in sent[0][1:]] == [500, 500]
                assert widget.name == "b" * 500
                assert await bench.rows(model, "name") == [("a" * 500,), ("b" * 500,)]


async def test_defaults_of_the_database_are_read_by_one_query_for_many_rows(bench: SourceBench) -> None:
    made_at = {"name": "made_at", "type": {"type": "long", "logicalType": "timestamp-micros"}}
    schema = {
        "type": "record", "name": "Timed", "namespace": "com.acme", "fields": [{"name": "id", "type": "long"}, made_at]
    }  # fmt: skip
    bench.add_schema(schema)
    topic = bench.topic("timed", schema="com.acme.Timed")
    body = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "made_at": mapped_column(
            sa.DateTime(timezone=True), server_default=sa.func.now(), server_onupdate=sa.FetchedValue()
        ),
        "name": mapped_column(sa.String(20)),
    }
    model = bench.model(bench.app.producer(topic, ModelProducer), body=body)
    async with bench.running(), bench.session() as session:
        with statements(bench) as executed:
            session.add_all([model(name="a") for _ in range(10)])
            await session.commit()
        assert len([text for text in executed if text.startswith("SELECT")]) <= 1
        sent = await bench.sent("timed")
        assert all(isinstance(payload["made_at"], datetime) and payload["made_at"].tzinfo == UTC for _, payload in sent)
        assert len(sent) == 10


# --- with the outbox -------------------------------------------------------------------------------------------------


@pytest.fixture(params=DATABASES)
async def storing(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[SourceBench]:
    """One database after the other, with an outbox."""
    async with storing_bench(request.param, request.getfixturevalue, unique_name, tmp_path) as found:
        yield found


async def test_changes_are_stored_in_their_transaction_by_one_statement_at_its_end(storing: SourceBench) -> None:
    bench = storing
    model = bench.model(
        bench.app.producer(bench.widgets, ModelProducer), bench.app.producer(bench.topic("second"), ModelProducer)
    )
    async with bench.running(), bench.session() as session:
        with statements(bench) as executed:
            session.add(model(id=1, name="a"))
            await session.commit()
        assert len([text for text in executed if "kafka_messages" in text]) == 1
        with statements(bench) as executed:
            session.add_all([model(id=2, name="b"), model(id=3, name="c")])
            await session.flush()
            await session.execute(sa.insert(model), [{"id": 4, "name": "d"}])
            await session.execute(sa.update(model).where(model.id == 2).values(name="B"))
            assert not [text for text in executed if "kafka_messages" in text]
            await session.delete(await session.get_one(model, 1))
            await session.commit()
        assert [place for place, text in enumerate(executed) if "kafka_messages" in text] == [len(executed) - 1]
        wanted = [(1, ("a",)), (2, ("b",)), (3, ("c",)), (4, ("d",)), (2, ("B",)), (1, None)]
        assert await bench.stored("widgets", "name") == wanted
        assert await bench.stored("second", "name") == wanted


async def test_changes_of_a_row_are_stored_in_the_order_of_the_commits(storing: SourceBench) -> None:
    """Writers who count rows up, by objects and by statements, each for itself."""
    bench = storing
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    rows, rounds, writers = 3, 15, 1 if bench.kind == "sqlite" else 4

    async def count_up(writer: int) -> None:
        for number in range(rounds):
            for row in range(1, rows + 1):
                async with bench.session() as session:
                    if (writer + number) % 2:
                        widget = await session.get_one(model, row, with_for_update=True)
                        widget.some_int += 1
                    else:
                        statement = sa.update(model).where(model.id == row).values(some_int=model.some_int + 1)
                        await session.execute(statement)
                    await session.commit()

    async with bench.running():
        async with bench.session() as session:
            session.add_all([model(id=row, some_int=0) for row in range(1, rows + 1)])
            await session.commit()
        async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as group:
            for writer in range(writers):
                group.create_task(count_up(writer))
        stored = await bench.stored("widgets", "some_int")
    for row in range(1, rows + 1):
        assert [payload[0] for key, payload in stored if key == row] == list(range(rounds * writers + 1))


async def test_savepoint_at_the_start_of_a_transaction_is_rolled_back_with_it(storing: SourceBench) -> None:
    """Python's driver of SQLite would not begin the transaction before."""
    bench = storing
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        async with session.begin_nested():
            session.add(model(name="gone"))
        await session.rollback()
        async with session.begin_nested():
            session.add(model(name="stays"))
        await session.commit()
        assert [payload for _, payload in await bench.stored("widgets", "name")] == [("stays",)]
    assert [row[1] for row in await bench.rows(model, "id", "name")] == ["stays"]


async def test_transaction_that_ends_in_another_task_than_it_began_in_is_committed(storing: SourceBench) -> None:
    """As an asynchronous generator may, that a framework finishes."""
    bench = storing
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))

    async def dependency() -> AsyncIterator[AsyncSession]:
        async with bench.app.transaction() as session:
            yield session

    async def step(found: AsyncIterator[AsyncSession]) -> AsyncSession | None:
        return await anext(found, None)

    async with bench.running():
        generator = dependency()
        session = await asyncio.create_task(step(generator))
        assert session is not None
        session.add(model(id=1, name="a"))
        assert await asyncio.create_task(step(generator)) is None
        assert await bench.stored("widgets", "name") == [(1, ("a",))]
    assert await bench.rows(model, "id") == [(1,)]


async def test_rollback_leaves_nothing_in_the_outbox(storing: SourceBench) -> None:
    bench = storing
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        session.add(model(id=1, name="a"))
        await session.flush()
        await session.rollback()
        session.add(model(id=2, name="b"))
        with pytest.raises(ZeroDivisionError):
            async with session.begin_nested():
                session.add(model(id=3, name="c"))
                await session.execute(sa.insert(model), [{"id": 4, "name": "d"}])
                raise ZeroDivisionError
        async with session.begin_nested():
            await session.execute(sa.insert(model), [{"id": 5, "name": "e"}])
        await session.commit()
        session.add(model(id=2, name="again"))
        with pytest.raises(sa.exc.IntegrityError):
            await session.commit()
        await session.rollback()
        assert await bench.stored("widgets", "name") == [(2, ("b",)), (5, ("e",))]


@pytest.mark.parametrize("moment", ["before_commit", "after_flush_postexec"])
async def test_statement_of_a_listener_to_the_commit_is_stored_too(storing: SourceBench, moment: str) -> None:
    """It may be the first thing that the session produces."""
    bench = storing
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer), config=KafkaConfig(create=False))
    async with bench.running(), bench.session() as session:
        left = ["late"]

        def insert_late(inner: Session, *more: Any) -> None:
            if left:
                inner.execute(sa.insert(model), [{"name": left.pop()}])

        event.listen(session.sync_session, moment, insert_late)
        session.add(model(name="not sent"))
        await session.commit()
        assert [payload for _, payload in await bench.stored("widgets", "name")] == [("late",)]


async def test_rows_that_listeners_add_late_are_stored_too(storing: SourceBench) -> None:
    bench = storing
    model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
    async with bench.running(), bench.session() as session:
        left = ["late", "later"]

        def add_late(inner: Session, context: Any) -> None:
            if left:
                inner.add(model(name=left.pop(0)))

        event.listen(session.sync_session, "after_flush_postexec", add_late)
        session.add(model(name="first"))
        await session.commit()
        assert [payload for _, payload in await bench.stored("widgets", "name")] == [("first",), ("late",), ("later",)]


async def test_post_process_may_use_the_commit_that_stores_its_messages(storing: SourceBench) -> None:
    bench = storing
    seen: list[Any] = []

    class Noting(ModelProducer[Any]):
        async def post_process(self, records: Sequence[Any]) -> None:
            seen.append(([record.name for record in records], await bench.stored()))

    model = bench.model(bench.app.producer(bench.widgets, Noting))
    async with bench.running(), bench.session() as session:
        session.add(model(id=1, name="a"))
        await session.commit()
        assert seen == [(["a"], [])]  # nobody else sees the row yet
        assert await bench.stored("widgets", "name") == [(1, ("a",))]


async def test_plain_session_stores_messages(unique_name: str, tmp_path: Path) -> None:
    async with storing_bench("sqlite", str, unique_name, tmp_path) as bench:
        model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'test.sqlite3'}")
        async with bench.running():
            await bench.prepare()
            with Session(engine) as session:
                session.add_all([model(name=f"w{number}") for number in range(1100)])
                session.commit()
                session.execute(sa.insert(model), [{"name": "last"}])
                session.rollback()
            assert len(await bench.stored()) == 1100
        engine.dispose()


class SilentRegistry(MemorySchemaRegistry):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()

    async def register(self, *args: Any, **options: Any) -> Any:
        await self.may_answer.wait()
        return await super().register(*args, **options)


async def test_plain_session_cannot_wait_for_anything(unique_name: str, tmp_path: Path) -> None:
    async with source_bench("sqlite", str, unique_name, tmp_path) as bench:
        registry = bench.app._registry = SilentRegistry()
        model = bench.model(bench.app.producer(bench.widgets, ModelProducer))
        engine = sa.create_engine(f"sqlite:///{tmp_path / 'test.sqlite3'}")
        async with bench.running():
            with Session(engine) as session:
                session.add(model(name="a"))
                with pytest.raises(NotRunningError, match="the schema registry must be asked first"):
                    session.commit()
                session.rollback()
            registry.may_answer.set()
            await bench.prepare()
            with Session(engine) as session:
                session.add(model(name="a"))
                with pytest.raises(LifecycleError, match="sends after the commit and needs an AsyncSession"):
                    session.commit()
        engine.dispose()
