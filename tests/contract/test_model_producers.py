"""Model producers send rows that they are given, on PostgreSQL, MariaDB and SQLite: records, mappings, values."""

from __future__ import annotations

import enum
import types
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from source_bench import DATABASES, SourceBench, source_bench
from sqlalchemy import event
from sqlalchemy.orm import mapped_column

from deimos_async import (
    ConfigurationError,
    DatabaseError,
    Deimos,
    EncodeError,
    KafkaSource,
    Key,
    ModelProducer,
    NotRunningError,
    Router,
)


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


def of(model: Any, **members: Any) -> Any:
    """A producer class of a model."""
    return types.new_class("WidgetProducer", (ModelProducer[model],), exec_body=lambda body: body.update(members))


async def test_records_are_sent_in_order_without_columns_that_the_schema_lacks(bench: SourceBench) -> None:
    model = bench.model(base=())
    producer = bench.app.producer(bench.widgets, of(model))
    async with bench.running():
        records = [model(id=n, name="a", some_int="3", secret="s") for n in (2, 1)]
        await producer.send_events(records)
        assert await bench.sent() == [
            (n, {"id": n, "name": "a", "model_id": None, "some_int": 3, "state": None}) for n in (2, 1)
        ]
        await producer.send_event(model(id=3, name="b"))
        assert await bench.sent("widgets", "name") == [(3, ("b",))]


async def test_mapping_is_sent_with_its_record_at_hand(bench: SourceBench) -> None:
    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        return attributes | {"state": f"{record.name} was {record.state}"}

    model = bench.model(base=())
    producer = bench.app.producer(bench.widgets, of(model, generate_payload=generate_payload))
    async with bench.running():
        async with bench.session() as session:
            session.add_all([model(id=n, name=f"w{n}") for n in range(1, 1101)])
            await session.commit()
        selects = []

        def note(connection: Any, cursor: Any, text: str, parameters: Any, context: Any, many: bool) -> None:
            selects.append(text)

        event.listen(bench.engine.sync_engine, "before_cursor_execute", note)
        await producer.send_events([{"id": n, "name": "other"} for n in range(1100, 0, -1)])
        sent = await bench.sent("widgets", "name", "state")
        assert sent == [(n, ("other", f"w{n} was new")) for n in range(1100, 0, -1)]
        assert len([text for text in selects if text.startswith("SELECT")]) == 3


async def test_mapping_without_primary_key_or_refetch_is_its_own_record(bench: SourceBench) -> None:
    seen: list[Any] = []

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        seen.append(record)
        return {"id": 9, **attributes}

    model = bench.model(base=())
    first = bench.app.producer(bench.widgets, of(model, generate_payload=generate_payload))
    second = bench.app.producer(bench.widgets, of(model, generate_payload=generate_payload, refetch=False))
    third = bench.app.producer(bench.widgets, type("NoModel", (ModelProducer,), {"generate_payload": generate_payload}))
    async with bench.running():
        await first.send_event({"name": "a"})
        await second.send_event({"id": 7, "name": "b"})
        await third.send_event({"id": 8, "name": "c"})
        assert seen == [{"name": "a"}, {"id": 7, "name": "b"}, {"id": 8, "name": "c"}]
        assert await bench.sent("widgets", "name") == [(9, ("a",)), (7, ("b",)), (8, ("c",))]


async def test_rows_that_do_not_exist_are_named_and_nothing_is_sent(bench: SourceBench) -> None:
    model = bench.model(base=())
    producer = bench.app.producer(bench.widgets, of(model))
    async with bench.running():
        async with bench.session() as session:
            session.add(model(id=1))
            await session.commit()
        with pytest.raises(
            DatabaseError, match=r"WidgetProducer: there is no row of Widget with id 2, 3, 4, 5, 6 and 1"
        ):
            await producer.send_events([{"id": n} for n in range(1, 8)])
        assert await bench.sent() == []


