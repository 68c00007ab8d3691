"""A topic as a table does the same on PostgreSQL, MariaDB and SQLite: message mode, batch mode, values, failures."""

from __future__ import annotations

import asyncio
import enum
import pickle
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from model_place import MARIADB, POSTGRESQL, Place, message, opened
from sqlalchemy import exc
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, MappedAsDataclass, mapped_column

from deimos_async import (
    BatchWriteError,
    DatabaseError,
    DatabaseUnavailableError,
    DeadLetter,
    Deimos,
    Key,
    Message,
    ModelConsumer,
    OnError,
    Skip,
)
from deimos_async.events import Event
from deimos_async.testing import DeimosHarness
from deimos_async.topics import Backoff

DEADLINE = 30.0
"""Seconds after which a wait has failed."""

TODAY = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture(params=["sqlite", POSTGRESQL, MARIADB])
async def place(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[Place]:
    """One database after the other."""
    if request.param == "sqlite":
        url = f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite3'}"
    else:
        url = request.getfixturevalue("postgres_url" if request.param == "postgresql" else "mariadb_url")
    async with opened(url, unique_name) as place:
        yield place


async def in_two_parts(place: Place) -> Any:
    """A model whose rows are told apart by two columns, neither of them the primary key."""
    return await place.model(
        sa.UniqueConstraint("part_one", "part_two"),
        id=mapped_column(sa.Integer, primary_key=True),
        part_one=mapped_column(sa.String(5), nullable=False),
        part_two=mapped_column(sa.Integer, nullable=False),
        name=mapped_column(sa.String(20)),
    )


# --- batch mode: which messages --------------------------------------------------------------------------------------


async def test_batch_becomes_rows(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    save = place.consumer(Save)
    await save(message("2", {"name": "b", "some_int": 2}), message("1", {"name": "a", "some_int": 1}))
    await save(message("2", {"name": "B", "some_int": 3}), message("3", {"name": "c", "some_int": None}))
    assert await place.rows(widget, "id", "name", "some_int", "note") == [
        (1, "a", 1, "dflt"),
        (2, "B", 3, "dflt"),
        (3, "c", None, "dflt"),
    ]


async def test_only_the_last_message_of_a_key_is_written(place: Place) -> None:
    widget = await place.widgets()
    names: list[list[str]] = []

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            names.append([message.payload["name"] for message in messages])

    save = place.consumer(Save)
    await save(*(message(key, {"name": name}) for key, name in zip("12123", "aabba", strict=True)))
    assert names == [["b", "b", "a"]]
    assert await place.rows(widget, "id", "name") == [(1, "b"), (2, "b"), (3, "a")]
    await save(message("1"), message("2"), message("1", {"name": "c"}), message("2"), message("3"))
    assert await place.rows(widget, "id", "name") == [(1, "c")]


async def test_keys_of_several_fields_are_compared_by_their_values(place: Place) -> None:
    widget = await in_two_parts(place)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def key_columns(self) -> list[str]:
            return ["part_one", "part_two"]

    save = place.consumer(Save)
    keys = [{"part_one": "x", "part_two": 1}, {"part_two": 1, "part_one": "x"}, {"part_one": "x", "part_two": 2}]
    await save(*(message(key, {"name": name}) for key, name in zip(keys, "abc", strict=True)))
    assert sorted(await place.rows(widget, "part_two", "part_one", "name")) == [(1, "x", "b"), (2, "x", "c")]
    before = await place.rows(widget, "id", "part_two")
    await save(message(keys[0], {"name": "B"}), message(keys[2]), message({"part_one": "y", "part_two": 1}))
    assert await place.rows(widget, "part_two", "part_one", "name") == [(1, "x", "B")]
    assert set(await place.rows(widget, "id", "part_two")) <= set(before)


async def test_messages_without_a_key_are_all_kept(place: Place) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True), name=mapped_column(sa.String(20)), note=mapped_column(sa.Text)
    )
    groups: list[int] = []

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            groups.append(len(messages))

    class Each(Save):
        compacted = False

    for cls in (Save, Each):
        await place.consumer(cls)(
            message(1000, {"name": "keyed"}), *(message(None, {"name": name}) for name in "aab"), message(None)
        )
    assert groups == [4, 4]
    assert sorted(name for name, _ in await place.rows(widget, "name", "id")) == [*"aaaa", *"bb", "keyed"]


async def test_uncompacted_messages_take_effect_one_after_the_other(place: Place) -> None:
    widget = await place.widgets()
    slices: list[str] = []

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        compacted = False

        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            slices.append(" ".join(message.payload["name"] for message in messages))

    save = place.consumer(Save)
    await place.add(*(widget(id=number, name="old", created_at=TODAY, updated_at=TODAY) for number in (1, 2, 3)))
    await save(
        message(1, {"name": "a1"}), message(1),  # update, delete: gone
        message(2), message(2, {"name": "b1"}),  # delete, update: made anew
        message(3, {"name": "c1"}), message(3, {"name": "c2"}), message(3, {"name": "c3"}),
        message(4), message(4),
    )  # fmt: skip
    assert slices == ["a1 c1", "b1 c2", "c3"]
    found = await place.rows(widget, "id", "name", "created_at", "updated_at")
    assert [row[:2] for row in found] == [(2, "b1"), (3, "c3")]
    assert [aware(row[2]) > TODAY for row in found] == [True, False]
    assert [aware(row[3]) > TODAY for row in found] == [True, True]


@pytest.mark.parametrize("compact", [True, False])
async def test_different_keys_of_one_row_take_effect_in_their_order(place: Place, compact: bool) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        compacted = compact

    await place.consumer(Save)(
        message("01"), message("1", {"name": "a"}),  # delete, write
        message("02", {"name": "b"}), message("2"),  # write, delete
        message("3", {"name": "c1"}), message("03", {"name": "c2"}), message("003", {"name": "c3"}),
        message("4"), message("4", {"name": "d"}),
    )  # fmt: skip
    assert await place.rows(widget, "id", "name") == [(1, "a"), (3, "c3"), (4, "d")]


