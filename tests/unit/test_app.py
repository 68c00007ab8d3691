"""The application: declarations, lifecycle, settings, producing, sessions."""

from __future__ import annotations

import asyncio
import functools
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from deimos_async import (
    Backoff,
    ConfigurationError,
    Consumer,
    DeadLetter,
    Deimos,
    DeliveryError,
    Depends,
    EncodeError,
    HandlerError,
    Key,
    LifecycleError,
    Message,
    NotRunningError,
    OnError,
    Producer,
    Router,
)
from deimos_async.telemetry.none import NoTelemetry

App = Callable[..., Deimos]


# --- declarations ----------------------------------------------------------------------------------------------


def test_topic_declared_twice_with_equal_options_is_the_same_and_with_others_an_error(app: Deimos) -> None:
    first = app.topic("orders", key=Key.plain())
    assert app.topic("orders", key=Key.plain()) is first
    with pytest.raises(ConfigurationError, match="'orders' is declared twice"):
        app.topic("orders", key=Key.none())


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a b", "ü", "x" * 250, None])
def test_topic_name_that_kafka_refuses_is_refused(app: Deimos, name: Any) -> None:
    with pytest.raises(ConfigurationError, match="a name has 1 to 249"):
        app.topic(name)


def test_unknown_option_names_the_close_one(app: Deimos) -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'namespace'"):
        app.topic("orders", namespase="x")  # type: ignore[call-arg]


async def test_every_mistake_is_reported_at_start_in_one_error(make_app: App) -> None:
    app = make_app()
    orders = app.topic("orders")
    other = app.topic("other", cluster="east")
    app.topic("third", schema_backend="avro_locl")
    app.producer(orders)

    @app.consumer(orders)
    async def no_group(message: Message) -> None: ...

    @app.consumer(orders, group="g")
    async def wrong(message: Message, what: int) -> None: ...

    @app.consumer(orders, group="g")
    async def twice(message: Message) -> None: ...

    @app.consumer(other, group="g", batch=True)
    class Missing(Consumer):
        async def consume_message(self, message: Message) -> None: ...

    @app.consumer("nowhere", group="g")
    async def lost(message: Message) -> None: ...

    with pytest.raises(ConfigurationError) as caught:
        async with app.running():
            pytest.fail("it must not start")
    problems = "\n".join(caught.value.problems)
    for part in (
        "topic 'orders' is produced to but has no key=",
        "cluster 'east' is not in the settings",
        "avro_locl",
        "consumer 'no_group' has no group",
        "'what' cannot be filled",
        "consumers 'wrong' and 'twice' are both of group 'g' on topic 'orders'",
        "consumer 'Missing' needs the method consume_batch",
        "topic 'nowhere' is not declared",
    ):
        assert part in problems


async def test_retry_topics_of_a_consumer_that_commits_ahead_are_refused(make_app: App) -> None:
    app = make_app()
    orders = app.topic("orders", key=Key.plain(), on_error=OnError(retry_topics=(5.0,)))

    @app.consumer(orders, group="general", delivery="at_most_once")  # the topic's policy is cut down to one try
    async def by_the_topic(message: Message) -> None: ...

    async with app.running():
        pass

    @app.consumer(orders, group="own", delivery="at_most_once", on_error=OnError(retry_topics=(5.0,)))
    async def on_its_own(message: Message) -> None: ...

    with pytest.raises(ConfigurationError, match=r"'on_its_own'.*at_most_once.*leave retry_topics out"):
        async with app.running():
            pytest.fail("it must not start")


async def test_router_belongs_to_one_application_and_takes_its_defaults(make_app: App) -> None:
    app, other = make_app(), make_app()
    router = Router()
    topic = router.topic("orders")
    producer = router.producer(topic)
    with pytest.raises(ConfigurationError, match="include its router"):
        await producer.produce(b"x")
    app.defaults(key=Key.plain(), topic_config={"a": "1"})
    app.defaults(topic_config={"b": "2"})
    app.include(router)
    assert app._options["orders"].key == Key.plain()
    assert app._options["orders"].topic_config == {"a": "1", "b": "2"}
    with pytest.raises(ConfigurationError, match="included in this application already"):
        app.include(router)
    with pytest.raises(ConfigurationError, match="included in another application"):
        other.include(router)
    with pytest.raises(ConfigurationError, match="after its router was included"):
        router.topic("late")
    async with app.running():
        delivery = await producer.produce(b"x", key="k")
        assert delivery is not None
        assert delivery.topic == "orders"


