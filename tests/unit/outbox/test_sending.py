"""What is known of a topic is asked again before a row of it is said to be one that cannot be sent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from deimos_async.brokers.memory import MemoryBroker
from deimos_async.brokers.protocol import NewTopic, ProducerOptions, TopicLimits
from deimos_async.database.outbox.protocol import OutboxRow
from deimos_async.outbox.book import RECENT, TopicBook
from deimos_async.outbox.sending import Outcome, Sender


class Place:
    """A sender, its clock, and what the topic takes."""

    def __init__(self) -> None:
        self.now = 0.0
        self.broker = Broker(self)
        self.takes = 1000
        self.asked = 0
        brokers = {"default": self.broker}
        self.sender = Sender(
            brokers,
            ProducerOptions(),
            TopicBook(brokers, lambda topic: "default", lambda: self.now),
            is_compacted=lambda topic: False,
            may_send=lambda shards: True,
        )

    async def send(self, size: int) -> Outcome:
        value = b"x" * size
        at = "2026-01-01 00:00:00"
        row = OutboxRow(1, 1, 1, "orders", b"k", value, None, None, None, None, "id", at, len(value) + 1)
        return await self.sender.send("orders", [row])


class Broker(MemoryBroker):
    def __init__(self, place: Place) -> None:
        super().__init__(partitions=1)
        self._place = place

    async def limits(self, names: Iterable[str]) -> Mapping[str, TopicLimits]:
        self._place.asked += 1
        return dict.fromkeys(names, TopicLimits(1, max_message_bytes=self._place.takes))


async def made() -> Place:
    place = Place()
    await place.broker.start()
    await place.broker.create_topics([NewTopic("orders", 1)])
    return place


async def test_row_that_was_too_large_is_sent_once_its_topic_takes_it() -> None:
    place = await made()
    assert [problem.code for _, problem in (await place.send(2000)).poison] == ["too_large"]
    place.takes = 5000
    place.now += RECENT
    outcome = await place.send(2000)
    assert not outcome.poison
    assert len(outcome.done) == 1
    await place.sender.stop()


async def test_topic_is_not_asked_again_for_rows_that_can_be_sent_nor_for_each_that_cannot() -> None:
    place = await made()
    for _ in range(5):
        assert len((await place.send(10)).done) == 1
    place.now += RECENT
    for _ in range(5):
        assert (await place.send(2000)).poison
    assert place.asked == 2
    await place.sender.stop()