async def test_records_are_fetched_in_the_transaction_that_surrounds(bench: SourceBench) -> None:
    model = bench.model(base=())
    producer = bench.app.producer(bench.widgets, of(model))
    async with bench.running():
        async with bench.app.transaction() as session:
            session.add(model(id=1, name="mine"))
            await session.flush()
            assert await producer.send_event({"id": 1, "name": "mine"}) is None
            assert not bench.records()
        assert await bench.sent("widgets", "name") == [(1, ("mine",))]
        async with bench.session() as session:
            session.add(model(id=2, name="own"))
            await session.flush()
            await producer.send_event({"id": 2, "name": "own"}, session=session)
            await session.rollback()
        assert await bench.sent() == []


async def test_expired_records_are_completed_by_one_query(bench: SourceBench) -> None:
    model = bench.model(base=())
    producer = bench.app.producer(bench.widgets, of(model))
    async with bench.running(), bench.session(expire_on_commit=True) as session:
        records = [model(id=n, name=f"w{n}") for n in range(1, 6)]
        session.add_all(records)
        await session.commit()
        selects = []

        def note(connection: Any, cursor: Any, text: str, parameters: Any, context: Any, many: bool) -> None:
            selects.append(text)

        event.listen(bench.engine.sync_engine, "before_cursor_execute", note)
        await producer.send_events(records)
        assert await bench.sent("widgets", "name", "state") == [(n, (f"w{n}", "new")) for n in range(1, 6)]
        assert len(selects) == 1


async def test_none_skips_a_record_and_post_process_gets_all(lite: SourceBench) -> None:
    seen: list[Any] = []

    async def post_process(self: Any, records: Sequence[Any]) -> None:
        seen.append((len(lite.records()), list(records)))

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        return None if record.name == "skipped" else attributes

    model = lite.model(base=())
    producer = lite.app.producer(lite.widgets, of(model, generate_payload=generate_payload, post_process=post_process))
    async with lite.running():
        records = [model(id=1, name="a"), model(id=2, name="skipped")]
        await producer.send_events(records)
        assert seen == [(1, records)]
        assert await lite.sent("widgets", "name") == [(1, ("a",))]
        await producer.send_events([])
        assert seen[1:] == [(0, [])]
        with lite.app.disable_producers(producer):
            assert await producer.send_events(records) is None
        with pytest.raises(EncodeError):
            await producer.send_event(model(id="x", name="a"))
        assert len(seen) == 2


async def test_hook_without_payload_of_columns_is_no_tombstone(lite: SourceBench) -> None:
    body = {"number": mapped_column(sa.Integer, primary_key=True), "in_common": mapped_column(sa.Integer)}
    model = lite.model(base=(), body=body)
    producer = lite.app.producer(lite.topic("plainly", key=Key.plain()), of(model))
    async with lite.running():
        with pytest.raises(EncodeError, match="none of the columns is a field of the schema"):
            await producer.send_event(model(number=1, in_common=2))
        with pytest.raises(EncodeError, match="none of the columns"):
            await producer.send_event({"in_common": 2, "payload_key": 1})


async def test_unknown_fields_of_hooks_are_errors_where_they_are_to_be_but_columns_are_not(lite: SourceBench) -> None:
    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        return attributes | ({"misspelt": 1} if record.name == "b" else {})

    model = lite.model(base=())
    topic = lite.topic("strict", unknown_fields="error")
    producer = lite.app.producer(topic, of(model, generate_payload=generate_payload))
    async with lite.running():
        await producer.send_event(model(id=1, name="a", secret="s"))
        with pytest.raises(EncodeError, match="misspelt"):
            await producer.send_event(model(id=1, name="b"))


class Colour(enum.Enum):
    RED = "red"