def test_defaults_hold_for_the_topics_that_follow(app: Deimos) -> None:
    app.topic("before")
    app.defaults(key=Key.none())
    app.topic("after")
    app.topic("own", key=Key.plain())
    assert not app._options["before"].key
    assert (app._options["after"].key, app._options["own"].key) == (Key.none(), Key.plain())


def test_decorated_function_stays_a_plain_function(app: Deimos, orders: Any) -> None:
    async def handle(message: Message) -> None: ...

    assert app.consumer(orders, group="g")(handle) is handle


# --- settings and lifecycle ------------------------------------------------------------------------------------


def test_with_settings_restores_also_after_an_exception(app: Deimos) -> None:
    before = app.settings
    with (
        pytest.raises(ZeroDivisionError),
        app.with_settings({"producers.topic_prefix": "x.", "kafka": {"client_id": "y"}}),
    ):
        assert app.settings.producers.topic_prefix == "x."
        assert app.settings.kafka.client_id == "y"
        assert app.settings.embedded
        raise ZeroDivisionError
    assert app.settings is before


async def test_running_application_refuses_changes(app: Deimos, orders: Any) -> None:
    async with app.running():
        with pytest.raises(LifecycleError), app.with_settings({"producers.topic_prefix": "x."}):
            pytest.fail("it must not be entered")
        with pytest.raises(LifecycleError):
            app.topic("late")
        with pytest.raises(LifecycleError, match="runs already"):
            async with app.running():
                pytest.fail("it must not start twice")


def test_application_can_be_started_again_in_another_event_loop(app: Deimos, orders: Any) -> None:
    producer = app.producer(orders)
    seen: list[Any] = []

    async def once() -> None:
        got = asyncio.Event()
        app.events.clear()

        async with app.running():
            seen.append(await producer.produce(b"x", key="k"))
            got.set()

    asyncio.run(once())
    asyncio.run(once())
    assert [delivery.offset for delivery in seen] == [0, 0]  # embedded: a fresh broker for each run


async def test_applications_in_one_process_share_nothing(make_app: App) -> None:
    one, two = make_app(), make_app()
    for app in (one, two):
        app.producer(app.topic("orders", key=Key.plain()))
    async with one.running(), two.running():
        with one.disable_producers():
            assert await one._declared.producers[0].produce(b"x", key="k") is None
            assert await two._declared.producers[0].produce(b"x", key="k") is not None


async def test_what_needs_a_running_application_says_so(app: Deimos, orders: Any) -> None:
    producer = app.producer(orders)
    with pytest.raises(NotRunningError, match=r"app\.running"):
        await producer.produce(b"x", key="k")
    with pytest.raises(NotRunningError):
        app.session()
    with pytest.raises(NotRunningError):
        await app.flush()


async def test_failure_inside_the_block_closes_everything_and_propagates(app: Deimos, orders: Any) -> None:
    @app.consumer(orders, group="g")
    async def handle(message: Message) -> None: ...

    with pytest.raises(ZeroDivisionError):
        async with app.running():
            raise ZeroDivisionError
    assert not app.is_running
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_unknown_part_is_refused_and_producers_run_without_consumers(app: Deimos, orders: Any) -> None:
    producer = app.producer(orders)
    seen: list[Message] = []

    @app.consumer(orders, group="g")
    async def handle(message: Message) -> None:
        seen.append(message)

    with pytest.raises(ConfigurationError, match="'cron' does not exist in this version"):
        async with app.running(only=("cron",)):
            pytest.fail("it must not start")
    async with app.running(only=("producers",)):
        assert await producer.produce(b"x", key="k") is not None
        assert app.consumers() == []
    assert seen == []