@pytest.mark.parametrize("compact", [True, False])
async def test_key_that_is_no_key_fails_alone_among_deletes(place: Place, compact: bool) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        compacted = compact

        def record_key(self, key: Any) -> Any:
            if key == "raises":
                raise ValueError(key)
            return {"id": key}

    with pytest.raises(BatchWriteError) as caught:
        await place.consumer(Save)(
            message("x"), message("raises"), message("raises", {"name": "a"}), message("1"), message(1, {"name": "a"})
        )
    failed = {failure.key for failure, _ in caught.value.failures}
    assert failed == {"x", "raises"}
    assert await place.rows(widget, "id", "name") == [(1, "a")]


@pytest.mark.parametrize("batch", [True, False])
async def test_zero_is_a_key_like_others_where_the_database_counts(place: Place, batch: bool) -> None:
    widget = await place.model(id=mapped_column(sa.Integer, primary_key=True), name=mapped_column(sa.String(20)))

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    save = place.consumer(Save, batch=batch)
    for given in (message(7, {"name": "seven"}), message(0, {"name": "a"}), message(0, {"name": "b"})):
        await save(given)
    assert await place.rows(widget, "id", "name") == [(0, "b"), (7, "seven")]
    await save(message(0))
    assert await place.rows(widget, "id") == [(7,)]


def aware(moment: datetime) -> datetime:
    """MariaDB and SQLite give times without a zone; what is stored is UTC."""
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@pytest.mark.parametrize(("limit", "sizes"), [(6, [5]), (5, [5]), (4, [4, 1]), (1, [1] * 5), (None, [5])])
async def test_groups_are_at_most_as_large_as_the_class_says(place: Place, limit: int | None, sizes: list[int]) -> None:
    widget = await place.widgets()
    found: list[int] = []
    removed: list[int] = []

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        max_db_batch_size = limit

        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            found.append(len(messages))

        def deleted_query(self, messages: Sequence[Message[Any]]) -> Any:
            removed.append(len(messages))
            return super().deleted_query(messages)

    save = place.consumer(Save)
    await save(*(message(number, {"name": "x"}) for number in range(5)))
    assert len(await place.rows(widget, "id")) == 5
    await save(*(message(number) for number in range(5)))
    assert (found, removed) == (sizes, sizes)
    assert await place.rows(widget, "id") == []


