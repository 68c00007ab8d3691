"""What changes of rows become: columns, keys, limits and payloads, without a database."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Enum, Integer, LargeBinary, String, Text, TypeDecorator, column, literal
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, deferred, mapped_column

from deimos_async.errors import EncodeError
from deimos_async.models.columns import Attributes, columns_of, is_expression, state_of
from deimos_async.models.payloads import (
    Change,
    PlainHooks,
    PrimaryKeyPayload,
    deletion_of,
    is_watched,
    messages_for,
)
from deimos_async.schemas.protocol import SchemaField
from deimos_async.topics import Key


class Base(DeclarativeBase):
    pass


class Shouted(TypeDecorator[str]):
    """Text of another kind."""

    impl = String(3)
    cache_ok = True


class Thing(Base):
    """With columns of every sort."""

    __tablename__ = "things"
    number: Mapped[int] = mapped_column("id", Integer, primary_key=True)
    part: Mapped[str] = mapped_column(String(5), primary_key=True)
    name: Mapped[str | None] = mapped_column(String(5))
    free: Mapped[str | None] = mapped_column(String)
    long: Mapped[str | None] = mapped_column(Text)
    colour: Mapped[str | None] = mapped_column(Enum("a", "bcdefgh"))
    shout: Mapped[str | None] = mapped_column(Shouted)
    picture: Mapped[bytes | None] = deferred(mapped_column(LargeBinary))
    both: Mapped[str] = column_property(column("name") + literal("!"))

    def deletion_payload(self) -> Any:
        return PrimaryKeyPayload(payload_key={"number": self.number, "part": self.part})


COLUMNS = columns_of(Thing.__mapper__)


def fields(*names: str, **types: Any) -> dict[str, SchemaField]:
    return {name: SchemaField(name, type_) for name, type_ in (dict.fromkeys(names, "string") | types).items()}


def update(record: Any, *changed: str) -> Change:
    state = state_of(record)
    assert state is not None
    return Change("update", COLUMNS.read(state), record, COLUMNS, frozenset(changed))


# --- columns ---------------------------------------------------------------------------------------------------------


def test_columns_are_attributes_of_tables_and_nothing_else() -> None:
    assert COLUMNS.names == ("number", "part", "name", "free", "long", "colour", "shout", "picture")
    assert COLUMNS.key == ("number", "part")
    assert COLUMNS.aliases == {"id": "number"}
    assert COLUMNS.every == {*COLUMNS.names, "id"}
    assert columns_of(Thing.__mapper__) is COLUMNS


def test_deferred_column_is_wanted_where_a_schema_names_it() -> None:
    assert COLUMNS.wanted(()) == COLUMNS.names[:-1]
    assert COLUMNS.wanted({"picture", "other"}) == COLUMNS.names


def test_values_are_read_as_far_as_they_are_loaded() -> None:
    record = Thing(number=1, name="a")
    state = state_of(record)
    assert state is not None
    assert COLUMNS.read(state) == {"number": 1, "id": 1, "name": "a"}


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"number": 1, "part": "a"}, (1, "a")),
        ({"part": "a", "id": 1, "more": 2}, (1, "a")),
        ({"number": 1, "part": None}, None),
        ({"number": 1}, None),
        ({}, None),
    ],
)
def test_primary_key_is_found_by_names_of_attributes_and_columns(values: Attributes, key: Any) -> None:
    assert COLUMNS.key_of(values) == key


def test_text_is_cut_where_its_column_has_a_length() -> None:
    long = dict.fromkeys(("name", "free", "long", "colour", "shout"), "abcdefgh") | {"number": 1, "picture": b"123456"}
    assert COLUMNS.cut(long) == long | {"name": "abcde", "shout": "abc", "id": 1}
    short = {"name": "abcde", "part": None}
    assert COLUMNS.cut(short) is short


def test_names_of_columns_stand_for_their_attributes() -> None:
    assert COLUMNS.names_of({"id"}) == COLUMNS.names_of({"number"}) == {"id", "number"}
    assert COLUMNS.names_of({"name"}) == {"name"}


def test_sql_is_told_from_values() -> None:
    assert is_expression(literal(1))
    assert is_expression(Thing.name)
    assert not is_expression("name")
    assert not is_expression(None)
    assert state_of("name") is None


# --- payloads --------------------------------------------------------------------------------------------------------


class Hooks(PlainHooks):
    """Returns what it is told."""

    def __init__(self, payload: Any = None, watched: Collection[str] = ()) -> None:
        super().__init__({}, Key.none())
        self.payload = payload
        self.watched = watched

    def generate_payload(self, attributes: Attributes, record: Any) -> Any:
        return self.payload

    def watched_attributes(self, record: Any) -> Collection[str]:
        return self.watched


@pytest.mark.parametrize(
    ("watched", "changed", "expected"),
    [
        ({"name"}, {"name", "free"}, True),
        ({"name"}, {"free"}, False),
        (["id"], {"id", "number"}, True),
        ({"name", "updated_at"}, {"updated_at"}, False),
        ((), {"name"}, False),
    ],
)
def test_update_counts_where_something_watched_has_changed(
    watched: Collection[str], changed: set[str], expected: bool
) -> None:
    assert is_watched(Hooks(watched=watched), update(Thing(), *changed)) is expected
    assert is_watched(Hooks(watched=watched), update(Thing())._replace(changed=None))


def test_without_hooks_fields_are_watched_or_all_columns() -> None:
    assert set(PlainHooks(fields("name", "other"), Key.none()).watched_attributes(Thing())) == {"name", "other"}
    assert set(PlainHooks({}, Key.none()).watched_attributes(Thing())) == COLUMNS.every
    assert set(PlainHooks({}, Key.none()).watched_attributes({"a": 1})) == {"a"}


def test_columns_that_the_schema_lacks_are_left_out_and_other_names_are_not() -> None:
    record = Thing(number=1, name="a")
    payload = {"name": "a", "id": 1, "number": 1, "unknown": 2, "payload_key": 3, "partition_key": 4}
    found = messages_for(Hooks(payload), fields("name"), [update(record)], truncate=False, topic="t")
    assert found == [{"payload": {"name": "a", "unknown": 2, "payload_key": 3, "partition_key": 4}}]
    found = messages_for(Hooks(payload), {}, [update(record)], truncate=False, topic="t")
    assert found == [{"payload": payload}]


def test_payload_that_is_no_mapping_or_a_tombstone_stays() -> None:
    change = update(Thing(number=1))
    for payload in (b"bytes", ["list"], {}, {"payload_key": 1}):
        found = messages_for(Hooks(payload), fields("name"), [change], truncate=False, topic="t")
        assert found == [{"payload": payload}]
    assert messages_for(Hooks(None), fields("name"), [change], truncate=False, topic="t") == []


def test_payload_without_any_field_is_an_error() -> None:
    with pytest.raises(EncodeError, match="topic 't': cannot encode: none of the columns is a field"):
        messages_for(Hooks({"free": 1, "payload_key": 2}), fields("name"), [update(Thing())], truncate=False, topic="t")


def test_naive_datetime_is_utc_unless_the_field_is_of_local_time() -> None:
    plain = datetime(2024, 1, 1)  # noqa: DTZ001  # what a column without a zone gives
    local: Any = ["null", {"type": "long", "logicalType": "local-timestamp-millis"}]
    schema = fields(name={"type": "long", "logicalType": "timestamp-millis"}, free=local)
    payload = {"name": plain, "free": plain, "new": plain, "aware": plain.replace(tzinfo=UTC)}
    (found,) = messages_for(Hooks(payload), schema, [update(Thing())], truncate=False, topic="t")
    aware = plain.replace(tzinfo=UTC)
    assert found["payload"] == {"name": aware, "free": plain, "new": aware, "aware": aware}


def test_hook_may_change_its_attributes_without_harm_to_the_next() -> None:
    class Greedy(Hooks):
        def generate_payload(self, attributes: Attributes, record: Any) -> Any:
            return {"name": attributes.pop("name")}

    change = update(Thing(number=1, name="a"))
    for _ in range(2):
        found = messages_for(Greedy(), fields("name"), [change, change], truncate=False, topic="t")
        assert found == [{"payload": {"name": "a"}}] * 2


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (Key.field("name"), "n"),
        (Key.field("id"), 1),
        (Key.field("elsewhere"), {"number": 1, "part": "p"}),
        (Key.schema("K"), {"number": 1, "part": "p"}),
        (Key.plain(), {"number": 1, "part": "p"}),
    ],
)
def test_deleted_row_has_the_key_of_its_topic(key: Any, expected: Any) -> None:
    assert deletion_of(Thing(number=1, part="p", name="n"), key) == {"payload_key": expected}


def test_deletion_payload_of_the_model_goes_before() -> None:
    class Own(Thing):
        def deletion_payload(self) -> Any:
            return {"payload_key": "own"}

    assert deletion_of(Own(number=1, part="p", name="n"), Key.field("name")) == {"payload_key": "own"}