async def test_lifespan_runs_the_application(app: Deimos, orders: Any) -> None:
    async with app.lifespan(object()):
        assert app.is_running
    assert not app.is_running


# --- consuming -------------------------------------------------------------------------------------------------


async def test_messages_reach_functions_classes_batches_and_threads(app: Deimos, orders: Any, progress: Any) -> None:
    producer = app.producer(orders)
    seen: dict[str, list[Any]] = {"function": [], "class": [], "batch": [], "thread": []}

    @app.consumer(orders, group="function")
    async def handle(message: Message) -> None:
        seen["function"].append((message.key, message.payload))
        progress()

    @app.consumer(orders, group="class")
    class Handler(Consumer):
        async def consume_message(self, message: Message[str]) -> None:
            seen["class"].append((message.key, message.payload))
            progress()

    @app.consumer(orders, group="batch", batch=True, max_batch=3, max_wait=0.01)
    async def batch(messages: list[Message]) -> None:
        seen["batch"] += [(message.key, message.payload) for message in messages]
        progress()

    loop = asyncio.get_running_loop()

    @app.consumer(orders, group="thread")
    def threaded(message: Message) -> None:
        seen["thread"].append((message.key, message.payload))
        loop.call_soon_threadsafe(progress)

    async with app.running():
        await producer.produce_many([{"payload": f"{n}", "key": n} for n in range(10)])
        await progress.until(lambda: all(len(found) == 10 for found in seen.values()))
    expected = {(str(n), str(n).encode()) for n in range(10)}
    assert set(seen["function"]) == set(seen["batch"]) == set(seen["thread"]) == expected
    assert set(seen["class"]) == {(str(n), str(n)) for n in range(10)}  # Message[str]


async def test_dead_letter_keeps_bytes_headers_and_partition(app: Deimos, orders: Any, progress: Any) -> None:
    letters = app.topic("orders-dlt", key=Key.plain(), partitions=2)
    producer = app.producer(orders)
    found: list[Message] = []

    @app.consumer(orders, group="g", on_error=OnError(attempts=1))
    async def handle(message: Message) -> None:
        if message.key == "bad":
            raise ValueError("no")

    @app.consumer(letters, group="letters")
    async def look(message: Message) -> None:
        found.append(message)
        progress()

    async with app.running():
        delivery = await producer.produce(b"payload", key="bad", headers=[("h", "1"), ("h", None)])
        assert delivery is not None
        await progress.until(lambda: bool(found))
    [letter] = found
    assert (letter.raw_key, letter.raw_payload, letter.partition) == (b"bad", b"payload", delivery.partition)
    assert letter.headers.get_all("h") == [b"1", None]
    assert letter.headers["deimos-dlq-offset"] == str(delivery.offset).encode()


@pytest.mark.parametrize("how", ["reraise", "application", "topic", "consumer", "hook"])
async def test_selected_error_stops_the_consumer_and_is_kept_as_its_failure(make_app: App, how: str) -> None:
    def fatal(error: BaseException, messages: list[Any]) -> bool:
        return isinstance(error, KeyError) and len(messages) == 1

    app = make_app({"consumers.reraise_errors": how == "reraise"}, fatal_error=fatal if how == "application" else None)
    options: dict[str, Any] = {"fatal_error": fatal} if how == "topic" else {}
    orders = app.topic("orders", key=Key.plain(), **options)
    producer = app.producer(orders)

    @app.consumer(orders, group="g", fatal_error=fatal if how == "consumer" else None)
    class Handler(Consumer):
        async def consume_message(self, message: Message) -> None:
            raise KeyError("no")

        def fatal_error(self, error: BaseException, messages: list[Any]) -> bool:
            return how == "hook" and fatal(error, messages)

    async with app.running():
        await producer.produce(b"x", key="k")
        async with asyncio.timeout(20):
            await app.wait_failed()
        assert not app.is_ready
        [failure] = app.failures.values()
    assert isinstance(failure, HandlerError)
    assert isinstance(failure.__cause__, KeyError)