async def test_filtered_messages_do_not_hide_earlier_ones_of_their_key(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def process_message(self, message: Message[Any]) -> bool:
            return message.offset != 1

        def record_attributes(self, payload: Any, key: Any) -> Any:
            return None if payload["name"] == "none" else payload

        def should_consume(self, record: Any, message: Message[Any]) -> bool:
            assert record["id"] == int(message.key)
            assert record["updated_at"] is not None
            return bool(record["name"] != "no")

    await place.consumer(Save)(
        message("1", {"name": "kept"}, offset=0),
        message("1", {"name": "filtered"}, offset=1),
        message("2", {"name": "hidden"}),
        message("2", {"name": "none"}),
        message("3", {"name": "hidden"}),
        message("3", {"name": "no"}),
    )
    assert await place.rows(widget, "id", "name") == [(1, "kept")]


async def test_hooks_get_whole_messages(place: Place) -> None:
    widget = await place.widgets()
    seen: dict[str, Any] = {}

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def process_message(self, message: Message[Any]) -> bool:
            seen["process_message"] = message
            return True

        def should_consume(self, record: Any, message: Message[Any]) -> bool:
            seen["should_consume"] = message
            return True

        def delete_record(self, message: Message[Any]) -> bool:
            seen["delete_record"] = message
            return False

        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            (seen["pre_process"],) = messages
            messages[0].payload["some_int"] *= -1

        async def post_process_batch(self, messages: Sequence[Message[Any]], session: AsyncSession) -> None:
            (seen["post_process_batch"],) = messages
            seen["row"] = (await session.execute(sa.select(widget.id, widget.some_int))).one()

    given = message("7", {"some_int": 5}, offset=3)
    await place.consumer(Save)(given)
    assert seen.pop("row") == (7, -5)
    assert len(seen) == 5
    assert all(found is given for found in seen.values())
    assert await place.rows(widget, "id", "some_int") == [(7, -5)]


async def test_deletes_go_by_what_the_hook_says(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def delete_record(self, message: Message[Any]) -> bool:
            if message.key == 7:
                raise Skip("neither")
            return message.payload is not None and bool(message.payload["gone"])

    save = place.consumer(Save)
    await save(*(message(number, {"name": "x", "gone": False}) for number in (1, 2, 7)))
    await save(message(1, {"name": "y", "gone": True}), message(2), message(3))
    assert await place.rows(widget, "id", "name") == [(2, "x"), (3, None)]


async def test_rows_can_be_marked_instead_of_deleted(place: Place) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        name=mapped_column(sa.String(20)),
        deleted=mapped_column(sa.Boolean, nullable=False),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def record_attributes(self, payload: Any, key: Any) -> Any:
            return {**payload, "deleted": False}

        def deleted_query(self, messages: Sequence[Message[Any]]) -> Any:
            return (
                sa.update(widget).where(widget.id.in_([int(message.key) for message in messages])).values(deleted=True)
            )

    save = place.consumer(Save)
    await save(*(message(key, {"name": "x"}) for key in "123"))
    await save(message("1"), message("2"))
    await save(message("1"), message("2", {"name": "y"}))
    assert await place.rows(widget, "id", "name", "deleted") == [(1, "x", True), (2, "y", False), (3, "x", False)]


async def test_field_key_is_found_in_any_unique_column(place: Place) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True),
        sku=mapped_column(sa.String(20), unique=True, nullable=False),
        name=mapped_column(sa.String(20)),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def key_columns(self) -> list[str]:
            return ["sku"]

    save = place.consumer(Save, key=Key.field("sku"))
    await save(message("a", {"sku": "a", "name": "x"}), message("b", {"sku": "b", "name": "x"}))
    before = await place.rows(widget, "sku", "id")
    await save(message("a", {"sku": "a", "name": "y"}), message("b"))
    assert await place.rows(widget, "sku", "id", "name") == [(*before[0], "y")]


async def test_record_key_goes_before_the_payload_and_may_say_nothing(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def record_key(self, key: Any) -> Any:
            return None if key == "payload" else {"id": key["number"] * 10, "note": "key"}

    await place.consumer(Save)(
        message({"number": 1}, {"id": 1, "note": "payload"}), message("payload", {"id": 2, "note": "payload"})
    )
    assert await place.rows(widget, "id", "note") == [(2, "payload"), (10, "key")]


async def test_columns_that_the_payload_does_not_speak_of_are_left_alone(place: Place) -> None:
    widget = await place.widgets()
    await place.add(widget(id=1, name="old", note="custom", some_int=1), widget(id=2, name="old", note="custom"))

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    await place.consumer(Save)(message(1, {"name": "new", "unknown": 1}), message(2, {"note": None}), message(3, {}))
    assert await place.rows(widget, "id", "name", "note", "some_int") == [
        (1, "new", "custom", 1),
        (2, "old", None, None),
        (3, None, "dflt", None),
    ]


async def test_only_the_named_columns_of_stored_rows_are_overwritten(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def columns(self) -> list[str]:
            return ["name"]

    save = place.consumer(Save)
    await save(message(1, {"name": "a", "some_int": 1}))
    first = await place.rows(widget, "created_at", "updated_at")
    await save(message(1, {"name": "b", "some_int": 2}))
    assert await place.rows(widget, "name", "some_int") == [("b", 1)]
    second = await place.rows(widget, "created_at", "updated_at")
    assert second[0][0] == first[0][0]
    assert second[0][1] >= first[0][1]


async def test_attributes_may_be_called_otherwise_than_their_columns(place: Place) -> None:
    widget = await place.model(
        number=mapped_column("id", sa.Integer, primary_key=True, autoincrement=False),
        label=mapped_column("name", sa.String(20)),
        changed=mapped_column("updated_at", sa.DateTime),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    class One(Save):
        pass

    await place.consumer(Save)(
        message(1, {"number": 9, "label": "attribute"}), message(2, {"name": "column", "id": 9}), message(3, {})
    )
    await place.consumer(Save)(message(3))
    one = place.consumer(One, batch=False)
    await one(message(4, {"number": 4, "label": "attribute"}))
    await one(message(5, {"name": "column"}))
    await one(message(2))
    found = await place.rows(widget, "number", "label", "changed")
    assert [row[:2] for row in found] == [(1, "attribute"), (4, "attribute"), (5, "column")]
    assert None not in [row[2] for row in found]


async def test_class_of_a_shared_table_writes_its_own_name(place: Place) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        kind=mapped_column(sa.String(10)),
        name=mapped_column(sa.String(20)),
        __mapper_args__={"polymorphic_on": "kind", "polymorphic_identity": "plain"},
    )
    special = type("Special", (widget,), {"__mapper_args__": {"polymorphic_identity": "special"}})

    class Save(ModelConsumer[special]):  # type: ignore[valid-type]
        pass

    await place.consumer(Save)(message(1, {"name": "a"}))
    await place.consumer(Save, batch=False)(message(2, {"name": "b"}))
    assert await place.rows(widget, "id", "kind", "name") == [(1, "special", "a"), (2, "special", "b")]


# --- times of rows ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [True, False])
async def test_rows_get_times_of_their_own(place: Place, batch: bool) -> None:
    widget = await place.widgets()
    await place.add(widget(id=1, name="x", created_at=TODAY, updated_at=TODAY), widget(id=2, updated_at=TODAY))

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    save = place.consumer(Save, batch=batch)
    before = datetime.now(UTC) - timedelta(seconds=1)
    for number in (1, 2, 3):
        await save(message(number, {"name": "x", "created_at": TODAY, "updated_at": TODAY}))
    one, two, three = await place.rows(widget, "id", "created_at", "updated_at")
    assert aware(one[1]) == TODAY
    assert aware(one[2]) >= before
    assert aware(two[2]) >= before
    assert aware(three[1]) >= before
    assert aware(three[2]) >= before


@pytest.mark.parametrize("batch", [True, False])
async def test_rows_take_times_from_payloads_where_the_class_says_so(place: Place, batch: bool) -> None:
    widget = await place.widgets()
    await place.add(widget(id=1, created_at=TODAY, updated_at=TODAY), widget(id=2, created_at=TODAY, updated_at=TODAY))

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        timestamps_from_payload = True

    save = place.consumer(Save, batch=batch)
    before = datetime.now(UTC) - timedelta(seconds=1)
    earlier, later = TODAY - timedelta(days=3), TODAY + timedelta(days=3)
    given = [
        message(1, {"created_at": earlier, "updated_at": later}),
        message(2, {"name": "x", "created_at": None}),
        message(3, {"created_at": earlier, "updated_at": None}),
        message(4, {"updated_at": later}),
    ]
    if batch:
        await save(*given)
    else:
        for each in given:
            await save(each)
    one, two, three, four = await place.rows(widget, "id", "created_at", "updated_at")
    assert [aware(moment) for moment in one[1:]] == [earlier, later]
    assert aware(two[1]) == TODAY
    assert aware(two[2]) >= before
    assert aware(three[1]) == earlier
    assert aware(three[2]) >= before
    assert aware(four[1]) >= before
    assert aware(four[2]) == later


# --- message mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["5", 5, {"id": 5}, {"other_name": 5}])
async def test_message_creates_changes_and_deletes_its_row(place: Place, key: Any) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    save = place.consumer(Save, batch=False)
    await save(message(key))
    await save(message(key, {"name": "a", "some_int": "3", "unknown": 1}))
    assert await place.rows(widget, "id", "name", "some_int", "note") == [(5, "a", 3, "dflt")]
    await save(message(key, {"name": "b"}))
    assert await place.rows(widget, "id", "name", "some_int", "note") == [(5, "b", 3, "dflt")]
    await save(message(key))
    assert await place.rows(widget, "id") == []


@pytest.mark.services("mariadb")
@pytest.mark.parametrize("batch", [True, False])
async def test_connection_is_given_back_as_it_was_after_a_zero(mariadb_url: str, unique_name: str, batch: bool) -> None:
    async with opened(mariadb_url, unique_name, pool_size=1, max_overflow=0) as place:
        widget = await place.model(id=mapped_column(sa.Integer, primary_key=True), name=mapped_column(sa.String(3)))

        class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
            pass

        async def connection_and_mode() -> Any:
            async with place.engine.connect() as connection:
                return (await connection.exec_driver_sql("SELECT CONNECTION_ID(), @@SESSION.sql_mode")).one()

        before = await connection_and_mode()
        save = place.consumer(Save, batch=batch)
        with pytest.raises(BatchWriteError if batch else exc.DBAPIError):
            await save(message(0, {"name": "too long"}))
        assert await connection_and_mode() == before
        await save(message(0, {"name": "a"}))
        assert await connection_and_mode() == before
        assert await place.rows(widget, "id", "name") == [(0, "a")]


async def test_message_finds_its_row_by_other_columns(place: Place) -> None:
    widget = await in_two_parts(place)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def key_columns(self) -> list[str]:
            return ["part_one", "part_two"]

    save = place.consumer(Save, batch=False)
    key = {"part_one": "x", "part_two": 1}
    await save(message(key, {"name": "a"}))
    before = await place.rows(widget, "id")
    await save(message(key, {"name": "b"}))
    assert await place.rows(widget, "id", "part_one", "part_two", "name") == [(*before[0], "x", 1, "b")]
    await save(message(key))
    assert await place.rows(widget, "id") == []


async def test_hooks_of_message_mode_decide(place: Place) -> None:
    widget = await place.widgets()
    await place.add(widget(id=1, name="found by name"), widget(id=2, name="other"))

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        async def fetch_record(self, session: AsyncSession, payload: Any, key: Any) -> Any:
            return (await session.execute(sa.select(widget).where(widget.name == key))).scalar_one_or_none()

        def assign_key(self, record: Any, payload: Any, key: Any) -> None:
            record.id, record.name = payload.get("number"), key

        async def destroy_record(self, session: AsyncSession, record: Any) -> None:
            record.note = "destroyed"

        def process_message(self, message: Message[Any]) -> bool:
            return bool(message.key != "ignored")

        def should_consume(self, record: Any, message: Message[Any]) -> bool:
            return bool(record.get("some_int") != 13)

        def record_attributes(self, payload: Any, key: Any) -> Any:
            return None if payload.get("some_int") == 0 else {"some_int": payload["some_int"]}

    save = place.consumer(Save, batch=False)
    await save(message("found by name", {"some_int": 1}))
    await save(message("new", {"some_int": 3, "number": 3}))
    await save(message("ignored", {"some_int": 4, "number": 4}))
    await save(message("unlucky", {"some_int": 13, "number": 5}))
    await save(message("nothing", {"some_int": 0, "number": 6}))
    await save(message("other"))
    assert await place.rows(widget, "id", "name", "some_int", "note") == [
        (1, "found by name", 1, "dflt"),
        (2, "other", None, "destroyed"),
        (3, "new", 3, "dflt"),
    ]


async def test_message_may_set_what_is_no_column(place: Place) -> None:
    def set_label(self: Any, value: str) -> None:
        self.name = value.upper()

    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        name=mapped_column(sa.String(20)),
        label=property(lambda self: self.name, set_label),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def record_attributes(self, payload: Any, key: Any) -> Any:
            return payload

    save = place.consumer(Save, batch=False)
    await save(message(1, {"label": "a"}))
    assert await place.rows(widget, "id", "name") == [(1, "A")]
    with pytest.raises(ValueError, match="has no column 'nothing'"):
        await save(message(1, {"nothing": 1}))
    with pytest.raises(ValueError, match=r"column 'id' \(Integer\(\)\): a value of type str does not fit"):
        await save(message("x", {"label": "a"}))


async def test_dataclass_model_is_made_with_its_values(place: Place) -> None:
    class Row(MappedAsDataclass, place.base):  # type: ignore[name-defined, misc]
        __tablename__ = f"{place.name}_dataclass"
        id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
        name: Mapped[str] = mapped_column(sa.String(20))
        note: Mapped[str] = mapped_column(sa.String(20), default="dflt")

    async with place.engine.begin() as connection:
        await connection.run_sync(place.base.metadata.create_all)

    class Save(ModelConsumer[Row]):
        pass

    await place.consumer(Save, batch=False)(message(1, {"name": "a"}))
    assert await place.rows(Row, "id", "name", "note") == [(1, "a", "dflt")]


# --- values ----------------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"


ROME = timezone(timedelta(hours=2))
NOON = datetime(2024, 5, 6, 12, 0, 0, 250_000, tzinfo=UTC)
SOME_ID = uuid.UUID("12345678-1234-5678-1234-567812345678")

VALUES: dict[str, tuple[Any, Any, Any]] = {
    "aware to naive": (sa.DateTime(timezone=False), NOON, NOON.replace(tzinfo=None)),
    "zone to naive": (sa.DateTime(timezone=False), NOON.astimezone(ROME), NOON.replace(tzinfo=None)),
    "zone to aware": (sa.DateTime(timezone=True), NOON.astimezone(ROME), NOON),
    "naive to aware": (sa.DateTime(timezone=True), NOON.replace(tzinfo=None), NOON),
    "epoch seconds": (sa.DateTime(timezone=True), 1_714_996_800, NOON.replace(microsecond=0)),
    "text of epoch seconds": (sa.DateTime(), "1714996800", datetime(2024, 5, 6, 12)),  # noqa: DTZ001
    "ISO time": (sa.DateTime(timezone=True), "2024-05-06T14:00:00.25+02:00", NOON),
    "date to time": (sa.DateTime(), date(2024, 5, 6), datetime(2024, 5, 6)),  # noqa: DTZ001
    "date": (sa.Date(), date(2024, 5, 6), date(2024, 5, 6)),
    "time to date": (sa.Date(), datetime(2024, 5, 6, 1, tzinfo=ROME), date(2024, 5, 5)),
    "ISO date": (sa.Date(), "2024-05-06", date(2024, 5, 6)),
    "ISO time of day": (sa.Time(), "12:30:00", NOON.time().replace(minute=30, microsecond=0)),
    "JSON": (sa.JSON(), {"a": [1, {"b": NOON, "c": Decimal("1.10"), "d": SOME_ID, "e": None}]},
                 {"a": [1, {"b": NOON.isoformat(), "c": "1.10", "d": str(SOME_ID), "e": None}]}),
    "JSON list": (sa.JSON(), ["text", 1.5, True], ["text", 1.5, True]),
    "enum by name": (sa.Enum(Color), "GREEN", Color.GREEN),
    "enum by value": (sa.Enum(Color), "g", Color.GREEN),
    "enum member": (sa.Enum(Color), Color.RED, Color.RED),
    "enum of texts": (sa.Enum("a", "b", name="letters"), "b", "b"),
    "UUID of text": (sa.Uuid(), str(SOME_ID), SOME_ID),
    "text of UUID": (sa.Uuid(as_uuid=False), SOME_ID, str(SOME_ID)),
    "numeric of text": (sa.Numeric(10, 2), "12.30", Decimal("12.30")),
    "numeric of integer": (sa.Numeric(10, 2), 12, Decimal("12.00")),
    "numeric of float": (sa.Numeric(10, 2), 0.1, Decimal("0.10")),
    "float of text": (sa.Float(), "1.5", 1.5),
    "float of integer": (sa.Float(), 3, 3.0),
    "integer of text": (sa.Integer(), "17", 17),
    "integer of float": (sa.BigInteger(), 17.0, 17),
    "boolean of text": (sa.Boolean(), "false", False),
    "boolean of integer": (sa.Boolean(), 1, True),
    "text of integer": (sa.String(30), 17, "17"),
    "text of decimal": (sa.Text(), Decimal("1.50"), "1.50"),
    "text of boolean": (sa.String(30), True, "true"),
}  # fmt: skip
"""What it is: the column's type, the payload's value, what is read back."""


@pytest.mark.parametrize("batch", [True, False])
async def test_values_become_the_columns(place: Place, batch: bool) -> None:
    columns: dict[str, Any] = {}
    for number, (type_, _, _) in enumerate(VALUES.values()):
        if type(type_) is sa.DateTime:
            type_ = type_.with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")
        columns[f"value_{number}"] = mapped_column(type_)
    widget = await place.model(id=mapped_column(sa.Integer, primary_key=True, autoincrement=False), **columns)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    save = place.consumer(Save, batch=batch)
    given = [given for _, given, _ in VALUES.values()]
    await save(message(1, dict(zip(columns, given, strict=True))))
    await save(message(2, dict.fromkeys(columns)))
    found, nothing = await place.rows(widget, "id", *columns)
    assert set(nothing[1:]) == {None}
    wrong = {}
    for (what, (_, _, stored)), value in zip(VALUES.items(), found[1:], strict=True):
        if isinstance(stored, datetime) and stored.tzinfo is not None:
            value = aware(value)
        if value != stored or not isinstance(value, type(stored)):
            wrong[what] = value
    assert wrong == {}
    async with AsyncSession(place.engine) as session:
        nulls = [getattr(widget, name).is_(sa.null()) for name in columns]
        assert await session.scalar(sa.select(sa.func.count()).select_from(widget).where(*nulls)) == 1


async def test_bytes_become_a_binary_column_s(place: Place) -> None:
    # Batch mode only: aiomysql 0.3 cannot send bytes by the way that SQLAlchemy's unit of work takes.
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False), value=mapped_column(sa.LargeBinary)
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    await place.consumer(Save)(message(1, {"value": b"\x00\xff'"}), message(2, {"value": "text"}))
    assert await place.rows(widget, "id", "value") == [(1, b"\x00\xff'"), (2, b"text")]


async def test_arrays_are_written_with_items_of_their_type(postgres: Place) -> None:
    widget = await postgres.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        numbers=mapped_column(sa.ARRAY(sa.Integer)),
        times=mapped_column(postgresql.ARRAY(sa.DateTime)),
        grid=mapped_column(postgresql.ARRAY(sa.Integer, dimensions=2)),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    await postgres.consumer(Save)(
        message(1, {"numbers": ["1", 2, None], "times": [NOON], "grid": [["1", 2], [3, 4]]}),
        message(2, {"numbers": []}),
    )
    assert await postgres.rows(widget, "id", "numbers", "times", "grid") == [
        (1, [1, 2, None], [NOON.replace(tzinfo=None)], [[1, 2], [3, 4]]),
        (2, [], None, None),
    ]


@pytest.fixture
async def postgres(postgres_url: str, unique_name: str) -> AsyncIterator[Place]:
    async with opened(postgres_url, unique_name) as place:
        yield place


@pytest.mark.parametrize("batch", [True, False])
async def test_text_is_cut_where_the_class_says_so(place: Place, batch: bool) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        short=mapped_column(sa.String(5)),
        long=mapped_column(sa.Text),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        truncate_columns = True

    await place.consumer(Save, batch=batch)(message(1, {"short": "äöüßéabc", "long": "x" * 300}))
    assert await place.rows(widget, "id", "short", "long") == [(1, "äöüßé", "x" * 300)]


@pytest.mark.parametrize("batch", [True, False])
async def test_keys_are_never_cut_as_two_would_be_one_row(place: Place, batch: bool) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True),
        code=mapped_column(sa.String(5), unique=True, nullable=False),
        name=mapped_column(sa.String(5)),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        truncate_columns = True

        def key_columns(self) -> list[str]:
            return ["code"]

    save = place.consumer(Save, batch=batch)
    await save(message("abcde", {"name": "abcdefg"}))
    if place.kind == "sqlite":  # it does not mind the length
        await save(message("abcdef", {"name": "other"}))
        assert await place.rows(widget, "code", "name") == [("abcde", "abcde"), ("abcdef", "other")]
        return
    with pytest.raises(BatchWriteError if batch else exc.DBAPIError):
        await save(message("abcdef", {"name": "other"}))
    assert await place.rows(widget, "code", "name") == [("abcde", "abcde")]


@pytest.mark.parametrize(
    ("unit", "number"), [("milliseconds", 1_714_996_800_250), ("microseconds", 1_714_996_800_250_000)]
)
async def test_plain_numbers_are_times_by_the_class_s_unit(place: Place, unit: Any, number: int) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        at=mapped_column(sa.DateTime(timezone=True)),
    )
    seen = []

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        epoch_unit = unit

        def should_consume(self, record: Any, message: Message[Any]) -> bool:
            seen.append(record["at"])
            return False

    await place.consumer(Save)(message(1, {"at": number}))
    assert seen == [NOON]