async def test_values_of_every_type_fit_their_fields(bench: SourceBench) -> None:
    nullable = {
        "text": "string",
        "price": {"type": "bytes", "logicalType": "decimal", "precision": 10, "scale": 2},
        "price_text": "string",
        "token": {"type": "string", "logicalType": "uuid"},
        "colour": {"type": "enum", "name": "Colour", "symbols": ["RED", "red"]},
        "day": {"type": "int", "logicalType": "date"},
        "zoned": {"type": "long", "logicalType": "timestamp-micros"},
        "naive": {"type": "long", "logicalType": "timestamp-millis"},
        "local": {"type": "long", "logicalType": "local-timestamp-millis"},
        "tags": {"type": "map", "values": "int"},
        "raw": "bytes",
        "flag": "boolean",
        "ratio": "double",
    }
    fields = [{"name": "id", "type": "int"}] + [
        {"name": name, "type": ["null", type_], "default": None} for name, type_ in nullable.items()
    ]
    bench.add_schema({"type": "record", "name": "Every", "namespace": "com.acme", "fields": fields})
    body = {
        "id": mapped_column(sa.Integer, primary_key=True),
        "text": mapped_column(sa.Text),
        "price": mapped_column(sa.Numeric(10, 2)),
        "price_text": mapped_column(sa.Numeric(10, 2)),
        "token": mapped_column(sa.Uuid),
        "colour": mapped_column(sa.Enum(Colour, name=f"{bench.name}_colour")),
        "day": mapped_column(sa.Date),
        "zoned": mapped_column(sa.DateTime(timezone=True)),
        "naive": mapped_column(sa.DateTime),
        "local": mapped_column(sa.DateTime),
        "tags": mapped_column(sa.JSON),
        "raw": mapped_column(sa.LargeBinary),
        "flag": mapped_column(sa.Boolean),
        "ratio": mapped_column(sa.Double),
    }
    model = bench.model(body=body)
    producer = bench.app.producer(bench.topic("every", schema="com.acme.Every"), of(model))
    model.kafka_producers = classmethod(lambda cls: [producer])
    token, moment = uuid.UUID(int=5), datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)
    plain = moment.replace(tzinfo=None)
    values = {
        "text": "ä", "price": Decimal("1.50"), "price_text": Decimal("2.50"), "token": token, "colour": Colour.RED,
        "day": date(2024, 5, 6), "zoned": moment, "naive": plain, "local": plain, "tags": {"a": 1}, "raw": b"\0\xff",
        "flag": True, "ratio": 0.5,
    }  # fmt: skip
    async with bench.running(), bench.session(expire_on_commit=True) as session:
        record = model(id=1, **values)
        session.add(record)
        await session.commit()
        await producer.send_event(record)
        await session.execute(sa.insert(model), [{"id": 2, **values}])
        session.add(model(id=3))
        await session.commit()
        sent = [payload for _, payload in await bench.sent("every")]
    wanted = values | {"price_text": "2.50", "colour": sent[0]["colour"], "naive": moment}
    assert sent[0]["colour"] in ("RED", "red")
    assert sent == [
        {"id": 1, **wanted}, {"id": 1, **wanted}, {"id": 2, **wanted}, {"id": 3, **dict.fromkeys(values)}
    ]  # fmt: skip


async def test_watched_attributes_are_the_fields_by_default(lite: SourceBench) -> None:
    model = lite.model(base=())
    producer = lite.app.producer(lite.widgets, of(model))
    async with lite.running():
        assert set(producer.watched_attributes(model())) == {"id", "name", "model_id", "some_int", "state"}
        query = sa.select(model)
        assert producer.poll_query(query) is query


async def test_subclass_has_the_model_of_its_base(lite: SourceBench) -> None:
    model = lite.model(base=())
    base = of(model)
    producer = lite.app.producer(lite.widgets, type("Derived", (base,), {}))
    async with lite.running():
        with pytest.raises(DatabaseError, match="Derived: there is no row of Widget with id 4"):
            await producer.send_event({"id": 4})