async def test_tombstone_has_no_payload_and_an_empty_one_is_none(app: Deimos, orders: Any, progress: Any) -> None:
    producer = app.producer(orders)
    seen: list[tuple[Any, bool]] = []

    @app.consumer(orders, group="g")
    async def handle(message: Message) -> None:
        seen.append((message.payload, message.is_tombstone))
        progress()

    async with app.running():
        await producer.delete("k")
        await producer.produce(b"", key="k")
        await progress.until(lambda: len(seen) == 2)
    assert seen == [(None, True), (b"", False)]


# --- sessions, transactions ------------------------------------------------------------------------------------


@pytest.fixture
async def notes(app: Deimos) -> Callable[[], Any]:
    async def count() -> int:
        async with app.session() as session:
            return int((await session.execute(text("SELECT count(*) FROM notes"))).scalar_one())

    return count


CREATE = text("CREATE TABLE notes (text TEXT)")
INSERT = text("INSERT INTO notes VALUES ('x')")


ended: list[str] = []
"""Which providers have ended; they are module-level, as annotations must be resolvable."""


async def opened() -> AsyncIterator[str]:
    yield "resource"
    ended.append("async")


def fails() -> Iterator[int]:
    try:
        yield 1
    except ValueError:
        ended.append("saw ValueError")
        raise


async def test_session_of_a_handler_commits_on_return_and_is_new_for_each_attempt(
    app: Deimos, orders: Any, progress: Any, notes: Any
) -> None:
    producer = app.producer(orders)
    sessions: list[AsyncSession] = []
    ended.clear()

    @app.consumer(orders, group="g", on_error=OnError(attempts=2))
    async def handle(
        message: Message,
        session: AsyncSession,
        resource: Annotated[str, Depends(opened)],
        number: Annotated[int, Depends(fails)],
    ) -> None:
        sessions.append(session)
        await session.execute(INSERT)
        if len(sessions) == 1:
            raise ValueError("first attempt")
        progress()

    async with app.running():
        async with app.transaction() as session:
            await session.execute(CREATE)
        await producer.produce(b"x", key="k")
        await progress.until(lambda: ended == ["saw ValueError", "async"])
        async with asyncio.timeout(20):
            while await notes() != 1:
                pass
    assert sessions[0] is not sessions[1]


async def test_messages_of_a_transaction_leave_with_its_commit_and_not_with_its_rollback(
    app: Deimos, orders: Any, progress: Any, notes: Any
) -> None:
    producer = app.producer(orders)
    seen: list[Any] = []

    @app.consumer(orders, group="g")
    async def handle(message: Message) -> None:
        seen.append(message.payload)
        progress()

    async with app.running():
        async with app.transaction() as session:
            await session.execute(CREATE)
        with pytest.raises(ZeroDivisionError):
            async with app.transaction() as session:
                await session.execute(INSERT)
                assert await producer.produce(b"rolled back", key="k") is None
                raise ZeroDivisionError
        async with app.transaction() as session:
            await session.execute(INSERT)
            await producer.produce(b"outer", key="k")
            with pytest.raises(ZeroDivisionError):
                async with app.transaction() as inner:
                    assert inner is session
                    await producer.produce(b"savepoint", key="k")
                    raise ZeroDivisionError
            async with app.transaction():
                await producer.produce(b"released", key="k")
            assert seen == []
        await producer.produce(b"direct", key="k")
        await progress.until(lambda: b"direct" in seen)
        assert await notes() == 1
    assert seen == [b"outer", b"released", b"direct"]


async def test_session_of_ones_own_carries_messages_to_its_commit(app: Deimos, orders: Any, progress: Any) -> None:
    producer = app.producer(orders)
    seen: list[Any] = []

    @app.consumer(orders, group="g")
    async def handle(message: Message) -> None:
        seen.append(message.payload)
        progress()

    async with app.running():
        async with app.session() as session:
            await producer.produce(b"dropped", key="k", session=session)
            await session.rollback()
            await producer.produce(b"kept", key="k", session=session)
            await session.commit()
        await progress.until(lambda: bool(seen))
    assert seen == [b"kept"]