# --- versions --------------------------------------------------------------------------------------------------------


async def test_older_versions_change_nothing_and_revive_nothing(place: Place) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        name=mapped_column(sa.String(20), nullable=False),
        version=mapped_column(sa.BigInteger),
        deleted_at=mapped_column(sa.DateTime),
        updated_at=mapped_column(sa.DateTime),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        compacted = False
        version_column = "version"
        deleted_column = "deleted_at"
        tombstone_values: ClassVar = {"name": ""}

        def record_version(self, message: Message[Any]) -> int:
            return message.offset

    save = place.consumer(Save)
    await save(message(1, {"name": "new"}, offset=5), message(2, {"name": "x"}, offset=5), message(3, offset=5))
    await save(message(1, {"name": "old"}, offset=4), message(2, offset=6), message(3, {"name": "old"}, offset=4))
    await save(message(2, {"name": "old"}, offset=5))
    found = await place.rows(widget, "id", "name", "version", "deleted_at", "updated_at")
    assert [(*row[:3], row[3] is None) for row in found] == [(1, "new", 5, True), (2, "", 6, False), (3, "", 5, False)]
    assert None not in [row[4] for row in found]
    await save(message(2, {"name": "again"}, offset=7), message(1, offset=3))
    found = await place.rows(widget, "id", "name", "deleted_at")
    assert [(*row[:2], row[2] is None) for row in found] == [(1, "new", True), (2, "again", True), (3, "", False)]


