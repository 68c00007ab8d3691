"""Sending dead letters back to the topics they came from.

A letter is replayed at least once: it counts as replayed when the broker has acknowledged the message and what was
replayed is stored, list by list. A replay that is ended between the two repeats the last list when it runs again. Of
replays that run at the same time the one that began last goes on (see `claim.py`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field

from deimos_async.assembly import PlannedTopic
from deimos_async.brokers.protocol import BrokerProducer, ProducerOptions, StoredOffset
from deimos_async.errors import ConfigurationError, DeliveryError
from deimos_async.letters.claim import Claim
from deimos_async.letters.desk import LetterDesk, LetterTopic
from deimos_async.letters.letter import Letter, LetterFilter, back_to_origin
from deimos_async.letters.progress import Progress
from deimos_async.message import OutboundRecord, TopicPartition

__all__ = ["Pace", "Replay", "ReplayOptions", "ReplayReport"]

_CHUNK = 500
"""Most messages between two notes of what was replayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayOptions:
    """What is replayed, and how.

    Attributes:
        wanted: Which letters.
        to: Topic of the application that all of them go to, with or without prefix, also letters that say that they
            came from elsewhere; the letters are then of one dead-letter topic. None: the topic that theirs belongs to.
        only_group: Marks each message for the group that gave it up; other groups pass it over.
        max_replays: Messages that were replayed so often already stay where they are.
        by_key: Choose the partition by the key, instead of the one that the message came from.
        limit: At most so many letters; None: all.
        rate: At most so many a second, above 0 and finite; None: as fast as the brokers take them.
        again: Also letters that were replayed before.
        dry_run: Count only: nothing is sent, nothing is stored.

    Raises:
        ValueError: `rate` is no such number.
    """

    wanted: LetterFilter = field(default_factory=LetterFilter)
    to: str | None = None
    only_group: bool = False
    max_replays: int = 5
    by_key: bool = False
    limit: int | None = None
    rate: float | None = None
    again: bool = False
    dry_run: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ValueError(f"rate={self.rate!r}: letters a second, above 0 and finite")


@dataclass(slots=True)
class ReplayReport:
    """What a replay has done.

    Attributes:
        replayed: Messages by the topic they went to (or would go to, in a dry run).
        passed_over: Letters that were left where they are, by the reason.
        refused: Letters that the brokers did not take, by what they said; the others were sent all the same.
    """

    replayed: Counter[str] = field(default_factory=Counter)
    passed_over: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