async def test_transaction_that_ends_while_a_message_is_encoded_does_not_lose_it_silently(
    app: Deimos, orders: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    producer = app.producer(orders)
    encode, began, goes_on = producer._encoded, asyncio.Event(), asyncio.Event()

    async def slow(*given: Any) -> Any:
        began.set()
        await goes_on.wait()
        return await encode(*given)

    monkeypatch.setattr(producer, "_encoded", slow)
    async with app.running():
        async with app.transaction():
            late = asyncio.create_task(producer.produce(b"late", key="k"))
            await began.wait()
        goes_on.set()
        with pytest.raises(LifecycleError, match="has ended"):
            await late


async def test_producing_into_a_transaction_that_has_ended_raises(app: Deimos, orders: Any) -> None:
    producer = app.producer(orders)
    go_on = asyncio.Event()

    async def late() -> None:
        await go_on.wait()
        with pytest.raises(LifecycleError, match="has ended"):
            await producer.produce(b"late", key="k")

    async with app.running():
        async with app.transaction():
            task = asyncio.create_task(late())
            await asyncio.sleep(0)
        go_on.set()
        await task


async def test_message_that_cannot_be_sent_raises_from_the_exit_with_the_rows_committed(
    app: Deimos, orders: Any, notes: Any
) -> None:
    producer = app.producer(orders)
    async with app.running():
        async with app.transaction() as session:
            await session.execute(CREATE)
        with pytest.raises(DeliveryError):
            async with app.transaction() as session:
                await session.execute(INSERT)
                await producer.produce(b"x" * 2_000_000, key="k")  # above max_request_bytes
        assert await notes() == 1


async def test_users_own_engine_is_used_and_stays_usable(make_app: App, tmp_path: Path) -> None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'own.sqlite3'}")
    app = make_app(engine=engine)
    app.topic("orders", key=Key.plain())
    async with app.running(), app.transaction() as session:
        await session.execute(CREATE)
        await session.execute(INSERT)
    async with engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM notes"))).scalar_one() == 1
    await engine.dispose()


# --- producing -------------------------------------------------------------------------------------------------


async def test_disabled_producers_send_nothing_in_their_context_alone(app: Deimos, orders: Any) -> None:
    one, two = app.producer(orders), app.producer(orders)
    inside, outside = asyncio.Event(), asyncio.Event()

    async def elsewhere() -> Any:
        await inside.wait()
        sent = await one.produce(b"x", key="k")
        outside.set()
        return sent

    async with app.running():
        task = asyncio.create_task(elsewhere())
        with app.disable_producers(one):
            with app.disable_producers(one):
                assert await one.produce(b"x", key="k") is None
            assert await one.produce(b"x", key="k") is None
            assert await two.produce(b"x", key="k") is not None
            inside.set()
            await outside.wait()
        assert await task is not None
        with app.disable_producers():
            assert await two.produce_many([{"payload": b"x", "key": "k"}]) is None
        assert await one.produce(b"x", key="k") is not None


async def test_one_message_that_does_not_fit_sends_none_of_the_list(app: Deimos, orders: Any) -> None:
    producer = app.producer(orders)
    async with app.running():
        with pytest.raises(EncodeError, match="orders"):
            await producer.produce_many([{"payload": b"x", "key": "k"}, {"payload": 5, "key": "k"}])
        delivery = await producer.produce(b"x", key="k")
        assert delivery is not None
        assert delivery.offset == 0


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ([{"payload": b"x", "keys": 1}], "unknown \\['keys'\\]"),
        ([{"key": 1}], "'payload' is missing"),
        ([b"x"], "message 0: a mapping"),
        ({"payload": b"x"}, "a list of mappings"),
        (b"x", "a list of mappings"),
    ],
)
async def test_wrong_form_of_produce_many_is_told(app: Deimos, orders: Any, messages: Any, text: str) -> None:
    producer = app.producer(orders)
    async with app.running():
        with pytest.raises(TypeError, match=text):
            await producer.produce_many(messages)


