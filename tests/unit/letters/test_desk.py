"""Dead letters of an application in memory: found, replayed, deleted."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from deimos_async import DeadLetter, Deimos, Key, Message, OnError
from deimos_async.brokers.memory import MemoryBroker
from deimos_async.brokers.protocol import NewTopic, ProducerOptions, StoredOffset
from deimos_async.consuming import dead_letters
from deimos_async.errors import ConfigurationError, DeliveryError
from deimos_async.lag import lags
from deimos_async.letters.desk import LetterDesk
from deimos_async.letters.dropping import drop, drops_all, drops_before, drops_replayed
from deimos_async.letters.letter import LetterAddress, LetterFilter
from deimos_async.letters.replay import Pace, Replay, ReplayOptions, ReplayReport
from deimos_async.message import OutboundRecord, TopicPartition

DEADLINE = 20.0
ONCE = OnError(attempts=1)


class Shop:
    """Two groups read orders; a value that is in `broken[group]` fails there."""

    def __init__(self, make_app: Callable[..., Deimos], progress: Any) -> None:
        self.app = make_app({"producers.topic_prefix": "p."})
        self.progress = progress
        self.handled: dict[str, Counter[bytes]] = {"billing": Counter(), "audit": Counter()}
        self.broken: dict[str, set[bytes]] = {"billing": set(), "audit": set()}
        orders = self.app.topic("orders", key=Key.plain(), partitions=2)
        self.to_orders = self.app.producer(orders)

        @self.app.consumer(orders, group="billing", on_error=ONCE)
        async def bill(message: Message) -> None:
            self.handle("billing", message)

        @self.app.consumer(orders, group="audit", on_error=ONCE, batch=True)
        async def audit(messages: list[Message]) -> None:
            for message in messages:
                self.handle("audit", message)

    def handle(self, group: str, message: Message) -> None:
        self.progress()
        if message.payload in self.broken[group]:
            raise KeyError("broken") if message.payload.startswith(b"k") else ValueError("broken")
        self.handled[group][message.payload] += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[LetterDesk]:
        async with self.app.running():
            running = self.app._started("test")
            assert running.plan is not None
            yield LetterDesk(running.brokers, running.plan, self.app.settings)

    @property
    def broker(self) -> MemoryBroker:
        broker = self.app._started("test").brokers["default"]
        assert isinstance(broker, MemoryBroker)
        return broker

    async def place(self, *values: bytes) -> None:
        for value in values:
            await self.to_orders.produce(value, key=value.decode())

    async def settled(self) -> None:
        """Until both groups have committed everything."""
        async with asyncio.timeout(DEADLINE):
            while not all(self.is_through(group) for group in self.handled):
                await self.broker.changed()

    def is_through(self, group: str) -> bool:
        lag = self.broker.lag(f"p.{group}")
        return bool(lag) and not any(lag.values())

    def counts(self, group: str) -> dict[bytes, int]:
        return dict(self.handled[group])


@pytest.fixture
def shop(make_app: Callable[..., Deimos], progress: Any) -> Shop:
    return Shop(make_app, progress)


async def replay(desk: LetterDesk, **options: Any) -> ReplayReport:
    return await Replay(desk, await desk.topics(), ReplayOptions(**options)).run()


def passed(report: ReplayReport) -> dict[str, int]:
    return dict(report.passed_over)


async def test_letters_are_counted_by_error_and_group(shop: Shop) -> None:
    shop.broken["billing"] = {b"k1", b"v1"}
    shop.broken["audit"] = {b"k1"}
    async with shop.running() as desk:
        await shop.place(b"k1", b"v1", b"fine")
        await shop.settled()
        ((topic, summary),) = (await desk.summarize(await desk.topics(), LetterFilter(), newest=2))[0].items()
        assert (topic.name, topic.source.name, topic.partitions) == ("p.orders-dlt", "orders", 2)
        assert (summary.count, summary.replayed) == (3, 0)
        assert summary.by_error == {"builtins.KeyError": 2, "builtins.ValueError": 1}
        assert summary.by_group == {"p.billing": 2, "p.audit": 1}
        wanted = LetterFilter(groups=(desk.group_name("billing"),), key="v1")
        found, last = await desk.summarize(await desk.topics(), wanted, newest=9)
        assert [summary.count for summary in found.values()] == [1]
        assert [letter.record.value for letter in last] == [b"v1"]


@pytest.mark.parametrize("name", ["orders", "p.orders", "orders-dlt", "p.orders-dlt"])
async def test_topic_is_found_by_each_of_its_names(shop: Shop, name: str) -> None:
    async with shop.running() as desk:
        assert [topic.name for topic in await desk.topics([name])] == ["p.orders-dlt"]


async def test_topic_of_somebody_else_is_refused(shop: Shop) -> None:
    async with shop.running() as desk:
        with pytest.raises(ConfigurationError, match=r"'invoices' is no dead-letter topic .* p.orders-dlt"):
            await desk.topics(["invoices"])


async def test_letter_is_found_at_its_address_and_opened(shop: Shop) -> None:
    shop.broken["billing"] = {b"v1"}
    async with shop.running() as desk:
        await shop.place(b"v1")
        await shop.settled()
        (letter,) = (await desk.summarize(await desk.topics(), LetterFilter(), newest=9))[1]
        found = await desk.find(letter.address)
        assert found is not None
        assert found[1].address == letter.address
        opened = await desk.open(*found)
        assert (opened.key, opened.payload, opened.problems) == ("v1", b"v1", {})
        topic, partition, _ = letter.address
        assert await desk.find(LetterAddress(topic.removeprefix("p."), partition, 0)) is not None
        assert await desk.find(LetterAddress(topic, partition, 99)) is None
        assert await desk.find(LetterAddress(topic, 99, 0)) is None


async def test_replayed_letters_are_handled_by_every_group_and_not_replayed_again(shop: Shop) -> None:
    shop.broken["billing"] = {b"v1", b"v2"}
    async with shop.running() as desk:
        await shop.place(b"v1", b"v2", b"fine")
        await shop.settled()
        shop.broken["billing"] = set()
        report = await replay(desk)
        assert (report.replayed, passed(report)) == ({"p.orders": 2}, {})
        await shop.settled()
        assert shop.counts("billing") == {b"v1": 1, b"v2": 1, b"fine": 1}
        assert shop.counts("audit") == {b"v1": 2, b"v2": 2, b"fine": 1}
        again = await replay(desk)
        assert (again.replayed, passed(again)) == ({}, {})
        ((_, summary),) = (await desk.summarize(await desk.topics(), LetterFilter(), newest=0))[0].items()
        assert (summary.count, summary.replayed) == (2, 2)
        anyway = await replay(desk, again=True)
        assert anyway.replayed == {"p.orders": 2}


async def test_replay_for_one_group_is_passed_over_by_the_others(shop: Shop) -> None:
    shop.broken["billing"] = {b"v1", b"v2"}
    shop.broken["audit"] = {b"v2"}
    async with shop.running() as desk:
        await shop.place(b"v1", b"fine", b"v2")
        await shop.settled()
        shop.broken = {"billing": set(), "audit": set()}
        before = shop.counts("audit")  # parts of a batch that failed may have been handled twice
        report = await replay(desk, wanted=LetterFilter(groups=("p.billing",)), only_group=True)
        assert (report.replayed, passed(report)) == ({"p.orders": 2}, {"not asked for": 1})
        await shop.place(b"last")
        await shop.settled()
        assert shop.counts("billing") == {b"v1": 1, b"v2": 1, b"fine": 1, b"last": 1}
        assert shop.counts("audit") == before | {b"last": 1}
        assert b"v2" not in before


async def test_message_that_is_not_for_the_group_leaves_no_lag(shop: Shop) -> None:
    shop.broken["billing"] = {b"v1"}
    async with shop.running() as desk:
        await shop.place(b"v1")
        await shop.settled()
        shop.broken["billing"] = set()
        await replay(desk, wanted=LetterFilter(groups=("p.billing",)), only_group=True)
        await shop.settled()
        assert shop.counts("billing") == {b"v1": 1}
        assert shop.counts("audit") == {b"v1": 1}
        assert set(shop.broker.lag("p.audit").values()) == {0}


async def test_letters_passed_over_by_a_filter_are_there_for_the_next_replay(shop: Shop) -> None:
    shop.broken["billing"] = {b"k1", b"v1", b"k2", b"v2"}
    async with shop.running() as desk:
        await shop.place(b"k1", b"v1", b"k2", b"v2")
        await shop.settled()
        shop.broken["billing"] = set()
        first = await replay(desk, wanted=LetterFilter(errors=("KeyError",)))
        assert first.replayed.total() == 2
        rest = await replay(desk)
        assert rest.replayed.total() == 2
        await shop.settled()
        assert shop.counts("billing") == {b"k1": 1, b"v1": 1, b"k2": 1, b"v2": 1}
        assert (await replay(desk)).replayed.total() == 0


async def test_dry_run_sends_and_remembers_nothing(shop: Shop) -> None:
    shop.broken["billing"] = {b"v1"}
    async with shop.running() as desk:
        await shop.place(b"v1")
        await shop.settled()
        before = len(shop.broker.records("p.orders"))
        assert (await replay(desk, dry_run=True)).replayed == {"p.orders": 1}
        assert len(shop.broker.records("p.orders")) == before
        assert await shop.broker.stored_offsets(desk.progress_group) == {}
        assert (await replay(desk)).replayed == {"p.orders": 1}


async def test_limit_is_kept_and_the_rest_follows(shop: Shop) -> None:
    shop.broken["billing"] = {b"v%d" % n for n in range(5)}
    async with shop.running() as desk:
        await shop.place(*sorted(shop.broken["billing"]))
        await shop.settled()
        shop.broken["billing"] = set()
        assert (await replay(desk, limit=2)).replayed.total() == 2
        assert (await replay(desk, limit=2, rate=1e6)).replayed.total() == 2
        assert (await replay(desk, limit=2)).replayed.total() == 1
        await shop.settled()
        assert shop.counts("billing") == {b"v%d" % n: 1 for n in range(5)}


async def test_message_that_keeps_failing_is_replayed_only_so_often(shop: Shop) -> None:
    shop.broken["billing"] = {b"v1"}
    async with shop.running() as desk:
        await shop.place(b"v1")
        await shop.settled()
        for _ in range(2):
            assert (await replay(desk, max_replays=2)).replayed.total() == 1
            await shop.settled()
        report = await replay(desk, max_replays=2)
        assert (report.replayed, passed(report)) == ({}, {"was replayed 2 times or more": 1})
        letter = shop.broker.records("p.orders-dlt")[-1]
        headers = dict(letter.headers)
        assert headers["deimos-replays"] == b"2"
        assert headers["deimos-dlq-topic"] == b"p.orders"


async def bury(broker: MemoryBroker, *origins: str | None, partition: int = 0) -> None:
    """Letters with these topics of origin, in one partition."""
    producer = broker.producer(ProducerOptions())
    await producer.start()
    await producer.send(
        [
            OutboundRecord(
                "p.orders-dlt",
                key=b"k",
                value=b"v",
                headers=[]
                if origin is None
                else [
                    ("deimos-dlq-topic", origin.encode()),
                    ("deimos-dlq-group", b"gone"),
                    ("deimos-dlq-partition", b"7"),
                ],
                partition=partition,
            )
            for origin in origins
        ]
    )


async def test_letters_that_cannot_go_back_are_left_with_the_reason(shop: Shop) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, "elsewhere", "p.orders", "p.invoices")
        report = await replay(desk, dry_run=True)
        assert report.replayed == {"p.orders": 1}
        ((reason, count),) = passed(report).items()
        assert (reason.startswith("did not come from 'p.orders'"), count) == (True, 2)
        marked = await replay(desk, wanted=LetterFilter(groups=("gone",)), only_group=True, dry_run=True)
        assert passed(marked)["group 'gone' does not read 'p.orders' in the application"] == 1


@pytest.mark.parametrize("name", ["invoices", "p.invoices"])
async def test_letters_go_to_another_topic_where_that_is_said(shop: Shop, name: str) -> None:
    invoices = shop.app.topic("invoices", key=Key.plain(), partitions=1)
    shop.app.producer(invoices)
    async with shop.running() as desk:
        await bury(shop.broker, "elsewhere", "p.orders", partition=1)
        report = await replay(desk, to=name)
        assert (report.replayed, passed(report)) == ({"p.invoices": 2}, {})
        assert [dict(record.headers)["deimos-replay-topic"] for record in shop.broker.records("p.invoices")] == [
            b"p.invoices"
        ] * 2
        with pytest.raises(ConfigurationError, match="'nowhere' is no topic of the application"):
            await replay(desk, to="nowhere")
        marked = await replay(desk, to=name, wanted=LetterFilter(groups=("gone",)), only_group=True, again=True)
        assert passed(marked) == {"group 'gone' does not read 'p.invoices' in the application": 2}


async def test_letters_of_several_topics_do_not_go_to_one(shop: Shop) -> None:
    @shop.app.consumer(shop.app.topic("invoices", key=Key.plain()), group="audit")
    async def look(message: Message) -> None: ...

    async with shop.running() as desk:
        with pytest.raises(ConfigurationError, match=r"takes the letters of one topic, not of .*p\.invoices-dlt"):
            await replay(desk, to="orders")


async def test_headers_that_a_message_brings_along_do_not_steer_its_letter(shop: Shop) -> None:
    @shop.app.consumer(shop.app.topic("payments", key=Key.plain(), partitions=1), group="pay")
    async def pay(message: Message) -> None: ...

    shop.broken["billing"] = {b"v1", b"v2"}
    planted = [("topic", b"p.payments"), ("partition", b"0"), ("attempts", b"9" * 5000), ("group", b"p.pay")]
    async with shop.running() as desk:
        producer = shop.broker.producer(ProducerOptions())
        await producer.start()
        for value, prefix in ((b"v1", "deimos-dlq-"), (b"v2", "deimos-retry-")):
            headers = [(prefix + name, said) for name, said in planted]
            await producer.send([OutboundRecord("p.orders", key=b"k", value=value, headers=headers, partition=1)])
        await shop.place(b"fine")
        await shop.settled()
        assert shop.counts("audit") == {b"v1": 1, b"v2": 1, b"fine": 1}
        assert shop.counts("billing") == {b"fine": 1}
        summaries, letters = await desk.summarize(await desk.topics(["orders"]), LetterFilter(), newest=9)
        assert [summary.count for summary in summaries.values()] == [2]
        assert {(letter.topic, letter.group, letter.attempts) for letter in letters} == {("p.orders", "p.billing", 1)}
        kept = {name: value for letter in letters for name, value in letter.record.headers}
        assert kept["theirs-dlq-topic"] == kept["theirs-retry-topic"] == b"p.payments"
        shop.broken["billing"] = set()
        report = await replay(desk)
        assert (report.replayed, passed(report)) == ({"p.orders": 2}, {})
        assert shop.broker.records("p.payments") == []


async def test_headers_that_a_handler_passes_on_steer_nothing(shop: Shop) -> None:
    invoices = shop.app.topic("invoices", key=Key.plain(), partitions=1)
    to_invoices = shop.app.producer(invoices)
    requests = shop.app.topic("requests", key=Key.plain(), partitions=1)
    to_requests = shop.app.producer(requests)
    shipped: list[dict[str, bytes | None]] = []

    @shop.app.consumer(requests, group="sales", on_error=ONCE)
    async def sell(message: Message) -> None:
        if message.payload in shop.broken["billing"]:
            raise ValueError("broken")
        await to_invoices.produce(message.payload, key=message.key, headers=message.headers)

    @shop.app.consumer(invoices, group="shipping")
    async def ship(message: Message) -> None:
        shipped.append(dict(message.headers))

    shop.broken["billing"] = {b"v1"}
    async with shop.running() as desk:
        await to_requests.produce(b"v1", key="k", headers={"trace": "x"})
        async with asyncio.timeout(DEADLINE):
            while not shop.broker.records("p.requests-dlt"):
                await shop.broker.changed()
        shop.broken["billing"] = set()
        report = await replay(desk, wanted=LetterFilter(groups=("p.sales",)), only_group=True)
        assert report.replayed == {"p.requests": 1}
        async with asyncio.timeout(DEADLINE):
            while not any(shop.broker.lag("p.shipping").values()) and not shipped:
                await shop.broker.changed()
            while any(shop.broker.lag("p.shipping").values()):
                await shop.broker.changed()
    assert shipped == [{"trace": b"x"}]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="letters a second"):
        ReplayOptions(rate=rate)


async def test_letter_that_does_not_say_where_it_came_from_goes_where_its_topic_belongs(shop: Shop) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, None, partition=1)
        assert (await replay(desk)).replayed == {"p.orders": 1}
        assert [(record.partition, record.value) for record in shop.broker.records("p.orders")] == [(1, b"v")]


async def test_partition_that_does_not_exist_any_more_is_chosen_by_the_key(shop: Shop) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, "p.orders")
        await replay(desk)
        await shop.settled()
        (record,) = shop.broker.records("p.orders")
        keyed = shop.broker._partitioner.keyed(b"k", 2)
        assert record.partition == keyed
        await bury(shop.broker, "p.orders", partition=1)
        await replay(desk, by_key=True)
        assert [record.partition for record in shop.broker.records("p.orders")] == [keyed, keyed]


@contextmanager
def failing_at_the_second(shop: Shop, monkeypatch: pytest.MonkeyPatch, error: DeliveryError) -> Iterator[None]:
    """The brokers take the first and the third of three messages."""
    make = shop.broker.producer

    def failing(options: Any) -> Any:
        producer = make(options)
        send = producer.send

        async def refused(records: Any) -> Any:
            first, third = await send([records[0], records[2]])
            error.deliveries = (first, None, third)
            raise error

        producer.send = refused  # type: ignore[method-assign]
        return producer

    with monkeypatch.context() as patched:
        patched.setattr(shop.broker, "producer", failing)
        yield


@pytest.mark.parametrize("why", ["retriable", "unknown"])
async def test_delivery_that_may_be_had_later_ends_the_replay_and_the_rest_is_remembered(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, "p.orders", "p.orders", "p.orders")
        error = DeliveryError("no", indexes=[1], **{why: True})
        with failing_at_the_second(shop, monkeypatch, error), pytest.raises(DeliveryError):
            await replay(desk)
        report = await replay(desk)
        assert (report.replayed, passed(report)) == ({"p.orders": 1}, {"replayed before": 1})


async def test_message_that_the_brokers_refuse_holds_up_no_other(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, "p.orders", "p.orders", "p.orders")
        with failing_at_the_second(shop, monkeypatch, DeliveryError("too large", indexes=[1])):
            report = await replay(desk)
        assert (report.replayed, report.refused) == ({"p.orders": 2}, {"too large": 1})
        assert (await replay(desk)).replayed == {"p.orders": 1}


async def test_topic_that_was_made_anew_is_replayed_from_its_beginning(shop: Shop) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, "p.orders")
        old = {TopicPartition("p.orders-dlt", 0): StoredOffset(50, "")}
        await shop.broker.store_offsets(desk.progress_group, old)
        assert (await replay(desk)).replayed == {"p.orders": 1}


async def test_progress_that_another_program_stored_is_refused(shop: Shop) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, "p.orders")
        foreign = {TopicPartition("p.orders-dlt", 0): StoredOffset(0, "something")}
        await shop.broker.store_offsets(desk.progress_group, foreign)
        with pytest.raises(ConfigurationError, match="deimos-dead-letters"):
            await replay(desk)


def test_pace_spreads_messages_over_time() -> None:
    pace = Pace(10.0)
    assert pace.chunk == 5
    # 5 messages at 10 a second take half a second
    assert [pace.delay(5, 100.0), pace.delay(5, 100.0), pace.delay(1, 100.9)] == pytest.approx([0.0, 0.5, 0.1])
    assert pace.delay(1, 200.0) == 0.0
    assert (Pace(0.1).chunk, Pace(None).delay(9, 1.0), Pace(None).chunk) == (1, 0.0, 500)


async def test_letters_are_deleted_up_to_an_offset(shop: Shop) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, *["p.orders"] * 3)
        await bury(shop.broker, *["p.orders"] * 2, partition=1)
        topics = await desk.topics()
        (one,) = await drops_before(desk, [LetterAddress("orders-dlt", 0, 2)])
        assert (one.id, one.before, one.count, one.unreplayed) == (TopicPartition("p.orders-dlt", 0), 2, 2, 2)
        await drop(desk, [one])
        assert [record.offset for record in shop.broker.records("p.orders-dlt")] == [2, 0, 1]
        assert await drops_replayed(desk, topics) == []
        await replay(desk, limit=1)
        replayed = await drops_replayed(desk, topics)
        assert [(one.count, one.unreplayed) for one in replayed] == [(1, 0)]
        assert [(one.count, one.unreplayed) for one in await drops_all(desk, topics)] == [(1, 0), (2, 2)]
        await drop(desk, await drops_all(desk, topics))
        assert shop.broker.records("p.orders-dlt") == []


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (LetterAddress("orders-dlt", 5, 1), "has no partition 5"),
        (LetterAddress("orders-dlt", 0, 9), "ends before that offset"),
        (LetterAddress("orders", 0, 0), "'orders' is no dead-letter topic"),
    ],
)
async def test_offset_that_is_not_there_is_refused(shop: Shop, address: LetterAddress, text: str) -> None:
    async with shop.running() as desk:
        await bury(shop.broker, "p.orders")
        with pytest.raises(ConfigurationError, match=text):
            await drops_before(desk, [address])


async def test_lag_is_seen_by_group_and_partition(shop: Shop) -> None:
    async with shop.running() as desk:
        pass
    broker = MemoryBroker()
    await broker.create_topics([NewTopic("p.orders", 2)])
    producer = broker.producer(ProducerOptions())
    await producer.start()
    await producer.send(
        [OutboundRecord("p.orders", value=b"v", partition=0, timestamp=1_000_000 + n * 1000) for n in range(4)]
    )
    await broker.store_offsets("p.billing", {TopicPartition("p.orders", 0): StoredOffset(1)})
    found = await lags({"default": broker}, desk.plan, now=1010.0)
    seen = {(lag.group, lag.partition): (lag.committed, lag.messages, lag.seconds) for lag in found}
    assert seen == {
        ("p.audit", 0): (None, 4, 10.0),
        ("p.audit", 1): (None, 0, 0.0),
        ("p.billing", 0): (1, 3, 9.0),
        ("p.billing", 1): (None, 0, 0.0),
    }
    only = await lags({"default": broker}, desk.plan, now=1010.0, groups=["p.billing"])
    assert {lag.group for lag in only} == {"p.billing"}
    assert not any(lag.exceeds(max_messages=None, max_seconds=None) for lag in found)
    assert [lag.exceeds(max_messages=3, max_seconds=None) for lag in found] == [True, False, False, False]
    assert [lag.exceeds(max_messages=None, max_seconds=8.9) for lag in found] == [True, False, True, False]
    with pytest.raises(ValueError, match="max_seconds=nan"):
        found[0].exceeds(max_messages=None, max_seconds=float("nan"))
    broker.delete_records("p.orders", 0, 3)
    gone = next(lag for lag in await lags({"default": broker}, desk.plan, now=1010.0) if lag.committed == 1)
    assert gone.is_out_of_range
    assert (gone.messages, gone.exceeds(max_messages=99, max_seconds=None)) == (1, True)


async def test_consumer_of_dead_letters_stops_unless_it_says_something_else(make_app: Callable[..., Deimos]) -> None:
    app = make_app()
    to_letters = app.producer(app.topic("orders-dlt", key=Key.plain()))

    @app.consumer("orders-dlt", group="g", on_error=None)
    async def look(message: Message) -> None:
        raise ValueError("no")

    async with app.running():
        await to_letters.produce(b"v", key="k")
        async with asyncio.timeout(20):
            await app.wait_failed()


async def test_what_waits_in_retry_topics_is_lag_too(make_app: Callable[..., Deimos]) -> None:
    app = make_app()
    orders = app.topic("orders", key=Key.plain(), partitions=1)

    @app.consumer(orders, group="g", start_from="latest", on_error=OnError(retry_topics=(60.0,)))
    async def bill(message: Message) -> None: ...

    async with app.administration() as opened:
        broker = MemoryBroker()
        await broker.create_topics([NewTopic("orders", 1), NewTopic("orders-retry-1", 1)])
        producer = broker.producer(ProducerOptions())
        await producer.start()
        await producer.send([OutboundRecord(topic, value=b"v") for topic in ("orders", "orders-retry-1")])
        found = await lags({"default": broker}, opened.plan, now=0.0)
    assert {lag.topic: lag.messages for lag in found} == {"orders": 0, "orders-retry-1": 1}


async def test_consumer_of_dead_letters_may_not_ask_for_dead_letters(make_app: Callable[..., Deimos]) -> None:
    app = make_app()
    letters = app.topic("orders-dlt", key=Key.plain())

    @app.consumer(letters, group="g", on_error=OnError(then="dead_letter"))
    async def look(message: Message) -> None: ...

    with pytest.raises(ConfigurationError, match=r"consumer 'look' reads 'orders-dlt'.*then='skip'"):
        async with app.running():
            pass


async def test_dead_letter_raised_for_a_dead_letter_stops_the_consumer(
    make_app: Callable[..., Deimos], progress: Any
) -> None:
    app = make_app()
    letters = app.topic("orders-dlt", key=Key.plain())
    to_letters = app.producer(letters)

    @app.consumer(letters, group="g", on_error=OnError(then="skip"))
    async def look(message: Message) -> None:
        raise DeadLetter("no")

    async with app.running():
        await to_letters.produce(b"v", key="k")
        await app.wait_failed()
        (failure,) = app.failures.values()
    assert isinstance(failure.__cause__, ConfigurationError)
    assert "raise Skip" in str(failure.__cause__)


@pytest.mark.parametrize(
    ("topic", "template", "is_one"),
    [
        ("orders-dlt", "{topic}-dlt", True),
        ("-dlt", "{topic}-dlt", False),
        ("orders-dltx", "{topic}-dlt", False),
        ("dead.orders.x", "dead.{topic}.x", True),
        ("deadxorders.x", "dead.{topic}.x", False),
    ],
)
def test_dead_letter_topic_is_known_by_its_name(topic: str, template: str, is_one: bool) -> None:
    assert dead_letters.is_dead_letter_topic(topic, template) is is_one