class Pace:
    """Keeps to a rate: says how long to wait before so many more.

    Args:
        rate: Messages a second; None: never wait.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._due: float | None = None

    @property
    def chunk(self) -> int:
        """How many messages may go at once: about what half a second allows."""
        return _CHUNK if self.rate is None else max(1, min(_CHUNK, int(self.rate / 2)))

    def delay(self, count: int, now: float) -> float:
        """Seconds to wait before the next `count` messages.

        Args:
            now: Seconds of a clock that only grows.
        """
        if self.rate is None:
            return 0.0
        begin = now if self._due is None else max(now, self._due)
        self._due = begin + count / self.rate
        return begin - now


class Replay:
    """One replay of the letters of some topics.

    Args:
        desk: Where the letters are.
        topics: Dead-letter topics to read.
        on_progress: Told after each list how many letters were looked at, and how many there are.
    """

    def __init__(
        self,
        desk: LetterDesk,
        topics: Sequence[LetterTopic],
        options: ReplayOptions,
        *,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._desk = desk
        self._topics = topics
        self._options = options
        self._on_progress = on_progress
        self._pace = Pace(options.rate)
        self._partitions: dict[tuple[str, str], int] = {}
        self._readers = {(consumer.kafka_group, consumer.topic.kafka_name) for consumer in desk.plan.consumers}
        self._claims: dict[str, Claim] = {}
        self._targets: Mapping[LetterTopic, PlannedTopic] = {}
        self._seen = 0
        self._total = 0
        self.report = ReplayReport()

    async def run(self) -> ReplayReport:
        """Replay; what is written into the topics meanwhile is left for the next time.

        Cancelled: what was acknowledged but not noted is replayed again by the next one.

        Raises:
            ConfigurationError: More letters were passed over than can be remembered; or there is no topic `to`, or it
                was given for letters of several topics.
            DeliveryError: A message was not acknowledged, and may be the next time; what was acknowledged is noted.
            CommitError: What was replayed could not be noted, or, with `lost`, another replay has begun meanwhile; what
                was sent last and not noted is replayed again.
        """
        self._targets = {topic: self._target(topic) for topic in self._topics}
        bounds = await self._desk.bounds(self._topics)
        if not self._options.dry_run:
            # Before the notes are read: whoever notes something afterwards sees the claim and ends.
            self._claims = {
                cluster: Claim(self._desk.brokers[cluster], self._desk.claim_group, ids)
                for cluster, ids in bounds.items()
            }
            for claim in self._claims.values():
                await claim.take()
        progress = {cluster: await self._desk.progress(cluster, ids) for cluster, ids in bounds.items()}
        ranges = {
            cluster: {
                id: (begin if self._options.again else max(begin, progress[cluster][id].position), end)
                for id, (begin, end) in ids.items()
            }
            for cluster, ids in bounds.items()
        }
        self._total = sum(stop - start for ids in ranges.values() for start, stop in ids.values())
        self._on_progress(0, self._total)
        for cluster, ids in ranges.items():
            await self._learn_partitions(cluster)
            async with AsyncExitStack() as stack:
                producer = None if self._options.dry_run else await self._producer(cluster, stack)
                await self._replay(cluster, ids, progress[cluster], producer)
        return self.report

    def _target(self, topic: LetterTopic) -> PlannedTopic:
        """Where letters of a dead-letter topic go."""
        name = self._options.to
        if name is None:
            return topic.source
        if len(self._topics) > 1:
            known = ", ".join(topic.name for topic in self._topics)
            raise ConfigurationError(f"a replay to {name!r} takes the letters of one topic, not of {known}; name one")
        found = self._desk.declared(topic.cluster, name) or self._desk.declared(topic.cluster, self._desk.prefix + name)
        if found is None:
            raise ConfigurationError(f"{name!r} is no topic of the application in cluster {topic.cluster!r}")
        return found

    async def _learn_partitions(self, cluster: str) -> None:
        names = [topic.kafka_name for topic in self._desk.plan.topics.values() if topic.options.cluster == cluster]
        for name, info in (await self._desk.brokers[cluster].topics(names)).items():
            self._partitions[cluster, name] = info.partitions

    async def _producer(self, cluster: str, stack: AsyncExitStack) -> BrokerProducer:
        producers = self._desk.settings.producers
        producer = self._desk.brokers[cluster].producer(
            ProducerOptions(
                delivery_timeout=producers.delivery_timeout,
                compression=None if producers.compression == "none" else producers.compression,
                max_batch_bytes=producers.max_batch_bytes,
                max_request_bytes=producers.max_request_bytes,
            )
        )
        stack.push_async_callback(producer.stop)
        await producer.start()
        return producer

    async def _replay(
        self,
        cluster: str,
        ranges: Mapping[TopicPartition, tuple[int, int]],
        progress: dict[TopicPartition, Progress],
        producer: BrokerProducer | None,
    ) -> None:
        sources = {topic.name: topic for topic in self._topics if topic.cluster == cluster}
        expected = {id: start for id, (start, _) in ranges.items()}
        async with aclosing(self._desk.letters(cluster, ranges)) as reading:
            async for letters in reading:
                first = letters[0].address
                id = TopicPartition(first.topic, first.partition)
                chosen = [
                    (letter, message)
                    for letter in letters
                    if (message := await self._message(cluster, sources[id.topic], progress[id], letter)) is not None
                ]
                done = progress[id]
                for letter in letters:
                    # Offsets that hold no record (compaction, markers of transactions) must not stay behind as gaps.
                    done.mark(expected[id], letter.address.offset)
                    expected[id] = letter.address.offset + 1
                for chunk in _cut(chosen[: self._left()], self._pace.chunk):
                    if producer is not None:
                        done = progress[id] = await self._send(cluster, id, done, producer, chunk)
                    else:
                        self.report.replayed.update(message.topic for _, message in chunk)
                self._seen += len(letters)
                self._on_progress(min(self._seen, self._total), self._total)
                if self._left() == 0:
                    break
        self._on_progress(self._total, self._total)

    def _left(self) -> int | None:
        limit = self._options.limit
        return None if limit is None else limit - self.report.replayed.total()

    async def _message(self, cluster: str, topic: LetterTopic, done: Progress, letter: Letter) -> OutboundRecord | None:
        """What goes back for a letter; None if it stays, with the reason counted."""
        made = await self._message_or_reason(cluster, topic, done, letter)
        if isinstance(made, str):
            self.report.passed_over[made] += 1
            return None
        return made

    async def _message_or_reason(
        self, cluster: str, topic: LetterTopic, done: Progress, letter: Letter
    ) -> OutboundRecord | str:
        options = self._options
        if letter.address.offset in done and not options.again:
            return "replayed before"
        if not await self._desk.admits(options.wanted, letter, topic.source):
            return "not asked for"
        # The headers decide only whether it goes: whoever may write into the dead-letter topic, or could write headers
        # of this name when the letter was made, could else send messages to any topic of the application. They do not
        # say it where there was no room for them, or another program wrote the letter.
        target = self._targets[topic].kafka_name
        if options.to is None and letter.topic is not None and letter.topic != target:
            return f"did not come from {target!r}, to which {topic.name!r} belongs, as their headers say"
        count = self._partitions.get((cluster, target))
        if count is None:
            return f"{target!r} does not exist any more"
        if letter.replays >= options.max_replays:
            return f"was replayed {options.max_replays} times or more"
        if options.only_group and (letter.group, target) not in self._readers:
            return f"group {letter.group!r} does not read {target!r} in the application"
        partition = letter.address.partition if letter.partition is None else letter.partition
        return back_to_origin(
            letter,
            topic=target,
            partition=None if options.by_key or partition >= count else partition,
            group=letter.group if options.only_group else None,
        )

    async def _send(
        self,
        cluster: str,
        id: TopicPartition,
        done: Progress,
        producer: BrokerProducer,
        chunk: Sequence[tuple[Letter, OutboundRecord]],
    ) -> Progress:
        """Send, and note what was acknowledged; returns what is done afterwards."""
        expected = _with_marks(done, chunk)
        if expected.encoded() is None:
            raise ConfigurationError(
                f"more letters of {id.topic}[{id.partition}] were passed over than can be remembered, from offset "
                f"{done.position} on: replay these without filters, or drop them by "
                f"`dead-letters drop --before {chunk[0][0].address}`, and go on then"
            )
        await asyncio.sleep(self._pace.delay(len(chunk), asyncio.get_running_loop().time()))
        await self._claims[cluster].check()
        failure = None
        try:
            await producer.send([message for _, message in chunk])
        except DeliveryError as error:
            failure = error
            deliveries = error.deliveries or [None] * len(chunk)
            chunk = [pair for pair, delivery in zip(chunk, deliveries, strict=True) if delivery is not None]
            expected = _with_marks(done, chunk)
        if chunk:
            await self._claims[cluster].check()
            stored = StoredOffset(expected.position, expected.encoded() or "")
            await self._desk.brokers[cluster].store_offsets(self._desk.progress_group, {id: stored})
        self.report.replayed.update(message.topic for _, message in chunk)
        if failure is not None:
            if failure.retriable or failure.unknown:
                raise failure
            self.report.refused[str(failure)] += len(failure.indexes)
        return expected


def _with_marks(done: Progress, chunk: Sequence[tuple[Letter, OutboundRecord]]) -> Progress:
    marked = done.copy()
    for letter, _ in chunk:
        marked.mark(letter.address.offset, letter.address.offset + 1)
    return marked


def _cut(
    chosen: Sequence[tuple[Letter, OutboundRecord]], size: int
) -> Iterator[Sequence[tuple[Letter, OutboundRecord]]]:
    for start in range(0, len(chosen), size):
        yield chosen[start : start + size]