async def test_falsy_keys_are_keys_and_a_missing_one_is_an_error(app: Deimos, orders: Any, progress: Any) -> None:
    producer = app.producer(orders)
    seen: list[Any] = []

    @app.consumer(orders, group="g")
    async def handle(message: Message) -> None:
        seen.append(message.key)
        progress()

    async with app.running():
        await producer.produce(b"x", key=0)
        await producer.produce(b"x", key="")
        with pytest.raises(EncodeError, match="a key is required"):
            await producer.produce(b"x")
        await progress.until(lambda: len(seen) == 2)
    assert sorted(seen) == ["", "0"]


async def test_partition_key_hook_and_argument_choose_the_partition(app: Deimos, orders: Any) -> None:
    class ByTenant(Producer):
        def partition_key(self, payload: Any) -> str | None:
            return payload.decode().partition(":")[0]

    producer = app.producer(orders, ByTenant)
    plain = app.producer(orders)
    async with app.running():
        by_hook = {(await producer.produce(b"tenant:x", key=str(n))).partition for n in range(8)}  # type: ignore[union-attr]
        given = {(await plain.produce(b"x", key=str(n), partition_key="tenant")).partition for n in range(8)}  # type: ignore[union-attr]
        as_key = (await plain.produce(b"x", key="tenant")).partition  # type: ignore[union-attr]
    assert by_hook == given == {as_key}


async def test_buffered_messages_are_sent_in_order_and_flush_waits_for_them(
    app: Deimos, orders: Any, progress: Any
) -> None:
    producer = app.producer(orders, backend="kafka_async")
    seen: list[Any] = []

    @app.consumer(orders, group="g")
    async def handle(message: Message) -> None:
        seen.append(int(message.payload))
        progress()

    async with app.running():
        for number in range(100):
            assert await producer.produce(f"{number}", key="k") is None
        await app.flush()
        await progress.until(lambda: len(seen) == 100)
        await producer.produce("100", key="k")
    assert seen[:100] == list(range(100))


async def test_failed_buffered_delivery_reaches_callback_event_and_the_next_ones_go_on(make_app: App) -> None:
    failed: list[tuple[BaseException, list[Any]]] = []

    async def on_delivery_error(error: DeliveryError, messages: list[Any]) -> None:
        failed.append((error, [message.payload for message in messages]))

    app = make_app({"producers.backend": "kafka_async"}, on_delivery_error=on_delivery_error)
    producer = app.producer(app.topic("orders", key=Key.plain()))
    events: list[Any] = []
    app.events.subscribe("deimos.error", events.append)
    async with app.running():
        await producer.produce(b"x" * 2_000_000, key="k")
        await producer.produce(b"good", key="k")
        await app.flush()
        assert await producer.produce(b"y", key="k", backend="kafka") is not None
    assert [payloads for _, payloads in failed] == [[b"x" * 2_000_000]]
    assert [event["type"] for event in events] == ["delivery"]


async def test_encode_event_tells_producer_topic_payload_and_failures(app: Deimos, orders: Any) -> None:
    producer = app.producer(orders)
    events: list[Any] = []
    app.events.subscribe("deimos.encode_message", events.append)
    async with app.running():
        await producer.produce("x", key="k")
        with pytest.raises(EncodeError):
            await producer.produce(5, key="k")
    assert [(event["producer"], event["topic"], event.error is None) for event in events] == [
        ("Producer", "orders", True),
        ("Producer", "orders", False),
    ]
    with pytest.raises(ValueError, match="unknown event"):
        app.events.subscribe("deimos.encoded", events.append)


async def test_codec_works_without_a_running_application(app: Deimos, orders: Any) -> None:
    codec = app.codec(orders)
    assert await codec.encode_payload("text") == b"text"
    assert await codec.decode_key(await codec.encode_key(7)) == "7"
    with pytest.raises(ConfigurationError, match="'nowhere' is not declared"):
        app.codec("nowhere")