async def test_version_may_be_a_field_of_the_payload(place: Place) -> None:
    widget = await place.model(
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        name=mapped_column(sa.String(20)),
        updated_at=mapped_column(sa.DateTime(timezone=True)),
        gone=mapped_column(sa.Boolean, nullable=False, default=False),
    )

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        version_column = "updated_at"
        deleted_column = "gone"

        def delete_record(self, message: Message[Any]) -> bool:
            return message.payload is None or "name" not in message.payload

    save = place.consumer(Save)
    await save(message(1, {"name": "b", "updated_at": TODAY}), message(2, {"name": "b", "updated_at": TODAY}))
    earlier, later = TODAY - timedelta(days=1), TODAY + timedelta(days=1)
    await save(message(1, {"name": "a", "updated_at": earlier}), message(2, {"updated_at": later}))
    found = await place.rows(widget, "id", "name", "updated_at", "gone")
    assert [(*row[:2], aware(row[2]), row[3]) for row in found] == [(1, "b", TODAY, False), (2, None, later, True)]
    with pytest.raises(BatchWriteError, match="there is no version for column 'updated_at'; override record_version"):
        await save(message(1))


# --- failures --------------------------------------------------------------------------------------------------------


async def limited(place: Place) -> Any:
    """A model that refuses names which are longer than ten letters, and some_int that occurs twice."""
    return await place.model(
        sa.CheckConstraint("length(name) <= 10", name=f"{place.name}_length"),
        id=mapped_column(sa.Integer, primary_key=True, autoincrement=False),
        name=mapped_column(sa.String(20), nullable=False),
        some_int=mapped_column(sa.Integer, unique=True),
    )


