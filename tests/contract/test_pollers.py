"""Pollers send rows that have changed, on PostgreSQL, MariaDB and SQLite: by their times, and by their states."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from poll_bench import PAST, STAMP, Flaky, PollBench, at, poll_bench
from source_bench import DATABASES, MARIADB, POSTGRESQL
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import joinedload, mapped_column, relationship

from deimos_async import ConfigurationError, DeliveryError, Key, Poller
from deimos_async.database.polling.store import SqlPollStore
from deimos_async.database.tables import deimos_poll_failures, deimos_poll_info
from deimos_async.errors import BrokerUnavailableError
from deimos_async.message import Delivery, TopicPartition

DEADLINE = 30.0


@pytest.fixture(params=DATABASES)
async def bench(request: pytest.FixtureRequest, unique_name: str, tmp_path: Path) -> AsyncIterator[PollBench]:
    """One database after the other; pages of three rows."""
    settings = {"pollers.batch_rows": 3}
    async with poll_bench(request.param, request.getfixturevalue, unique_name, tmp_path, settings) as found:
        yield found


# --- by time ---------------------------------------------------------------------------------------------------------


async def test_rows_are_sent_in_the_order_of_their_times_page_after_page(bench: PollBench) -> None:
    model = bench.polled()
    pages: list[list[int]] = []

    async def post_process(self: Any, records: Any) -> None:
        pages.append([record.id for record in records])

    bench.poller(bench.producer(model, post_process=post_process))
    async with bench.running():
        await bench.add(*(model(id=n, name=f"w{n}", updated_at=at(10 - n)) for n in range(1, 8)))
        await bench.poll()
        assert pages == [[7, 6, 5], [4, 3, 2], [1]]
        assert await bench.sent("widgets", "name") == [(n, (f"w{n}",)) for n in range(7, 0, -1)]
        await bench.poll(60)
        assert await bench.ids() == []


async def test_page_may_end_within_one_instant(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model))
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=PAST) for n in range(1, 8)))
        await bench.poll()
        assert await bench.ids() == [1, 2, 3, 4, 5, 6, 7]


async def test_changed_row_is_sent_again_and_others_are_not(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), run_every=10)
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=PAST) for n in range(1, 5)))
        await bench.poll()
        await bench.ids()
        await bench.change(model, 2, name="new")
        await bench.poll(9)
        assert await bench.ids() == []
        await bench.poll(4)
        assert await bench.sent("widgets", "name") == [(2, ("new",))]


async def test_row_within_the_delay_waits_for_a_later_run_and_is_not_lost(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), run_every=5, delay_time=30)
    async with bench.running():
        await bench.add(model(id=1, updated_at=PAST))
        await bench.change(model, 1)
        for _ in range(5):
            await bench.poll(5)
            assert await bench.ids() == []
        await bench.poll(8)
        assert await bench.ids() == [1]


async def test_cursor_stands_in_the_table_and_the_next_process_goes_on_from_it(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model))
    async with bench.running():
        await bench.add(model(id=1, updated_at=at(0.123457)))
        await bench.poll()
        info = deimos_poll_info.c
        ((producer, name, time, key, owner),) = await bench.execute(
            sa.select(info.producer, info.name, info.cursor_time, info.cursor_key, info.owner)
        )
        assert (producer, name, key, owner) == ("WidgetProducer", "widgets", '[["int", 1]]', None)
        assert time == "2026-01-01 00:00:00.123457"


async def test_poller_that_does_not_start_from_the_beginning_leaves_old_rows_out(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), start_from_beginning=False)
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=PAST) for n in (1, 2)))
        await bench.poll()
        await bench.change(model, 2)
        await bench.poll(120)
        assert await bench.ids() == [2]


async def test_full_table_is_sent_in_each_run(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), full_table=True, run_every=60)
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=at(n)) for n in range(1, 6)))
        await bench.poll()
        assert await bench.ids() == [1, 2, 3, 4, 5]
        await bench.poll(30)
        assert await bench.ids() == []
        await bench.execute(sa.update(model.__table__).where(model.id == 5).values(updated_at=at(0)))
        await bench.poll(31)
        assert await bench.ids() == [5, 1, 2, 3, 4]


async def test_each_producer_gets_every_row(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), bench.producer(model, bench.topic("copies")))
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=at(n)) for n in range(1, 5)))
        await bench.poll()
        assert await bench.ids() == [1, 2, 3, 4]
        assert await bench.ids("copies") == [1, 2, 3, 4]


async def test_row_that_fails_is_kept_and_tried_again_while_its_page_is_sent(bench: PollBench) -> None:
    model = bench.polled()
    tried: list[int] = []
    is_mended = False

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        if record.id == 5:
            tried.append(record.id)
            if not is_mended:
                raise RuntimeError("no")
        return attributes

    first = bench.producer(model, bench.topic("copies"))
    bench.poller(first, bench.producer(model, generate_payload=generate_payload), run_every=10, retries=0)
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=at(n)) for n in range(1, 8)))
        await bench.poll()
        assert await bench.ids() == [1, 2, 3, 4, 6, 7]
        assert await bench.ids("copies") == [1, 2, 3, 4, 5, 6, 7]
        failure = deimos_poll_failures.c
        wanted = sa.select(failure.record_key, failure.producers, failure.attempts, failure.error_class)
        assert await bench.execute(wanted) == [
            ('[["int", 5]]', '["WidgetProducer:widgets"]', 1, "builtins.RuntimeError")
        ]
        await bench.poll(61)
        assert [row[2] for row in await bench.execute(wanted)] == [2]
        is_mended = True
        await bench.poll(121)
        assert await bench.ids() == [5]
        assert await bench.ids("copies") == []
        assert await bench.execute(wanted) == []


async def test_keys_of_any_type_order_rows_of_one_instant(bench: PollBench) -> None:
    schema = {
        "type": "record",
        "name": "Item",
        "namespace": "com.acme",
        "fields": [{"name": name, "type": "string"} for name in ("id", "part")],
    }
    bench.add_schema(schema)
    topic = bench.topic("items", schema="com.acme.Item", key=Key.field("id"))
    body = {
        "id": mapped_column(sa.Uuid(), primary_key=True),
        "part": mapped_column(sa.String(20), primary_key=True),
        "updated_at": mapped_column(STAMP, nullable=False),
    }
    model = bench.model(base=(), body=body)
    bench.poller(bench.producer(model, topic))
    ids = [uuid.UUID(int=n * 7919 << 90 | n) for n in range(3)]
    async with bench.running():
        await bench.add(*(model(id=id, part=part, updated_at=PAST) for id in ids for part in ("a", "B", "ä'")))
        await bench.poll()
        sent = [(payload["id"], payload["part"]) for _, payload in await bench.sent("items")]
        assert sorted(sent) == sorted((str(id), part) for id in ids for part in ("a", "B", "ä'"))
        assert [id for id, _ in sent] == sorted(id for id, _ in sent)
        await bench.poll(61)
        assert await bench.sent("items") == []


async def test_rows_that_change_while_they_are_read_end_as_the_table_says(bench: PollBench) -> None:
    model = bench.polled()
    changed: list[int] = []

    async def post_process(self: Any, records: Any) -> None:
        if len(changed) < 4:
            changed.append(records[-1].id)
            await bench.change(model, records[-1].id, name="changed")
            await bench.change(model, 20, name=f"changed {len(changed)}")

    bench.poller(bench.producer(model, post_process=post_process), run_every=1)
    async with bench.running():
        await bench.add(*(model(id=n, name="old", updated_at=at(n // 4)) for n in range(1, 21)))
        await bench.poll(to_the_end=True)
        last = dict(await bench.sent("widgets", "name"))
        assert [(id, name) for id, (name,) in sorted(last.items())] == await bench.rows(model, "id", "name")
        assert last[20] == ("changed 4",)


async def test_many_rows_of_one_instant_are_all_sent(unique_name: str, tmp_path: Path, request: Any) -> None:
    async with poll_bench("sqlite", str, unique_name, tmp_path) as bench:
        model = bench.polled()
        bench.poller(bench.producer(model))
        async with bench.running():
            rows = [{"id": n, "updated_at": PAST} for n in range(1, 5001)]
            await bench.execute(sa.insert(model.__table__), rows)
            await bench.poll()
            assert await bench.ids() == list(range(1, 5001))


@pytest.mark.parametrize("bench", [POSTGRESQL, MARIADB], indirect=True)
async def test_row_that_is_committed_late_is_not_passed_over(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), delay_time=0, run_every=0.3)
    async with bench.running():
        async with bench.session() as late:
            late.add(model(id=1, updated_at=datetime.now(UTC).replace(tzinfo=None)))
            await late.flush()
            await bench.add(model(id=2, updated_at=datetime.now(UTC).replace(tzinfo=None)))
            await bench.poll()
            assert await bench.ids() == []
            await late.commit()
        sent: list[int] = []
        async with asyncio.timeout(DEADLINE):
            while len(sent) < 2:
                await bench.poll()
                sent += await bench.ids()
                # InnoDB's list of transactions stays as it is while it is looked at more often than ten times a second.
                await bench.a_while()
        assert sent == [1, 2]


async def test_writer_of_sqlite_that_is_not_done_is_waited_for(unique_name: str, tmp_path: Path) -> None:
    async with poll_bench("sqlite", str, unique_name, tmp_path) as bench:
        model = bench.polled()
        bench.poller(bench.producer(model), delay_time=0, run_every=0.3)
        async with bench.running():
            await bench.add(model(id=1, updated_at=PAST))
            async with bench.session() as late:
                late.add(model(id=2, updated_at=at(-1)))
                await late.flush()
                polling = asyncio.create_task(bench.poll())
                await asyncio.wait([polling], timeout=0.3)
                assert bench.records() == []
                await late.commit()
            await polling
            sent = await bench.ids()
            async with asyncio.timeout(DEADLINE):
                while len(sent) < 2:
                    await bench.poll()
                    sent += await bench.ids()
            assert sent == [2, 1]


@pytest.mark.parametrize("bench", [POSTGRESQL], indirect=True)
async def test_without_the_right_to_see_transactions_late_rows_are_read_again(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), delay_time=0, run_every=0.3)
    user = f"u{uuid.uuid4().hex[:12]}"
    async with bench.running():
        others = bench.engine
        limited = create_async_engine(bench.engine.url.set(username=user))
        await bench.execute(sa.text(f"CREATE ROLE {user} LOGIN"))
        await bench.execute(sa.text(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {user}"))
        await bench.execute(sa.text(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {user}"))
        try:
            assert bench.app._running is not None
            assert bench.app._running.database is not None
            store = SqlPollStore(limited, worker="w", ttl=5)
            await store.open()
            async with others.connect() as other:
                await other.execute(sa.text("SELECT 1"))
                assert not (await store.bounds()).is_certain
                bench.app._running.database.engine = limited
                now = datetime.now(UTC).replace(tzinfo=None)
                await bench.add(model(id=1, updated_at=now))
                async with bench.polling() as polling:
                    await polling.until_run()
                    assert await bench.ids() == [1]
                    await bench.add(model(id=2, updated_at=now - timedelta(seconds=5)))
                    await polling.until_run(1)
                    assert await bench.ids() == [2]
                    await polling.until_run(1)
                    assert await bench.ids() == []
            await store.close()
        finally:
            bench.app._running.database.engine = others
            await limited.dispose()
            await bench.execute(sa.text(f"DROP OWNED BY {user}"))
            await bench.execute(sa.text(f"DROP ROLE {user}"))


@pytest.mark.parametrize("bench", [POSTGRESQL, MARIADB], indirect=True)
async def test_digits_of_seconds_are_those_of_the_column(bench: PollBench) -> None:
    def stamp(digits: int) -> Any:
        made = sa.DateTime().with_variant(postgresql.TIMESTAMP(precision=digits), "postgresql")
        return mapped_column(made.with_variant(mysql.DATETIME(fsp=digits), "mysql", "mariadb"))

    model = bench.polled(a=stamp(6), b=stamp(0), c=stamp(3))
    bench.poller(bench.producer(model))
    async with bench.running():
        store = SqlPollStore(bench.engine, worker="w", ttl=5)
        await store.open()
        try:
            assert [await store.digits(None, model.__tablename__, name) for name in "abc"] == [6, 0, 3]
            assert await store.digits("nowhere", model.__tablename__, "a") == 0
        finally:
            await store.close()


async def test_cursor_in_the_future_goes_back(bench: PollBench, caplog: pytest.LogCaptureFixture) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model), run_every=1)
    async with bench.running():
        await bench.poll()
        future = datetime.now(UTC).replace(tzinfo=None) + timedelta(days=1)
        await bench.execute(sa.update(deimos_poll_info).values(cursor_time=str(future), cursor_key='[["int", 1]]'))
        await bench.add(model(id=1, updated_at=datetime.now(UTC).replace(tzinfo=None)))
        await bench.poll(5)
        assert await bench.ids() == [1]
        assert "is in the future of the database's clock" in caplog.text


async def test_poller_that_lost_its_lease_moves_no_cursor(bench: PollBench, caplog: pytest.LogCaptureFixture) -> None:
    model = bench.polled()

    async def post_process(self: Any, records: Any) -> None:
        if records[0].id == 4:
            await bench.execute(sa.update(deimos_poll_info).values(owner="other", epoch=99))

    bench.poller(bench.producer(model, post_process=post_process))
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=at(n)) for n in range(1, 10)))
        caplog.set_level(logging.WARNING, "deimos_async.polling")
        with pytest.raises(TimeoutError, match="not idle after 2 s"):
            await bench.poll(timeout=2.0)
        assert await bench.ids() == [1, 2, 3, 4, 5, 6]
        info = deimos_poll_info.c
        assert await bench.execute(sa.select(info.cursor_key, info.owner)) == [('[["int", 3]]', "other")]
        assert "poller widgets was taken by another worker" in caplog.text


async def test_cursor_of_a_deimos_is_gone_on_from(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(bench.producer(model))
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=at(5)) for n in range(1, 5)))
        await bench.execute(
            sa.insert(deimos_poll_info).values(producer="WidgetProducer", last_sent=at(5), last_sent_id=2)
        )
        await bench.poll()
        assert await bench.ids() == [3, 4]
        info = deimos_poll_info.c
        assert await bench.execute(sa.select(info.last_sent, info.last_sent_id).where(info.name.is_(None))) == [
            (at(5), 2)
        ]


async def test_query_narrows_and_loads_what_belongs_to_rows(bench: PollBench) -> None:
    table = f"{bench.name}parts"
    model = bench.polled()
    part = type(
        "Part",
        (bench.base,),
        {
            "__tablename__": table,
            "id": mapped_column(sa.Integer, primary_key=True),
            "widget_id": mapped_column(sa.ForeignKey(model.id)),
        },
    )
    model.parts = relationship(part, order_by=part.id)  # type: ignore[attr-defined]

    class Wanted(Poller):
        def poll_query(self, query: Any) -> Any:
            return query.where(model.name == "yes").options(joinedload(model.parts))

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> dict[str, Any]:
        return attributes | {"some_int": len(record.parts)}

    bench.poller(bench.producer(model, generate_payload=generate_payload), poller_class=Wanted)
    async with bench.running():
        rows = [model(id=n, name="no" if n % 3 == 0 else "yes", updated_at=at(n)) for n in range(1, 9)]
        for row in rows:
            row.parts = [part() for _ in range(row.id)]
        await bench.add(*rows)
        await bench.poll()
        assert await bench.sent("widgets", "some_int") == [(n, (n,)) for n in (1, 2, 4, 5, 7, 8)]


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.fixture
async def lite(unique_name: str, tmp_path: Path) -> AsyncIterator[PollBench]:
    """SQLite, for what has nothing to do with the database."""
    async with poll_bench("sqlite", str, unique_name, tmp_path, {"pollers.batch_rows": 4}) as found:
        yield found


async def test_broker_that_is_away_is_waited_for_and_nothing_is_lost(lite: PollBench) -> None:
    model = lite.polled()
    lite.poller(lite.producer(model), retries=0)
    async with lite.running():
        await lite.add(*(model(id=n, updated_at=at(n)) for n in range(1, 7)))
        away = BrokerUnavailableError("no broker answers")
        flaky = Flaky(lite, away, away, DeliveryError("no acknowledgement", unknown=True), away)
        await lite.poll(to_the_end=True)
        assert flaky.calls == [4, 4, 4, 4, 4, 2]
        assert await lite.ids() == [1, 2, 3, 4, 5, 6]


async def test_other_errors_are_tried_again_so_many_times(lite: PollBench) -> None:
    model = lite.polled()
    lite.poller(lite.producer(model), lite.producer(model, lite.topic("copies")), retries=2)
    async with lite.running():
        await lite.add(*(model(id=n, updated_at=at(n)) for n in range(1, 5)))
        flaky = Flaky(lite, RuntimeError("a"), RuntimeError("b"))
        await lite.poll(to_the_end=True)
        assert flaky.calls == [4, 4, 4, 4]
        assert await lite.ids() == [1, 2, 3, 4]
        assert await lite.ids("copies") == [1, 2, 3, 4]


def too_large(*indexes: int, of: int) -> DeliveryError:
    deliveries = [None if n in indexes else Delivery("widgets", 0, n) for n in range(of)]
    return DeliveryError("too large", indexes=indexes, deliveries=deliveries)


@pytest.mark.parametrize(("skips", "kept"), [(True, []), (False, ['[["int", 2]]'])])
async def test_row_that_is_too_large_is_left_out_alone(lite: PollBench, skips: bool, kept: list[str]) -> None:
    model = lite.polled()
    processed: list[int] = []

    async def post_process(self: Any, records: Any) -> None:
        processed.extend(record.id for record in records)

    lite.poller(lite.producer(model, post_process=post_process), skip_too_large_messages=skips)
    async with lite.running():
        errors: list[Any] = []
        lite.app.events.subscribe("deimos.error", errors.append)
        await lite.add(*(model(id=n, updated_at=at(n)) for n in range(1, 6)))
        flaky = Flaky(lite, too_large(1, of=4))
        await lite.poll()
        assert flaky.calls == [4, 1]
        assert processed == [1, 3, 4, 5]
        assert await lite.execute(sa.select(deimos_poll_failures.c.record_key)) == [(key,) for key in kept]
        assert [(event["type"], event["poller"], event["records"][0].id) for event in errors] == [
            ("poller", "widgets", 2)
        ]


async def test_too_large_row_is_found_where_not_every_row_makes_a_message(lite: PollBench) -> None:
    model = lite.polled()

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        return None if record.id == 1 else attributes

    lite.poller(lite.producer(model, generate_payload=generate_payload), retries=0)
    async with lite.running():
        await lite.add(*(model(id=n, updated_at=at(n)) for n in range(1, 5)))
        Flaky(lite, too_large(0, of=3), too_large(0, of=1), too_large(0, of=1))
        await lite.poll()
        assert await lite.ids() == [3, 4]
        assert await lite.execute(sa.select(deimos_poll_failures.c.record_key)) == [('[["int", 2]]',)]


async def test_hook_that_fails_after_it_has_loaded_something_costs_its_row_alone(lite: PollBench) -> None:
    model = lite.polled()
    part = type(
        "Part",
        (lite.base,),
        {
            "__tablename__": f"{lite.name}parts",
            "id": mapped_column(sa.Integer, primary_key=True),
            "widget_id": mapped_column(sa.ForeignKey(model.id)),
        },
    )
    model.parts = relationship(part)  # type: ignore[attr-defined]

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> dict[str, Any]:
        if record.parts:
            raise RuntimeError("no")
        return attributes

    lite.poller(lite.producer(model, generate_payload=generate_payload), retries=0)
    async with lite.running():
        rows = [model(id=n, updated_at=at(n)) for n in range(1, 7)]
        rows[2].parts = [part()]
        await lite.add(*rows)
        await lite.poll()
        assert await lite.ids() == [1, 2, 4, 5, 6]
        assert await lite.execute(sa.select(deimos_poll_failures.c.record_key)) == [('[["int", 3]]',)]


async def test_row_that_has_gone_is_not_tried_again(lite: PollBench) -> None:
    model = lite.polled()

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        raise RuntimeError("no")

    lite.poller(lite.producer(model, generate_payload=generate_payload), retries=0, run_every=10)
    async with lite.running():
        await lite.add(model(id=1, updated_at=PAST), model(id=2, updated_at=PAST))
        await lite.poll()
        await lite.execute(sa.delete(model.__table__).where(model.id == 1))
        await lite.poll(61)
        assert await lite.execute(sa.select(deimos_poll_failures.c.record_key)) == [('[["int", 2]]',)]


async def test_poller_goes_no_further_where_too_many_rows_fail(
    lite: PollBench, caplog: pytest.LogCaptureFixture
) -> None:
    model = lite.polled()
    is_mended = False

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        if not is_mended:
            raise RuntimeError("no")
        return attributes

    lite.poller(lite.producer(model, generate_payload=generate_payload), retries=0)
    with lite.app.with_settings({"pollers.max_failed_rows": 5}):
        async with lite.running():
            await lite.add(*(model(id=n, updated_at=at(n)) for n in range(1, 13)))
            await lite.poll()
            assert "more than 5 rows could not be sent (setting 'pollers.max_failed_rows')" in caplog.text
            assert len(await lite.execute(sa.select(deimos_poll_failures.c.id))) == 4
            is_mended = True
            await lite.poll(70)
            assert sorted(await lite.ids()) == list(range(1, 13))


async def test_query_that_fails_stops_no_other_poller(lite: PollBench) -> None:
    model = lite.polled()

    class Wrong(Poller):
        def poll_query(self, query: Any) -> Any:
            return query.where(sa.text("no_such_column = 1"))

    producer = lite.producer(model)
    lite.poller(producer, name="wrong", poller_class=Wrong)
    lite.poller(producer, name="right")
    async with lite.running():
        await lite.add(model(id=1, updated_at=PAST))
        await lite.poll()
        assert await lite.ids() == [1]


async def test_application_stops_at_once_while_the_broker_is_away(lite: PollBench) -> None:
    model = lite.polled()
    lite.poller(lite.producer(model))
    await lite.make_tables()
    await lite.add(model(id=1, updated_at=PAST))
    async with asyncio.timeout(DEADLINE), lite.app.running(only=("pollers",)):
        flaky = Flaky(lite, *[BrokerUnavailableError("no broker answers")] * 1000)
        await flaky.called.wait()
        (status,) = lite.app.health().pollers
        assert status.name == "widgets"
    info = deimos_poll_info.c
    assert await lite.execute(sa.select(info.owner, info.cursor_time, info.last_sent)) == [(None, None, None)]


async def test_missing_tables_are_told_at_start(unique_name: str, tmp_path: Path) -> None:
    async with poll_bench("sqlite", str, unique_name, tmp_path) as bench:
        model = bench.polled()
        bench.poller(bench.producer(model))
        await bench.make_tables()
        await bench.execute(sa.text("DROP TABLE deimos_poll_failures"))
        with pytest.raises(ConfigurationError, match="table 'deimos_poll_failures' is missing; run"):
            async with bench.app.running(only=("pollers",)):
                pass


async def test_what_a_buffering_producer_sends_is_awaited(lite: PollBench) -> None:
    model = lite.polled()
    lite.poller(lite.app.producer(lite.widgets, type(lite.producer(model)), backend="kafka_async"))
    async with lite.running():
        await lite.add(model(id=1, updated_at=PAST))
        await lite.poll()
        assert lite.app._running is not None
        broker = lite.app._running.brokers["default"]
        ends = await broker.end_offsets([TopicPartition("widgets", 0)])
        assert list(ends.values()) == [1]


# --- by state --------------------------------------------------------------------------------------------------------


async def test_rows_are_marked_when_they_were_sent(bench: PollBench) -> None:
    model = bench.polled()
    bench.poller(
        bench.producer(model),
        bench.producer(model, bench.topic("copies")),
        mode="state",
        state_column="state",
        published_state="published",
        failed_state="failed",
    )
    async with bench.running():
        states = {1: None, 2: "new", 3: "published", 4: "failed", 5: "new"}
        await bench.add(*(model(id=n, state=state, updated_at=at(n)) for n, state in states.items()))
        await bench.poll()
        assert await bench.ids() == [1, 2, 5]
        assert await bench.ids("copies") == [1, 2, 5]
        rows = await bench.rows(model, "id", "state", "updated_at")
        assert [state for _, state, _ in rows] == ["published", "published", "published", "failed", "published"]
        assert [time > at(10) for _, _, time in rows] == [True, True, False, False, True]
        await bench.poll(61)
        assert await bench.ids() == []


@pytest.mark.parametrize("locked", [False, True])
async def test_row_that_changes_between_reading_and_marking_is_sent_again(bench: PollBench, locked: bool) -> None:
    columns = {"lock_version": mapped_column(sa.Integer, nullable=False)} if locked else {}
    model = bench.polled(**columns)
    if locked:
        model.__mapper__.version_id_col = model.__table__.c.lock_version
    changed = False

    async def post_process(self: Any, records: Any) -> None:
        nonlocal changed
        if not changed and records[-1].id == 2:
            changed = True
            values = {"lock_version": 2} if locked else {}
            await bench.change(model, 2, name="new", **values)

    bench.poller(
        bench.producer(model, post_process=post_process),
        mode="state",
        state_column="state",
        published_state="published",
        run_every=1,
    )
    async with bench.running():
        extra = {"lock_version": 1} if locked else {}
        await bench.execute(
            sa.insert(model.__table__),
            [{"id": n, "name": "old", "updated_at": at(n), **extra} for n in (1, 2)],
        )
        await bench.poll()
        assert await bench.sent("widgets", "name") == [(1, ("old",)), (2, ("old",))]
        assert await bench.rows(model, "id", "state") == [(1, "published"), (2, None)]
        await bench.poll(to_the_end=True)
        assert await bench.sent("widgets", "name") == [(2, ("new",))]
        assert await bench.rows(model, "id", "state") == [(1, "published"), (2, "published")]


@pytest.mark.parametrize(("failed_state", "states"), [("failed", ["published", "failed"]), (None, ["published", None])])
async def test_row_that_fails_is_marked_or_stays_for_the_next_run(
    bench: PollBench, failed_state: str | None, states: list[str | None]
) -> None:
    model = bench.polled(sent_at=mapped_column(STAMP))
    tried: list[int] = []

    def generate_payload(self: Any, attributes: dict[str, Any], record: Any) -> Any:
        if record.id % 2 == 0:
            tried.append(record.id)
            raise RuntimeError("no")
        return attributes

    bench.poller(
        bench.producer(model, generate_payload=generate_payload),
        mode="state",
        retries=0,
        run_every=10,
        state_column="state",
        published_state="published",
        publish_timestamp_column="sent_at",
        failed_state=failed_state,
    )
    async with bench.running():
        await bench.add(*(model(id=n, updated_at=at(n)) for n in range(1, 9)))
        await bench.poll()
        assert await bench.ids() == [1, 3, 5, 7]
        rows = await bench.rows(model, "id", "state", "sent_at")
        assert [state for _, state, _ in rows] == states * 4
        assert [sent_at is not None for _, _, sent_at in rows] == [True, False] * 4
        before = len(tried)
        await bench.poll(11)
        assert (len(tried) > before) is (failed_state is None)
        assert await bench.ids() == []


async def test_own_query_says_what_is_pending(bench: PollBench) -> None:
    model = bench.polled()

    def poll_query(self: Any, query: Any) -> Any:
        return query.where(model.state == "ready")

    bench.poller(
        bench.producer(model, poll_query=poll_query), mode="state", state_column="state", published_state="done"
    )
    async with bench.running():
        states = {1: None, 2: "ready", 3: "done", 4: "ready"}
        await bench.add(*(model(id=n, state=state, updated_at=at(n)) for n, state in states.items()))
        await bench.poll()
        assert await bench.ids() == [2, 4]
        assert await bench.rows(model, "id", "state") == [(1, None), (2, "done"), (3, "done"), (4, "done")]