# --- what a hostile reader found ---------------------------------------------------------------------------------


async def test_wrapped_handlers_are_called_and_not_dropped(app: Deimos, orders: Any, progress: Any) -> None:
    producer = app.producer(orders)
    seen: list[str] = []

    async def inner(message: Message) -> None:
        seen.append("inner")
        progress()

    def around(function: Any) -> Any:
        @functools.wraps(function)
        async def wrapper(message: Message) -> None:
            seen.append("around")
            function(message)

        return wrapper

    @app.consumer(orders, group="returns")
    def returns(message: Message) -> Any:
        return inner(message)

    @app.consumer(orders, group="wrapped")
    @around
    def plain(message: Message) -> None:
        seen.append("plain")
        progress()

    async with app.running():
        await producer.produce(b"x", key="k")
        await progress.until(lambda: len(seen) == 3)
    assert sorted(seen) == ["around", "inner", "plain"]


async def test_database_away_waits_also_behind_a_transaction_of_ones_own(make_app: App, progress: Any) -> None:
    engine = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none")  # nobody listens there
    app = make_app(engine=engine)
    orders = app.topic("orders", key=Key.plain())
    producer = app.producer(orders)
    calls = 0

    @app.consumer(orders, group="g", on_error=OnError(attempts=1, backoff=Backoff(0.001, 0.002), then="stop"))
    async def handle(message: Message) -> None:
        nonlocal calls
        calls += 1
        progress()
        async with app.transaction() as session:
            await session.execute(text("SELECT 1"))

    async with app.running():
        await producer.produce(b"x", key="k")
        await progress.until(lambda: calls > 5)
        assert app.failures == {}


async def test_dead_letter_raised_by_a_handler_finds_its_topic_by_any_policy(make_app: App, progress: Any) -> None:
    app = make_app()
    orders = app.topic("orders", key=Key.plain(), partitions=5)
    letters = app.topic("orders-dlt", key=Key.plain())
    producer = app.producer(orders)
    found: set[int] = set()

    @app.consumer(orders, group="g", on_error=OnError(then="skip"))
    async def handle(message: Message) -> None:
        raise DeadLetter("no")

    @app.consumer(letters, group="letters")
    async def look(message: Message) -> None:
        found.add(message.partition)
        progress()

    async with app.running():
        await producer.produce_many([{"payload": b"x", "key": n} for n in range(40)])
        await progress.until(lambda: len(found) == 5)
        assert app.failures == {}


async def test_message_passes_its_retry_topics_to_the_last(app: Deimos, orders: Any, progress: Any) -> None:
    producer = app.producer(orders)
    seen: list[str] = []

    @app.consumer(
        orders,
        group="g",
        on_error=OnError(attempts=2, backoff=Backoff(0.001, 0.002), retry_topics=(0.05, 0.1)),
    )
    async def handle(message: Message) -> None:
        seen.append(message.topic)
        progress()
        if message.topic != "orders-retry-2":
            raise ValueError("not yet")

    async with app.running():
        await producer.produce(b"x", key="k")
        await progress.until(lambda: len(seen) == 4)
    assert seen == ["orders", "orders", "orders-retry-1", "orders-retry-2"]


async def test_what_is_left_in_the_buffer_when_sending_is_cut_off_is_reported(make_app: App) -> None:
    from deimos_async.producing.backends import KafkaAsyncBackend
    from deimos_async.producing.measuring import SendMeasurements

    failed: list[Any] = []
    hangs = asyncio.Event()

    class Hanging:
        async def send(self, messages: Any) -> Any:
            hangs.set()
            await asyncio.Event().wait()

    app = make_app()
    backend = KafkaAsyncBackend(
        Hanging(),  # type: ignore[arg-type]
        buffer_messages=10,
        events=app.events,
        measured=SendMeasurements(NoTelemetry()),
        on_delivery_error=lambda error, messages: failed.append((error.unknown, len(messages))),
    )
    running = asyncio.create_task(backend.run(asyncio.Event()))
    message: Any = SimpleNamespace(outlet=SimpleNamespace(payload_log="count", kafka_name="orders"), topic="orders")
    await backend.send([message])
    await hangs.wait()
    await backend.send([message, message])
    running.cancel()
    await asyncio.wait([running])
    assert failed == [(True, 3)]