LONG = "longer than ten"


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("bad", [{3}, {0, 1, 9}, {4, 5, 6}, set(range(10))])
async def test_good_rows_are_stored_and_bad_ones_are_told(place: Place, compact: bool, bad: set[int]) -> None:
    widget = await limited(place)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        compacted = compact

    told = place.told("deimos.batch_consumption.initial_failure", "deimos.batch_consumption.valid_records")
    consumed = place.told("deimos.ar_consumer.consume_batch")
    given = [message(str(n), {"name": LONG if n in bad else "fine"}, offset=n) for n in range(10)]
    with pytest.raises(BatchWriteError, match=f"^{len(bad)} of 10 messages could not be written: key ") as caught:
        await place.consumer(Save)(*given)
    assert {failed.offset for failed, _ in caught.value.failures} == bad
    assert all(isinstance(error, exc.DBAPIError) for _, error in caught.value.failures)
    for number in bad:
        assert f"key '{number}' at widgets[0]@{number}: " in str(caught.value)
    assert LONG not in str(caught.value)
    sent = pickle.loads(pickle.dumps(caught.value))
    assert str(sent) == str(caught.value)
    assert [failed.key for failed, _ in sent.failures] == [failed.key for failed, _ in caught.value.failures]
    assert [row[0] for row in await place.rows(widget, "id")] == [n for n in range(10) if n not in bad]
    failure = told[0]
    assert (failure["consumer"], failure["topic"], failure["operation"], failure["count"]) == (
        Save, "widgets", "upsert_records", 10,
    )  # fmt: skip
    assert isinstance(failure["error"], exc.DBAPIError)
    assert [len(event["records"]) for event in told[1:]] == ([10 - len(bad)] if len(bad) < 10 else [])
    assert consumed == []


async def test_bad_rows_of_every_kind_stand_alone(place: Place) -> None:
    widget = await limited(place)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def record_attributes(self, payload: Any, key: Any) -> Any:
            if payload.get("raises") is not None:
                raise payload["raises"]
            return {name: value for name, value in payload.items() if name != "raises"}

    given = {
        "check": {"name": LONG},
        "unique": {"name": "u", "some_int": 7},
        "null": {"name": None},
        "missing": {"some_int": 1},
        "type": {"name": "t", "some_int": "many"},
        "unknown": {"name": "u", "nothing": 1},
        "hook": {"name": "h", "raises": KeyError("name")},
        "dead": {"name": "d", "raises": DeadLetter("no")},
        "skipped": {"name": "s", "raises": Skip("on purpose")},
        "good": {"name": "g"},
    }
    await place.add(widget(id=100, name="first", some_int=7))
    numbers = {name: number for number, name in enumerate(given, 1)}
    with pytest.raises(BatchWriteError) as caught:
        await place.consumer(Save)(
            *(message(numbers[name], payload) for name, payload in given.items()),
            message({"a": 1, "b": 2}, {"name": "k"}),
        )
    failures = {failed.key if isinstance(failed.key, int) else 0: error for failed, error in caught.value.failures}
    assert failures.keys() == {0, *numbers.values()} - {numbers["skipped"], numbers["good"]}
    for name in ("check", "unique", "null", "missing"):
        assert isinstance(failures[numbers[name]], exc.DBAPIError), name
    assert str(failures[numbers["type"]]) == "column 'some_int' (Integer()): a value of type str does not fit"
    assert "has no column 'nothing'" in str(failures[numbers["unknown"]])
    assert "has a value for column 'id'; override record_key" in str(failures[0])
    assert "many" not in str(caught.value)
    assert await place.rows(widget, "id", "name") == [(numbers["good"], "g"), (100, "first")]