async def test_producer_of_a_router_sends_once_it_is_included(lite: SourceBench) -> None:
    router = Router()
    topic = router.topic("routed", schema="com.acme.Widget", key=Key.field("id"))
    model = lite.model(base=())
    producer = router.producer(topic, of(model))
    with pytest.raises(ConfigurationError, match="include its router"):
        await producer.send_event(model(id=1))
    lite.app.include(router)
    with pytest.raises(NotRunningError):
        await producer.send_event(model(id=1))
    async with lite.running():
        await producer.send_event(model(id=1, name="a"))
        assert await lite.sent("routed", "name") == [(1, ("a",))]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("text", "send_events takes a list of records"),
        ({"id": 1}, "send_events takes a list of records"),
        ([1], "record 0: an object of a mapped class, or a mapping, not int"),
        ([{"id": 1}, object()], "record 1: an object of a mapped class, or a mapping, not object"),
    ],
)
async def test_what_is_no_list_of_records_is_a_type_error(lite: SourceBench, given: Any, problem: str) -> None:
    model = lite.model(base=())
    producer = lite.app.producer(lite.widgets, of(model, refetch=False))
    async with lite.running():
        with pytest.raises(TypeError, match=problem):
            await producer.send_events(given)
        with pytest.raises(TypeError, match="send_events takes a list"):
            await producer.send_events(model(id=1))


async def test_mistakes_in_the_class_are_seen_at_start(lite: SourceBench) -> None:
    async def generate_payload(self: Any, attributes: Any, record: Any) -> Any: ...

    def watched_attributes(self: Any) -> Any: ...

    def post_process(self: Any, records: Any) -> Any: ...

    members = {
        "generate_payload": generate_payload,
        "watched_attributes": watched_attributes,
        "post_process": post_process,
        "refetch": "yes",
    }
    lite.app.producer(
        lite.widgets, types.new_class("Wrong", (ModelProducer[int],), exec_body=lambda body: body.update(members))
    )
    with pytest.raises(ConfigurationError) as caught:
        async with lite.app.running():
            pytest.fail("it must not start")
    problems = "\n".join(caught.value.problems)
    for part in (
        "producer Wrong: int is no class that SQLAlchemy maps",
        "producer Wrong: refetch='yes' is not possible",
        "producer Wrong: generate_payload must be a plain method",
        "producer Wrong: watched_attributes is called with other arguments than it takes; "
        "write it as watched_attributes(self, record)",
        "producer Wrong: post_process must be async def",
    ):
        assert part in problems


async def test_records_cannot_be_fetched_without_a_database(tmp_path: Path, lite: SourceBench) -> None:
    app = Deimos(
        {"producers.backend": "outbox", "schema.backend": "avro_validation", "schema.path": str(lite.folder)},
        metrics=None,
        tracing=None,
    )
    producer = app.producer(
        app.topic("widgets", schema="com.acme.Widget", key=Key.field("id")), of(lite.model(base=()))
    )
    with pytest.raises(ConfigurationError, match="database"):
        async with app.running(only=("producers",)):
            await producer.send_event({"id": 1})


async def test_embedded_run_makes_the_tables_of_models_that_producers_and_sources_name(lite: SourceBench) -> None:
    app = Deimos(
        {"embedded": True, "producers.backend": "test", "schema.path": str(lite.folder)}, metrics=None, tracing=None
    )
    topic = app.topic("widgets", schema="com.acme.Widget", key=Key.field("id"))
    named = lite.model(base=())
    app.producer(topic, of(named))
    plain = app.producer(topic)
    lite.base = type("Other", (lite.base.__base__,), {"metadata": sa.MetaData()})
    source = lite.model(plain, table="_source", base=(KafkaSource,))
    async with app.running(only=("producers",)), app.transaction() as session:
        assert (await session.scalars(sa.select(named))).all() == []
        session.add(source(name="a"))
