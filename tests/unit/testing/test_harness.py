"""The helpers of the fixture `deimos`, on applications made for each test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from deimos_async import Backoff, Consumer, DeadLetter, Deimos, Key, Message, OnError, Producer, Retry, Router, Skip
from deimos_async.brokers.protocol import ProducerOptions
from deimos_async.database.tables import metadata as framework
from deimos_async.errors import ConfigurationError, DecodeError, EncodeError, LifecycleError, NotRunningError
from deimos_async.message import OutboundRecord
from deimos_async.testing import DeimosHarness

ORDER = {
    "type": "record",
    "name": "Order",
    "namespace": "com.acme",
    "fields": [
        {"name": "order_id", "type": "int"},
        {"name": "total", "type": "double"},
        {"name": "note", "type": ["null", "string"], "default": None},
    ],
}
INVOICE = {
    "type": "record",
    "name": "Invoice",
    "namespace": "com.acme",
    "fields": [{"name": "order_id", "type": "int"}, {"name": "amount", "type": "double"}],
}
INVOICE_KEY = {
    "type": "record",
    "name": "InvoiceKey",
    "namespace": "com.acme",
    "fields": [{"name": "order_id", "type": "int"}],
}


@dataclass
class Order:
    order_id: int
    total: float
    note: str | None = None


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Deimos]:
    folder = tmp_path / "com" / "acme"
    folder.mkdir(parents=True)
    for schema in (ORDER, INVOICE, INVOICE_KEY):
        (folder / f"{schema['name']}.avsc").write_text(json.dumps(schema))

    def made(settings: dict[str, Any] | None = None, **arguments: Any) -> Deimos:
        options: dict[str, Any] = {"metrics": None, "tracing": None, **arguments}
        return Deimos({"schema.path": str(tmp_path), **(settings or {})}, **options)

    return made


class Shop:
    """Orders in, invoices out."""

    def __init__(self, app: Deimos, **options: Any) -> None:
        self.app = app
        self.orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"))
        self.invoices = app.topic("invoices", schema="com.acme.Invoice", key=Key.schema("com.acme.InvoiceKey"))
        self.notes = app.topic("notes", key=Key.plain())
        self.to_orders = app.producer(self.orders)
        self.to_invoices = app.producer(self.invoices)
        self.to_notes = app.producer(self.notes)
        self.seen: list[Message[Any]] = []
        self.batches: list[list[Message[Any]]] = []
        self.error: BaseException | None = None

        @app.consumer(self.orders, group="billing", **options)
        async def bill(message: Message) -> None:
            self.seen.append(message)
            if self.error is not None:
                raise self.error
            if message.payload is not None:
                await self.to_invoices.produce(
                    {"order_id": message.payload["order_id"], "amount": message.payload["total"]},
                    key={"order_id": message.key},
                    headers={"origin": "billing"},
                )

        @app.consumer(self.orders, group="statistics", batch=True, max_wait=3600)
        async def count(messages: list[Message]) -> None:
            self.batches.append(messages)
            if self.error is not None:
                raise self.error

        self.bill, self.count = bill, count


@pytest.fixture
def shop(make: Callable[..., Deimos]) -> Shop:
    return Shop(make())


@pytest.fixture
async def deimos(shop: Shop) -> AsyncIterator[DeimosHarness]:
    async with DeimosHarness.running(shop.app) as harness:
        yield harness


# --- consuming -------------------------------------------------------------------------------------------------


async def test_message_is_coerced_encoded_decoded_and_handled(shop: Shop, deimos: DeimosHarness) -> None:
    await deimos.consume_message(
        shop.bill, {"order_id": "7", "total": 9, "unknown": 1}, headers={"a": "b"}, partition_key="p"
    )
    (message,) = shop.seen
    assert (message.topic, message.key, message.partition) == ("orders", 7, 0)
    assert message.payload == {"order_id": 7, "total": 9.0, "note": None}
    assert list(message.headers) == [("a", b"b")]
    assert message.raw_payload is not None
    assert message.raw_payload[0] == 0
    assert message.timestamp is not None
    deimos.assert_sent("invoices", {"order_id": 7, "amount": 9.0}, key={"order_id": 7}, headers={"origin": "billing"})


async def test_what_the_helper_hands_over_is_not_among_the_sent_messages(shop: Shop, deimos: DeimosHarness) -> None:
    await deimos.consume_message(shop.bill, {"order_id": 1, "total": 1}, key=5)
    assert shop.seen[0].key == 5
    assert [message.topic for message in deimos.sent_messages()] == ["invoices"]
    deimos.assert_not_sent(shop.orders)


async def test_tombstone_and_dataclass_are_payloads(shop: Shop, deimos: DeimosHarness) -> None:
    await deimos.consume_message(shop.bill, None, key=3)
    await deimos.consume_message(shop.bill, Order(4, 2.5))
    assert [(message.key, message.payload) for message in shop.seen] == [
        (3, None),
        (4, {"order_id": 4, "total": 2.5, "note": None}),
    ]


@pytest.mark.parametrize("payload", [{"order_id": "x", "total": 1}, {"order_id": 1}, None])
async def test_payload_or_key_that_does_not_fit_raises_and_calls_nobody(
    shop: Shop, deimos: DeimosHarness, payload: Any
) -> None:
    with pytest.raises(EncodeError):
        await deimos.consume_message(shop.bill, payload)
    assert shop.seen == []


async def test_batch_comes_in_one_call_with_keys_given_or_derived(shop: Shop, deimos: DeimosHarness) -> None:
    payloads = [{"order_id": number, "total": 1} for number in range(3)]
    await deimos.consume_batch(shop.count, payloads, keys=[None, 9], headers=[{"a": "b"}])
    (batch,) = shop.batches
    assert [message.key for message in batch] == [0, 9, 2]
    assert [message.offset for message in batch] == [0, 1, 2]
    assert [len(message.headers) for message in batch] == [1, 0, 0]


async def test_wrong_lists_for_a_batch_are_refused(shop: Shop, deimos: DeimosHarness) -> None:
    with pytest.raises(ValueError, match="at least one payload"):
        await deimos.consume_batch(shop.count, [])
    with pytest.raises(ValueError, match="keys= takes a list, at most one for each of the 1 payloads"):
        await deimos.consume_batch(shop.count, [{"order_id": 1, "total": 1}], keys=[1, 2])
    with pytest.raises(ValueError, match="keys= takes a list"):
        await deimos.consume_batch(shop.count, [{"order_id": 1, "total": 1}], keys="x")
    assert shop.batches == []


async def test_wrong_helper_for_the_mode_names_the_right_one(shop: Shop, deimos: DeimosHarness) -> None:
    with pytest.raises(ConfigurationError, match=r"'count' takes batches \(batch=True\); use consume_batch"):
        await deimos.consume_message(shop.count, {"order_id": 1, "total": 1})
    with pytest.raises(ConfigurationError, match="'bill' takes single messages; use consume_message"):
        await deimos.consume_batch(shop.bill, [{"order_id": 1, "total": 1}])


async def test_consumer_may_be_named_by_a_topic_with_one_consumer(make: Callable[..., Deimos]) -> None:
    app, seen = make(), []
    notes, others = app.topic("notes"), app.topic("others")

    @app.consumer(notes, group="g")
    async def read(message: Message) -> None:
        seen.append((message.key, message.payload))

    async with DeimosHarness.running(app) as deimos:
        await deimos.consume_message("notes", "text", key="k")
        await deimos.consume_message(notes, b"bytes")
        await deimos.consume_message(notes, None)
        with pytest.raises(ConfigurationError, match=r"topic 'others' has no consumer; .* are 'read'"):
            await deimos.consume_message(others, "text")
        with pytest.raises(ConfigurationError, match="topic 'note' is not declared; did you mean 'notes'"):
            await deimos.consume_message("note", "text")
    assert seen == [(b"k", b"text"), (None, b"bytes"), (None, None)]


async def test_consumer_that_cannot_be_told_is_an_error(shop: Shop, deimos: DeimosHarness) -> None:
    async def stranger(message: Message) -> None: ...

    with pytest.raises(ConfigurationError, match="topic 'orders' has the consumers 'bill', 'count'"):
        await deimos.consume_message("orders", {})
    with pytest.raises(ConfigurationError, match=r"'stranger' is not registered .*, of 'bill', 'count'"):
        await deimos.consume_message(stranger, {})
    with pytest.raises(ConfigurationError, match="'bill' does not read topic 'notes'; it reads 'orders'"):
        await deimos.consume_message(shop.bill, {}, topic="notes")


async def test_consumer_of_several_topics_needs_the_topic(make: Callable[..., Deimos]) -> None:
    app, seen = make(), []

    @app.consumer(app.topic("one"), group="g")
    @app.consumer(app.topic("two"), group="g")
    async def read(message: Message) -> None:
        seen.append(message.topic)

    async with DeimosHarness.running(app) as deimos:
        with pytest.raises(ConfigurationError, match="'read' reads 'one', 'two'; say which with topic="):
            await deimos.consume_message(read, "text")
        await deimos.consume_message(read, "text", topic="two")
    assert seen == ["two"]


async def test_class_consumer_is_given_as_class_and_keeps_its_instance_within_a_test(
    make: Callable[..., Deimos],
) -> None:
    app = make()

    @app.consumer(app.topic("notes"), group="g")
    class Counting(Consumer):
        made: list[Counting] = []  # noqa: RUF012

        def __init__(self) -> None:
            self.count = 0
            self.made.append(self)

        async def consume_message(self, message: Message) -> None:
            self.count += 1

    async with DeimosHarness.running(app) as deimos:
        await deimos.consume_message(Counting, "a")
        with deimos.mock_backends():
            await deimos.consume_message(Counting, "b")
    assert [instance.count for instance in Counting.made] == [2]


async def test_typed_payload_reaches_the_handler_and_a_mismatch_is_a_decode_error(make: Callable[..., Deimos]) -> None:
    app, seen = make(), []

    @dataclass
    class Strict:
        order_id: int
        note: str

    @app.consumer(app.topic("orders", schema="com.acme.Order"), group="g")
    async def read(message: Message[Strict]) -> None:
        seen.append(message.payload)

    read.__annotations__["message"] = Message[Strict]
    async with DeimosHarness.running(app) as deimos:
        await deimos.consume_message(read, {"order_id": 1, "total": 1, "note": "x"})
        with pytest.raises(DecodeError, match="note"):
            await deimos.consume_message(read, {"order_id": 1, "total": 1})
    assert seen == [Strict(1, "x")]


# --- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [RuntimeError("no"), Skip("no"), DeadLetter("no")])
async def test_what_the_handler_raised_reaches_the_test(shop: Shop, deimos: DeimosHarness, error: Exception) -> None:
    shop.error = error
    with pytest.raises(type(error), match="no"):
        await deimos.consume_message(shop.bill, {"order_id": 1, "total": 1})
    with pytest.raises(type(error), match="no"):
        await deimos.consume_batch(shop.count, [{"order_id": 1, "total": 1}])


async def test_with_reraise_off_only_what_fatal_error_selects_reaches_the_test(make: Callable[..., Deimos]) -> None:
    told: list[tuple[BaseException, int]] = []

    def selects(error: BaseException, messages: list[Message]) -> bool:
        told.append((error, len(messages)))
        return isinstance(error, KeyError)

    shop = Shop(make(fatal_error=selects))
    async with DeimosHarness.running(shop.app, {"consumers": {"reraise_errors": False}}) as deimos:
        shop.error = RuntimeError("swallowed")
        await deimos.consume_message(shop.bill, {"order_id": 1, "total": 1})
        shop.error = KeyError("fatal")
        with pytest.raises(KeyError):
            await deimos.consume_message(shop.bill, {"order_id": 1, "total": 1})
    assert [(type(error), count) for error, count in told] == [(RuntimeError, 1), (KeyError, 1)]


async def test_schema_error_within_a_handler_is_raised_whatever_the_settings(make: Callable[..., Deimos]) -> None:
    shop = Shop(make())
    async with DeimosHarness.running(shop.app, {"consumers.reraise_errors": False}) as deimos:
        shop.error = EncodeError("does not fit")
        with pytest.raises(EncodeError):
            await deimos.consume_message(shop.bill, {"order_id": 1, "total": 1})


async def test_consumer_that_does_not_reraise_is_left_alone(make: Callable[..., Deimos]) -> None:
    shop = Shop(make(), reraise_errors=False)
    shop.error = RuntimeError("swallowed")
    async with DeimosHarness.running(shop.app) as deimos:
        await deimos.consume_message(shop.bill, {"order_id": 1, "total": 1})
        assert len(shop.seen) == 1
        with pytest.raises(RuntimeError):
            await deimos.consume_batch(shop.count, [{"order_id": 1, "total": 1}])


# --- what was sent ---------------------------------------------------------------------------------------------


async def test_sent_messages_are_decoded_in_order_and_by_declared_topic(make: Callable[..., Deimos]) -> None:
    shop = Shop(make({"producers.topic_prefix": "test-"}))
    async with DeimosHarness.running(shop.app) as deimos:
        await shop.to_orders.produce({"order_id": 1, "total": 2}, headers={"h": "1"})
        await shop.to_notes.produce("text", key=5, partition_key="p")
        await shop.to_orders.delete(1)
        first, second, third = deimos.sent_messages()
        assert (first.topic, first.key, first.partition_key) == ("orders", 1, "1")
        assert first.payload == {"order_id": 1, "total": 2.0, "note": None}
        assert first.headers == {"h": "1"}
        assert (second.topic, second.payload, second.key, second.partition_key) == ("notes", b"text", "5", "p")
        assert (third.payload, third.key) == (None, 1)
        assert deimos.sent_messages("notes") == [second]
        assert deimos.sent_messages(shop.orders) == [first, third]
        deimos.clear_sent_messages()
        assert deimos.sent_messages() == []


async def test_assertions_take_handles_matchers_and_keys_in_any_form(shop: Shop, deimos: DeimosHarness) -> None:
    await shop.to_orders.produce({"order_id": 1, "total": 2})
    found = deimos.assert_sent(shop.orders, Order(1, 2.0), key=1, partition_key="1", headers={})
    assert found is deimos.sent_messages()[0]
    deimos.assert_sent("orders", {"order_id": ANY, "total": 2.0, "note": None}, key={"order_id": 1})
    deimos.assert_sent("orders", ANY)
    deimos.assert_sent_including("orders", {"total": 2.0})
    deimos.assert_not_sent("orders", {"total": 2.0})
    deimos.assert_not_sent("orders", None)
    deimos.assert_not_sent("orders", ANY, key=2)
    deimos.assert_not_sent("invoices")


async def test_failed_assertion_explains_itself(shop: Shop, deimos: DeimosHarness) -> None:
    await shop.to_orders.produce({"order_id": 1, "total": 2})
    with pytest.raises(AssertionError, match=r"payload\.total: expected 3, is 2\.0"):
        deimos.assert_sent_including("orders", {"total": 3})
    with pytest.raises(AssertionError, match=r"nothing was sent to it\nsent to other topics: 'orders' \(1\)"):
        deimos.assert_sent("invoices", ANY)
    with pytest.raises(AssertionError, match="but message 1 is such"):
        deimos.assert_not_sent("orders")


@pytest.mark.parametrize("topic", ["invoice", "invoices-dlt", "orders-retry-1"])
async def test_unknown_topic_is_an_error_and_not_a_message_that_was_not_sent(deimos: DeimosHarness, topic: str) -> None:
    for ask in (deimos.sent_messages, deimos.assert_not_sent):
        with pytest.raises(ConfigurationError, match=f"topic '{topic}' is not declared"):
            ask(topic)
    with pytest.raises(ConfigurationError, match="is not declared"):
        deimos.assert_sent(topic, None)


async def test_producers_work_by_their_own_backends_and_all_are_kept(make: Callable[..., Deimos]) -> None:
    app = make({"producers.backend": "test"})
    notes = app.topic("notes", key=Key.none())
    default, direct, buffered = app.producer(notes), app.producer(notes, backend="kafka"), app.producer(notes)
    async with DeimosHarness.running(app) as deimos:
        assert await default.produce("1") is None
        delivery = await direct.produce("2")
        assert delivery is not None
        assert delivery.topic == "notes"
        assert await buffered.produce("3", backend="kafka_async") is None
        with app.disable_producers():
            await default.produce("4")
        assert [message.payload for message in deimos.sent_messages()] == [b"1", b"2", b"3"]


async def test_message_that_leaves_with_a_commit_is_sent_with_it_and_never_after_a_rollback(
    shop: Shop, deimos: DeimosHarness
) -> None:
    async with shop.app.transaction():
        await shop.to_notes.produce("kept", key="k")
        deimos.assert_not_sent("notes")
    with pytest.raises(RuntimeError):
        async with shop.app.transaction():
            await shop.to_notes.produce("dropped", key="k")
            raise RuntimeError
    assert [message.payload for message in deimos.sent_messages()] == [b"kept"]


async def test_messages_that_a_broker_refuses_are_not_sent(make: Callable[..., Deimos]) -> None:
    app = make({"producers.max_request_bytes": 1000})
    to_notes: Producer = app.producer(app.topic("notes", key=Key.none()))
    async with DeimosHarness.running(app) as deimos:
        with pytest.raises(Exception, match="1 of 2 messages failed"):
            await to_notes.produce_many([{"payload": "x" * 5000}, {"payload": "short"}])
        assert [message.payload for message in deimos.sent_messages()] == [b"short"]


# --- mock backends ---------------------------------------------------------------------------------------------


async def test_backends_are_mocked_within_nested_blocks_and_restored_after_an_exception(
    shop: Shop, deimos: DeimosHarness
) -> None:
    async def first_byte() -> int:
        data = await shop.app.codec("orders").encode_payload({"order_id": 1, "total": 2})
        assert data is not None
        return data[0]

    assert await first_byte() == 0
    with pytest.raises(RuntimeError), deimos.mock_backends():
        with deimos.mock_backends():
            assert await first_byte() == ord("{")
        assert await first_byte() == ord("{")
        await deimos.consume_message(shop.bill, {"order_id": 1, "total": 2})
        assert shop.seen[-1].raw_payload is not None
        assert json.loads(shop.seen[-1].raw_payload)["order_id"] == 1
        with pytest.raises(EncodeError):
            await deimos.consume_message(shop.bill, {"order_id": "x", "total": 2})
        raise RuntimeError
    assert await first_byte() == 0
    await deimos.consume_message(shop.bill, {"order_id": 2, "total": 2})
    assert [message.payload["order_id"] for message in deimos.sent_messages("invoices")] == [1, 2]


async def test_what_was_sent_with_mocked_backends_is_handled_with_them(shop: Shop, deimos: DeimosHarness) -> None:
    with deimos.mock_backends():
        await shop.to_orders.produce({"order_id": 1, "total": 2})
        await deimos.run_until_idle()
    deimos.assert_sent("invoices", {"order_id": 1, "amount": 2.0})


# --- until idle ------------------------------------------------------------------------------------------------


async def test_everything_sent_before_and_meanwhile_is_handled(shop: Shop, deimos: DeimosHarness) -> None:
    await shop.to_orders.produce_many([{"payload": {"order_id": n, "total": n}} for n in range(50)])
    await deimos.run_until_idle()
    assert sorted(message.key for message in shop.seen) == list(range(50))
    assert sorted(message.key for batch in shop.batches for message in batch) == list(range(50))
    assert len(deimos.sent_messages("invoices")) == 50
    await shop.to_orders.produce({"order_id": 50, "total": 1})
    await deimos.run_until_idle()
    await deimos.run_until_idle()
    assert [message.key for message in shop.seen][50:] == [50]


async def test_chain_of_consumers_ends_with_its_last_message(make: Callable[..., Deimos]) -> None:
    app, seen = make({"producers.backend": "kafka_async"}), []
    first, second = app.topic("first", key=Key.none()), app.topic("second", key=Key.none())
    to_first, to_second = app.producer(first), app.producer(second)

    @app.consumer(first, group="g", delivery="at_most_once")
    async def forward(message: Message) -> None:
        await asyncio.sleep(0)
        await to_second.produce(message.payload)

    @app.consumer(second, group="g", start_from="latest", ordering="none", concurrency=4)
    async def back(message: Message) -> None:
        seen.append(message.payload)
        if len(message.payload) < 5:
            await to_first.produce(message.payload + b"x")

    async with DeimosHarness.running(app) as deimos:
        await to_first.produce(b"x")
        await deimos.run_until_idle()
        assert seen == [b"x" * n for n in range(1, 6)]
        assert len(deimos.sent_messages()) == 10


async def test_group_that_starts_at_the_latest_sees_what_the_test_sent_before(make: Callable[..., Deimos]) -> None:
    app, seen = make(), []
    notes = app.topic("notes", key=Key.none())
    to_notes = app.producer(notes)

    @app.consumer(notes, group="g", start_from="latest")
    async def read(message: Message) -> None:
        seen.append(message.payload)

    async with DeimosHarness.running(app) as deimos:
        await to_notes.produce("x")
        await deimos.run_until_idle()
    assert seen == [b"x"]


async def test_handler_error_stops_the_run_and_is_raised_with_its_place(shop: Shop, deimos: DeimosHarness) -> None:
    await shop.to_orders.produce({"order_id": 1, "total": 1})
    shop.error = RuntimeError("broken")
    with pytest.raises(RuntimeError, match="broken") as caught:
        await deimos.run_until_idle()
    assert any("stopped at orders[" in note for note in caught.value.__notes__)
    shop.error = None
    await deimos.run_until_idle()
    deimos.assert_sent("invoices", ANY, key={"order_id": 1})


async def test_with_reraise_off_errors_go_the_way_of_the_policy(make: Callable[..., Deimos]) -> None:
    app, tried, dead = make(), [], []
    notes, letters = app.topic("notes", key=Key.none()), app.topic("notes-dlt")
    to_notes = app.producer(notes)

    @app.consumer(notes, group="g", on_error=OnError(attempts=2, then="dead_letter"))
    async def fail(message: Message) -> None:
        tried.append(message.payload)
        if message.payload == b"skip":
            raise Skip("on purpose")
        raise RuntimeError("broken")

    @app.consumer(letters, group="dead")
    async def read(message: Message) -> None:
        dead.append((message.payload, message.headers["deimos-dlq-attempts"]))

    async with DeimosHarness.running(app, {"consumers.reraise_errors": False}) as deimos:
        await to_notes.produce("bad")
        await to_notes.produce("skip")
        await deimos.run_until_idle()
        assert sorted(tried) == [b"bad", b"bad", b"skip"]
        assert dead == [(b"bad", b"2")]
        assert [(message.topic, message.payload) for message in deimos.sent_messages()] == [
            ("notes", b"bad"),
            ("notes", b"skip"),
            ("notes-dlt", b"bad"),
        ]


async def test_work_that_does_not_end_is_a_timeout_that_says_what_is_left(make: Callable[..., Deimos]) -> None:
    app, cancelled = make(), asyncio.Event()
    notes = app.topic("notes", key=Key.none())
    to_notes = app.producer(notes)

    @app.consumer(notes, group="g")
    async def hang(message: Message) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with DeimosHarness.running(app) as deimos:
        await to_notes.produce("x")
        with pytest.raises(TimeoutError, match="'g' has 1 messages to go; consumer 'hang' holds 1 of topic 'notes'"):
            await deimos.run_until_idle(timeout=0.2)
    assert cancelled.is_set()


async def test_timeout_error_of_a_handler_is_its_own(make: Callable[..., Deimos]) -> None:
    app = make()
    notes = app.topic("notes", key=Key.none())
    to_notes = app.producer(notes)

    @app.consumer(notes, group="g")
    async def fail(message: Message) -> None:
        raise TimeoutError("the handler's")

    async with DeimosHarness.running(app) as deimos:
        await to_notes.produce("x")
        with pytest.raises(TimeoutError, match="the handler's"):
            await deimos.run_until_idle()


async def test_handler_that_runs_until_idle_is_refused(make: Callable[..., Deimos]) -> None:
    app = make()
    notes = app.topic("notes", key=Key.none())
    to_notes = app.producer(notes)
    harness: list[DeimosHarness] = []

    @app.consumer(notes, group="g")
    async def recurse(message: Message) -> None:
        await harness[0].run_until_idle()

    async with DeimosHarness.running(app) as deimos:
        harness.append(deimos)
        await to_notes.produce("x")
        with pytest.raises(LifecycleError, match="called while it runs"):
            await deimos.run_until_idle()


async def test_without_consumers_there_is_nothing_to_wait_for(make: Callable[..., Deimos]) -> None:
    app = make()
    to_notes = app.producer(app.topic("notes", key=Key.none()))
    async with DeimosHarness.running(app) as deimos:
        await to_notes.produce("x")
        await deimos.run_until_idle()
        deimos.assert_sent("notes", "x")


# --- dead letters, retries, time -------------------------------------------------------------------------------

QUIET = {"consumers.reraise_errors": False}
SLOW = OnError(attempts=2, backoff=Backoff(initial=3600, maximum=3600), retry_topics=(7200, 86400))


class Failing:
    """A consumer of orders whose handler raises for as long as the test wants."""

    def __init__(self, app: Deimos, **options: Any) -> None:
        orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"))
        self.to_orders = app.producer(orders)
        self.tries: list[tuple[str, int]] = []
        self.errors: list[BaseException] = []

        @app.consumer(orders, group="g", **options)
        async def fail(message: Message) -> None:
            self.tries.append((message.topic, message.key))
            if self.errors:
                raise self.errors.pop(0)

        self.fail = fail


async def test_dead_letter_of_an_undeclared_topic_is_decoded_by_its_source(make: Callable[..., Deimos]) -> None:
    app = make({"producers.topic_prefix": "shop-"})
    failing = Failing(app)
    async with DeimosHarness.running(app, QUIET) as deimos:
        failing.errors = [DeadLetter("no such country")]
        await failing.to_orders.produce({"order_id": 7, "total": 1}, headers={"origin": "web"})
        deimos.assert_not_sent("orders-dlt")
        await deimos.run_until_idle()
        letter = deimos.assert_sent(
            "orders-dlt", Order(7, 1.0), key={"order_id": 7}, partition_key="7", headers={"origin": "web"}
        )
        assert deimos.sent_messages("orders-dlt") == [letter]
        assert deimos.sent_messages()[-1] is letter
        assert (letter.topic, letter.key) == ("orders-dlt", 7)
        deimos.assert_sent("orders-dlt", ANY, headers={"origin": "web", "deimos-dlq-error-message": "no such country"})
        deimos.assert_not_sent("orders-dlt", headers={"origin": "web", "deimos-dlq-attempts": "9"})
        deimos.assert_not_sent("orders-dlt", headers={})
        with pytest.raises(AssertionError, match=r"sent to other topics: 'orders-dlt' \(1\)"):
            deimos.assert_sent("orders", None)
        with pytest.raises(ConfigurationError, match="topic 'order-dlt' is not declared; did you mean 'orders-dlt'"):
            deimos.assert_not_sent("order-dlt")


async def test_letter_that_cannot_be_decoded_is_shown_as_bytes(make: Callable[..., Deimos]) -> None:
    app = make()
    failing = Failing(app)
    async with DeimosHarness.running(app, QUIET) as deimos:
        foreign = deimos._running.brokers["default"].producer(ProducerOptions())
        await foreign.start()
        await foreign.send([OutboundRecord("orders", key=b"\xff", value=b"\xfe", headers=[("origin", b"web")])])
        await deimos.run_until_idle()
        deimos.assert_sent("orders-dlt", b"\xfe", key=b"\xff", headers={"origin": "web"})
        deimos.assert_sent("orders-dlt", ANY, headers={"origin": "web", "deimos-dlq-attempts": "0"})
    assert failing.tries == []


async def test_attempts_and_retry_topics_with_long_delays_run_at_once(make: Callable[..., Deimos]) -> None:
    app = make()
    failing = Failing(app, on_error=SLOW)
    failing.errors = [RuntimeError("no")] * 4
    async with DeimosHarness.running(app, QUIET) as deimos:
        await failing.to_orders.produce({"order_id": 7, "total": 1})
        await deimos.run_until_idle()
        assert failing.tries == [("orders", 7), ("orders", 7), ("orders-retry-1", 7), ("orders-retry-2", 7)]
        (letter,) = deimos.sent_messages("orders-dlt")
        assert [message.topic for message in deimos.sent_messages()] == [
            "orders",
            "orders-retry-1",
            "orders-retry-2",
            "orders-dlt",
        ]
        deimos.assert_sent("orders-retry-1", Order(7, 1.0), key=7, headers={})
        assert dict(letter.headers)["deimos-dlq-attempts"] == b"4"


async def test_retries_that_handlers_ask_for_do_not_wait_either(make: Callable[..., Deimos]) -> None:
    app = make()
    failing = Failing(app, on_error=OnError(attempts=3), ordering="key", concurrency=4)
    failing.errors = [Retry(after=3600), Retry(after=60), Retry(after=7200)]
    async with DeimosHarness.running(app, QUIET) as deimos:
        for number in range(3):
            await failing.to_orders.produce({"order_id": number, "total": 1})
        await deimos.run_until_idle()
        assert sorted(failing.tries) == [("orders", number) for number in (0, 0, 1, 1, 2, 2)]
        assert failing.tries[3] == failing.tries[1]  # the one that was due first
        deimos.assert_not_sent("orders-dlt")


async def test_without_moving_time_on_a_run_ends_before_what_is_not_due(make: Callable[..., Deimos]) -> None:
    app = make()
    failing = Failing(app, on_error=OnError(attempts=1, retry_topics=(3600,)))
    failing.errors = [RuntimeError("no")]
    async with DeimosHarness.running(app, QUIET) as deimos:
        await failing.to_orders.produce({"order_id": 7, "total": 1})
        await deimos.run_until_idle(advance=False)
        deimos.assert_sent_including("orders-retry-1", {"order_id": 7})
        deimos.advance(3500)
        await deimos.run_until_idle(advance=False)
        assert failing.tries == [("orders", 7)]
        deimos.advance(101)
        await deimos.run_until_idle(advance=False)
        assert failing.tries == [("orders", 7), ("orders-retry-1", 7)]
        deimos.assert_not_sent("orders-dlt")


async def test_time_moved_on_within_a_run_wakes_what_waits(make: Callable[..., Deimos]) -> None:
    app = make()
    failing = Failing(app, on_error=OnError(attempts=2, backoff=Backoff(initial=3600, maximum=3600)), ordering="key")
    failing.errors = [RuntimeError("no")]
    late = app.topic("late", key=Key.none())
    to_late = app.producer(late)
    harness: list[DeimosHarness] = []
    again = asyncio.Event()

    @app.consumer(late, group="g")
    async def move(message: Message) -> None:
        # it is busy until the other consumer has had its second attempt: nobody moves time on by itself
        while len(failing.tries) < 2:
            harness[0].advance(3600)
            await asyncio.sleep(0)
        again.set()

    async with DeimosHarness.running(app, QUIET) as deimos:
        harness.append(deimos)
        await failing.to_orders.produce({"order_id": 7, "total": 1})
        await to_late.produce("x")
        await deimos.run_until_idle()
    assert again.is_set()
    assert failing.tries == [("orders", 7)] * 2


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
async def test_time_does_not_go_back(deimos: DeimosHarness, seconds: float) -> None:
    with pytest.raises(ValueError, match="time goes forward"):
        deimos.advance(seconds)


async def test_one_attempt_never_sends_a_dead_letter(make: Callable[..., Deimos]) -> None:
    app = make()
    failing = Failing(app, on_error=OnError(attempts=1, retry_topics=(1,)))
    failing.errors = [DeadLetter("no")]
    async with DeimosHarness.running(app, QUIET) as deimos:
        await deimos.consume_message(failing.fail, {"order_id": 7, "total": 1})
        deimos.assert_not_sent("orders-dlt")
        deimos.assert_not_sent("orders-retry-1")
    assert failing.errors == []


async def test_wait_for_the_surroundings_ends_with_the_time_of_the_call(make: Callable[..., Deimos]) -> None:
    app = make()
    failing = Failing(app, on_error=OnError(wait_on=(KeyError,)))
    failing.errors = [KeyError()] * 100_000
    async with DeimosHarness.running(app, QUIET) as deimos:
        await failing.to_orders.produce({"order_id": 7, "total": 1})
        with pytest.raises(TimeoutError, match="'g' has 1 messages to go; consumer 'fail' holds 1 of topic 'orders'"):
            await deimos.run_until_idle(timeout=0.3)
    assert len(failing.tries) > 1


# --- the application and its surroundings ----------------------------------------------------------------------


async def test_application_and_its_settings_are_as_before_after_the_block(shop: Shop) -> None:
    async with DeimosHarness.running(shop.app, {"consumers.max_records": 7}, {"consumers": {"max_records": 8}}):
        assert shop.app.settings.embedded
        assert shop.app.settings.consumers.max_records == 8
        assert shop.app.settings.consumers.reraise_errors
    assert not shop.app.settings.embedded
    assert not shop.app.settings.consumers.reraise_errors
    with pytest.raises(NotRunningError):
        await shop.to_notes.produce("x", key="k")


async def test_each_run_begins_with_empty_brokers(shop: Shop) -> None:
    for _ in range(2):
        async with DeimosHarness.running(shop.app) as deimos:
            await shop.to_orders.produce({"order_id": 1, "total": 1})
            await deimos.run_until_idle()
            assert len(deimos.sent_messages("invoices")) == 1


async def test_what_is_no_application_and_what_a_test_cannot_set_are_refused(shop: Shop) -> None:
    with pytest.raises(ConfigurationError, match="is a Deimos, not Router"):
        async with DeimosHarness.running(Router()):  # type: ignore[arg-type]
            pytest.fail("it must not run")
    with pytest.raises(ConfigurationError, match="'embedded' cannot be set by a test"):
        async with DeimosHarness.running(shop.app, {"embedded": False}):
            pytest.fail("it must not run")


async def test_registry_options_of_production_do_not_matter(make: Callable[..., Deimos]) -> None:
    app = make({"schema.auto_register": False})
    to_orders = app.producer(app.topic("orders", schema="com.acme.Order", key=Key.none(), use_latest_version=True))
    async with DeimosHarness.running(app) as deimos:
        await to_orders.produce({"order_id": 1, "total": 1})
        deimos.assert_sent_including("orders", {"order_id": 1})


@pytest.mark.parametrize("source", ["url", "engine", "fresh"])
async def test_session_comes_from_the_engine_the_url_or_a_fresh_file(
    make: Callable[..., Deimos], tmp_path: Path, source: str
) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'own.sqlite3'}"
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text("create table found (word text)"))
    app = make({"database.url": url} if source == "url" else {}, engine=engine if source == "engine" else None)
    tables: list[str] = []

    @app.consumer(app.topic("notes"), group="g")
    async def look(message: Message, session: AsyncSession) -> None:
        tables.extend(
            await session.scalars(
                text("select name from sqlite_master where type = 'table' and name not like 'sqlite%'")
            )
        )

    look.__annotations__["session"] = AsyncSession
    async with DeimosHarness.running(app) as deimos:
        await deimos.consume_message(look, "x")
    await engine.dispose()
    assert set(tables) == (set(framework.tables) if source == "fresh" else {"found"})
    assert app._engine is (engine if source == "engine" else None)


@pytest.mark.parametrize("within", [False, True])
async def test_messages_of_the_outbox_are_sent_when_their_transaction_is_committed(
    make: Callable[..., Deimos], *, within: bool
) -> None:
    app = make({"producers.backend": "outbox"})
    producer = app.producer(app.topic("notes", key=Key.plain()))
    async with DeimosHarness.running(app) as deimos:
        if within:
            async with app.transaction():
                await producer.produce(b"x", key="k")
                deimos.assert_not_sent("notes", b"x")
            with pytest.raises(ZeroDivisionError):
                async with app.transaction():
                    await producer.produce(b"rolled back", key="k")
                    raise ZeroDivisionError
        else:
            await producer.produce(b"x", key="k")
        deimos.assert_sent("notes", b"x", key="k")
        assert len(deimos.sent_messages()) == 1