async def test_deletes_that_fail_stand_alone(place: Place) -> None:
    widget = await place.widgets()
    part = await place.model(
        table="_parts",
        id=mapped_column(sa.Integer, primary_key=True),
        widget_id=mapped_column(sa.ForeignKey(f"{place.name}.id")),
    )
    if place.kind == "sqlite":
        sa.event.listen(
            place.engine.sync_engine, "connect", lambda connection, record: connection.execute("PRAGMA foreign_keys=ON")
        )
        await place.engine.dispose()
    await place.add(*(widget(id=number) for number in (1, 2, 3)))
    await place.add(part(widget_id=2))

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    told = place.told("deimos.batch_consumption.initial_failure")
    with pytest.raises(BatchWriteError, match="1 of 3 messages could not be written: key '2'") as caught:
        await place.consumer(Save)(message("1"), message("2"), message("3"))
    assert [failed.key for failed, _ in caught.value.failures] == ["2"]
    assert [(event["operation"], event["count"]) for event in told] == [("remove_records", 3)]
    assert await place.rows(widget, "id") == [(2,)]


async def test_failure_does_not_stop_later_slices_and_groups(place: Place) -> None:
    widget = await limited(place)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        compacted = False
        max_db_batch_size = 2

    with pytest.raises(BatchWriteError) as caught:
        await place.consumer(Save)(
            message(1, {"name": LONG}), message(2, {"name": "b"}), message(3, {"name": "c"}), message(1, {"name": "a"})
        )
    assert [failed.payload for failed, _ in caught.value.failures] == [{"name": LONG}]
    assert await place.rows(widget, "id", "name") == [(1, "a"), (2, "b"), (3, "c")]


async def test_batch_without_fallback_is_written_as_a_whole_or_not_at_all(place: Place) -> None:
    widget = await limited(place)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        batch_message_fallback = False
        max_db_batch_size = 1

    told = place.told("deimos.batch_consumption.initial_failure", "deimos.batch_consumption.valid_records")
    with pytest.raises(exc.DBAPIError):
        await place.consumer(Save)(message(1, {"name": "a"}), message(2, {"name": LONG}))
    with pytest.raises(ValueError, match="does not fit"):
        await place.consumer(Save)(message(1, {"name": "a"}), message(2, {"name": "b", "some_int": "many"}))
    with pytest.raises(exc.DBAPIError):
        await place.consumer(Save)(message(2, {"name": LONG}))
    assert told == []
    assert await place.rows(widget, "id") == []


async def test_offsets_in_the_transaction_keep_a_batch_together(place: Place) -> None:
    widget = await limited(place)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    save = place.consumer(Save, delivery="effectively_once")
    with pytest.raises(exc.DBAPIError):
        await save(message(1, {"name": "a"}), message(2, {"name": LONG}))
    with pytest.raises(BatchWriteError, match=r"1 of 2 messages could not be written: key 2 at .*does not fit"):
        await save(message(1, {"name": "a"}), message(2, {"name": "b", "some_int": "many"}))
    assert await place.rows(widget, "id") == []
    with pytest.raises(BatchWriteError, match="1 of 1 messages could not be written: key 2 at "):
        await save(message(2, {"name": LONG}))
    await save(message(1, {"name": "a"}))
    assert await place.rows(widget, "id") == [(1,)]