async def test_flush_waits_for_what_was_buffered_and_not_for_what_comes_later(app: Deimos, orders: Any) -> None:
    producer = app.producer(orders, backend="kafka_async")

    async def on_and_on() -> None:
        while True:
            await producer.produce(b"x", key="k")
            await asyncio.sleep(0)

    async with app.running():
        busy = [asyncio.create_task(on_and_on()) for _ in range(3)]
        async with asyncio.timeout(20):
            await producer.produce(b"mine", key="k")
            await app.flush()
        for task in busy:
            task.cancel()
        await asyncio.wait(busy)


async def test_provider_cannot_make_the_handlers_error_undone(app: Deimos, orders: Any) -> None:
    producer = app.producer(orders)

    @app.consumer(orders, group="g", on_error=OnError(attempts=1, then="stop"))
    async def handle(message: Message, resource: Annotated[str, Depends(swallows)]) -> None:
        raise KeyError("mine")

    async with app.running():
        await producer.produce(b"x", key="k")
        async with asyncio.timeout(20):
            await app.wait_failed()
    [failure] = app.failures.values()
    assert isinstance(failure.__cause__, KeyError)


def swallows() -> Iterator[str]:
    try:
        yield "resource"
    except KeyError:
        return


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"payload_log": "key"}, "payload_log='key': give one of 'full'"),
        ({"on_error": "skip"}, "give OnError"),
        ({"reraise_errors": "no"}, "give True or False"),
        ({"fatal_error": 5}, "plain callable"),
        ({"topic_config": 5}, "a mapping"),
        ({"partitions": "3"}, "a whole number"),
        ({"schema": 5}, "a schema's name"),
        ({"key": "order_id"}, "Key.field"),
    ],
)
def test_wrong_topic_option_is_told_where_it_is_declared(app: Deimos, options: Any, text: str) -> None:
    with pytest.raises(ConfigurationError, match="topic 'orders': ") as caught:
        app.topic("orders", **options)
    assert text in str(caught.value)


async def test_only_producers_of_the_application_can_be_disabled(app: Deimos, orders: Any) -> None:
    app.producer(orders)
    for wrong in (Producer, orders, "orders"):
        with pytest.raises(ConfigurationError, match="disable_producers"):
            app.disable_producers(wrong)  # type: ignore[arg-type]


def test_router_with_equal_topics_may_be_included_and_with_others_not(make_app: App) -> None:
    app = make_app()
    one, two, three = Router(), Router(), Router()
    one.topic("orders", key=Key.plain())
    two.producer(two.topic("orders", key=Key.plain()))
    three.topic("orders", key=Key.none())
    app.include(one)
    app.include(two)
    with pytest.raises(ConfigurationError, match="with other options"):
        app.include(three)


def test_password_in_a_broken_database_url_does_not_show(make_app: App) -> None:
    app = make_app({"embedded": False, "database.url": "postgresql+asyncpg://shop:p@ss:w0rd@db:5432/shop"})

    async def start() -> None:
        async with app.running():
            pytest.fail("it must not start")

    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(start())
    assert "w0rd" not in "".join(traceback.format_exception(caught.value))


async def test_optional_payloads_and_dicts_with_types_are_taken(app: Deimos, orders: Any, progress: Any) -> None:
    producer = app.producer(orders)
    seen: list[Any] = []

    @app.consumer(orders, group="g")
    async def handle(message: Message[Note | None]) -> None:
        seen.append(message.payload)
        progress()

    async with app.running():
        await producer.produce(b'{"text": "hello"}', key="k")
        await producer.delete("k")
        await progress.until(lambda: len(seen) == 2)
    assert seen == [Note("hello"), None]


@dataclass
class Note:
    text: str