async def test_table_that_is_missing_is_no_row_s_fault(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    async with place.engine.begin() as connection:
        await connection.run_sync(place.base.metadata.drop_all)
    told = place.told("deimos.batch_consumption.initial_failure")
    with pytest.raises(exc.DBAPIError):
        await place.consumer(Save)(*(message(number, {"name": "x"}) for number in range(10)))
    assert told == []


async def test_what_a_hook_decides_about_one_message_is_raised_as_it_is(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        def record_attributes(self, payload: Any, key: Any) -> Any:
            raise payload["raises"]

    save = place.consumer(Save)
    with pytest.raises(DeadLetter):
        await save(message(1, {"raises": DeadLetter("no")}))
    with pytest.raises(DatabaseUnavailableError):
        await save(message(1, {"raises": DatabaseUnavailableError("away")}), message(2, {"raises": KeyError()}))


@pytest.mark.parametrize("place", [POSTGRESQL, MARIADB], indirect=True)
@pytest.mark.parametrize("batch", [True, False])
async def test_transaction_that_lost_is_to_be_run_again(place: Place, batch: bool) -> None:
    widget = await place.widgets()
    await place.add(widget(id=1), widget(id=2))
    met = asyncio.Barrier(2)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        max_db_batch_size = 1

        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            if messages[0].offset == 1:
                await met.wait()

        async def fetch_record(self, session: AsyncSession, payload: Any, key: Any) -> Any:
            await session.execute(sa.update(widget).where(widget.id == key).values(note="x"))
            await met.wait()
            return await session.get(widget, 3 - key)

    told = place.told("deimos.batch_consumption.initial_failure")
    save = place.consumer(Save, batch=batch)
    ways = [(1, 2), (2, 1)]
    async with asyncio.timeout(DEADLINE):
        results = await asyncio.gather(
            *(
                save(message(first, {"name": "x"}), message(second, {"name": "x"}, offset=1))
                if batch
                else save(message(first, {"name": "x"}))
                for first, second in ways
            ),
            return_exceptions=True,
        )
    (error,) = [result for result in results if result is not None]
    assert isinstance(error, DatabaseError)
    assert error.retriable
    assert not isinstance(error, DatabaseUnavailableError)
    assert told == []


@pytest.mark.parametrize("place", [POSTGRESQL, MARIADB], indirect=True)
@pytest.mark.parametrize("batch", [True, False])
async def test_database_that_goes_away_is_no_message_s_fault(place: Place, batch: bool) -> None:
    widget = await place.widgets()
    in_use: list[Any] = []
    sa.event.listen(place.engine.sync_engine, "checkout", lambda dbapi, record, proxy: in_use.append(dbapi))

    async def cut() -> None:
        """End the connection that was taken last, as a server does that goes down."""
        driver = in_use[-1].driver_connection
        statement = (
            f"SELECT pg_terminate_backend({driver.get_server_pid()})"
            if place.kind == "postgresql"
            else f"KILL {driver.thread_id()}"
        )
        async with place.engine.connect() as connection:
            await connection.exec_driver_sql(statement)

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        max_db_batch_size = 1

        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            if messages[0].key == 2:
                await cut()

        async def fetch_record(self, session: AsyncSession, payload: Any, key: Any) -> Any:
            await cut()
            return await super().fetch_record(session, payload, key)

    told = place.told("deimos.batch_consumption.initial_failure")
    save = place.consumer(Save, batch=batch)
    with pytest.raises(DatabaseUnavailableError):
        await (save(*(message(number, {"name": "x"}) for number in (1, 2, 3))) if batch else save(message(1, {})))
    assert await place.rows(widget, "id") == []
    assert told == []


# --- events ----------------------------------------------------------------------------------------------------------


async def test_events_tell_what_was_written_and_what_was_refused(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        max_db_batch_size = 2

        def should_consume(self, record: Any, message: Message[Any]) -> bool:
            return bool(record["name"] != "no")

    told = place.told(
        "deimos.batch_consumption.valid_records",
        "deimos.batch_consumption.invalid_records",
        "deimos.ar_consumer.consume_batch",
    )
    await place.consumer(Save)(
        message(1, {"name": "a"}),
        message(2, {"name": "no"}),
        message(3, {"name": "no"}),
        message(4, {"name": "no"}),
        message(5, {"name": "e"}),
    )
    summary = [
        (event.name.rpartition(".")[2], [record["id"] for record in event.payload.get("records", ())]) for event in told
    ]
    assert summary == [
        ("invalid_records", [2]),
        ("invalid_records", [3, 4]),
        ("valid_records", [1]),
        ("valid_records", [5]),
        ("consume_batch", []),
    ]
    assert all(event["consumer"] is Save for event in told[:-1])
    assert told[-1]["topic"] == "widgets"
    assert told[-1].duration is not None


async def test_rows_stay_when_a_subscriber_fails(place: Place) -> None:
    widget = await place.widgets()

    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        pass

    def fail(event: Event) -> None:
        raise RuntimeError("subscriber")

    place.events.subscribe("deimos.batch_consumption.valid_records", fail)
    with pytest.raises(RuntimeError, match="subscriber"):
        await place.consumer(Save)(message(1, {"name": "a"}))
    assert await place.rows(widget, "id") == [(1,)]


# --- in an application -----------------------------------------------------------------------------------------------

SCHEMA = """{"type": "record", "name": "Widget", "namespace": "com.acme", "fields": [
    {"name": "name", "type": "string"},
    {"name": "some_int", "type": ["null", "int"], "default": null}
]}"""


@pytest.fixture
def schemas(tmp_path: Path) -> Path:
    folder = tmp_path / "schemas"
    (folder / "com" / "acme").mkdir(parents=True)
    (folder / "com" / "acme" / "Widget.avsc").write_text(SCHEMA)
    return folder


@pytest.mark.parametrize("batch", [True, False])
async def test_bad_messages_alone_become_dead_letters(place: Place, schemas: Path, batch: bool) -> None:
    widget = await limited(place)
    app = Deimos(
        {"schema.path": str(schemas), "consumers.reraise_errors": False},
        engine=place.engine,
        metrics=None,
        tracing=None,
    )
    widgets = app.topic(
        "widgets", schema="com.acme.Widget", key=Key.plain(), schema_backend="avro_local", partitions=1,
        on_error=OnError(attempts=2, backoff=Backoff(0.01, 0.01)),
    )  # fmt: skip
    to_widgets = app.producer(widgets)
    calls: list[int] = []

    @app.consumer(widgets, group="copy", batch=batch)
    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        async def pre_process(self, messages: Sequence[Message[Any]]) -> None:
            calls.append(len(messages))

    bad = {3, 4, 11}
    async with DeimosHarness.running(app, {"consumers.reraise_errors": False}) as deimos:
        await to_widgets.produce_many(
            [{"payload": {"name": LONG if n in bad else "fine"}, "key": str(n)} for n in range(16)]
        )
        await deimos.run_until_idle(timeout=DEADLINE)
        letters = deimos.sent_messages("widgets-dlt")
    assert [row[0] for row in await place.rows(widget, "id")] == [n for n in range(16) if n not in bad]
    assert {int(letter.key) for letter in letters} == bad
    assert len(letters) == len(bad)
    for letter in letters:
        headers = dict(letter.headers)
        error = " ".join(str(value) for name, value in headers.items() if name.startswith("deimos-dlq-"))
        if batch:
            assert "BatchWriteError" in error
            assert f"key '{letter.key}' at widgets[0]@" in error
            assert calls[0] == 16


async def test_batch_helper_and_engine_of_the_application(place: Place, schemas: Path) -> None:
    widget = await place.widgets()
    app = Deimos({"schema.path": str(schemas)}, engine=place.engine, metrics=None, tracing=None)
    widgets = app.topic("widgets", schema="com.acme.Widget", key=Key.plain(), schema_backend="avro_local")

    @app.consumer(widgets, group="copy", batch=True)
    class Save(ModelConsumer[widget]):  # type: ignore[valid-type]
        compacted = True

        def record_attributes(self, payload: Any, key: Any) -> dict[str, Any]:
            return {"name": payload["name"], "note": "noted"}

    told: list[Event] = []
    app.events.subscribe("deimos.ar_consumer.consume_batch", told.append)
    async with DeimosHarness.running(app) as deimos:
        await deimos.consume_batch(Save, [{"name": "a"}, {"name": "b"}, None], keys=["1", "2", "3"])
    assert await place.rows(widget, "id", "name", "note") == [(1, "a", "noted"), (2, "b", "noted")]
    assert len(told) == 1
