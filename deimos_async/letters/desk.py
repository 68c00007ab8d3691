"""Dead-letter topics of an application: which there are, reading them, and making their letters readable."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deimos_async.assembly import Plan, PlannedTopic
from deimos_async.brokers.protocol import Broker
from deimos_async.errors import ConfigurationError, DeimosError
from deimos_async.letters.letter import Letter, LetterAddress, LetterFilter, read_letter
from deimos_async.letters.progress import Progress
from deimos_async.letters.summary import LetterSummary, NewestLetters
from deimos_async.message import TopicPartition

if TYPE_CHECKING:  # start-up time: pydantic is loaded with the application
    from deimos_async.settings import Settings

__all__ = ["CLAIM_GROUP", "PROGRESS_GROUP", "LetterDesk", "LetterTopic", "Opened"]

PROGRESS_GROUP = "deimos-dead-letters"
"""Group whose offsets say what was replayed; `producers.topic_prefix` comes before it. It never has members."""
CLAIM_GROUP = "deimos-dead-letters-claims"
"""Group whose offsets say which replay began last; as for the other one."""


@dataclass(frozen=True, slots=True, eq=False)
class LetterTopic:
    """A dead-letter topic of the application.

    Attributes:
        name: Name in Kafka.
        source: The topic whose letters it holds.
        partitions: How many it has; 0 where it does not exist.
    """

    cluster: str
    name: str
    source: PlannedTopic
    partitions: int

    def ids(self) -> list[TopicPartition]:
        """Its partitions."""
        return [TopicPartition(self.name, number) for number in range(self.partitions)]


@dataclass(frozen=True, slots=True)
class Opened:
    """What was readable of a letter: each a value, or the reason why there is none.

    Attributes:
        key, payload: Decoded by the codec of the topic that the message came from.
        problems: By `"key"` and `"payload"`: why it could not be decoded.
    """

    key: Any = None
    payload: Any = None
    problems: Mapping[str, str] = field(default_factory=dict)


class LetterDesk:
    """Reads the dead letters of an application. Its brokers are connected; nothing else of it needs to run.

    Args:
        brokers: By the cluster's name.
        plan: What the application declares.
        settings: The application's.
    """

    def __init__(self, brokers: Mapping[str, Broker], plan: Plan, settings: Settings) -> None:
        self.brokers = brokers
        self.plan = plan
        self.settings = settings
        self.prefix = settings.producers.topic_prefix
        self.progress_group = self.prefix + PROGRESS_GROUP
        self.claim_group = self.prefix + CLAIM_GROUP

    # --- which topics ------------------------------------------------------------------------------------------

    async def topics(self, names: Sequence[str] = ()) -> list[LetterTopic]:
        """Dead-letter topics of the application's consumers, those that do not exist left out.

        Args:
            names: Only these; names of dead-letter topics or of the topics they belong to, with or without prefix.

        Raises:
            ConfigurationError: A name is none of them, or that topic does not exist.
        """
        found: dict[tuple[str, str], PlannedTopic] = {}
        for consumer in self.plan.consumers:
            found.setdefault((consumer.topic.options.cluster, consumer.dead_letter_topic), consumer.topic)
        counts: dict[tuple[str, str], int] = {}
        for cluster in {cluster for cluster, _ in found}:
            existing = await self.brokers[cluster].topics([name for owner, name in found if owner == cluster])
            counts |= {(cluster, name): info.partitions for name, info in existing.items()}
        topics = [
            LetterTopic(cluster, name, source, counts.get((cluster, name), 0))
            for (cluster, name), source in found.items()
        ]
        if not names:
            return [topic for topic in topics if topic.partitions]
        chosen, problems = [], []
        for name in names:
            fitting = [topic for topic in topics if name in self._names(topic)]
            if not fitting:
                known = ", ".join(topic.name for topic in topics) or "none"
                problems.append(f"{name!r} is no dead-letter topic of the application; it has {known}")
            elif not any(topic.partitions for topic in fitting):
                problems.append(f"dead-letter topic {fitting[0].name!r} does not exist")
            chosen += [topic for topic in fitting if topic.partitions and topic not in chosen]
        if problems:
            raise ConfigurationError(*problems)
        return chosen

    def own_names(self, topic: LetterTopic) -> set[str]:
        """Names of a dead-letter topic, with and without prefix."""
        return {topic.name, topic.name.removeprefix(self.prefix)}

    def _names(self, topic: LetterTopic) -> set[str]:
        return {*self.own_names(topic), topic.source.name, topic.source.kafka_name}

    def group_name(self, group: str) -> str:
        """Name in Kafka of a group that is given with or without the prefix."""
        known = {consumer.kafka_group for consumer in self.plan.consumers}
        return group if group in known or group.startswith(self.prefix) else self.prefix + group

    def declared(self, cluster: str, kafka_name: str | None) -> PlannedTopic | None:
        """The application's topic of that name in Kafka."""
        for topic in self.plan.topics.values():
            if topic.kafka_name == kafka_name and topic.options.cluster == cluster:
                return topic
        return None

    # --- reading -----------------------------------------------------------------------------------------------

    async def bounds(self, topics: Iterable[LetterTopic]) -> dict[str, dict[TopicPartition, tuple[int, int]]]:
        """By cluster and partition: first offset and end, as they are now."""
        found: dict[str, dict[TopicPartition, tuple[int, int]]] = {}
        by_cluster: dict[str, list[TopicPartition]] = {}
        for topic in topics:
            by_cluster.setdefault(topic.cluster, []).extend(topic.ids())
        for cluster, ids in by_cluster.items():
            broker = self.brokers[cluster]
            begins, ends = await broker.begin_offsets(ids), await broker.end_offsets(ids)
            found[cluster] = {id: (begins[id], ends[id]) for id in ids}
        return found

    async def progress(
        self, cluster: str, bounds: Mapping[TopicPartition, tuple[int, int]]
    ) -> dict[TopicPartition, Progress]:
        """What was replayed of these partitions.

        Raises:
            ConfigurationError: Another version, or another program, has stored it.
        """
        stored = await self.brokers[cluster].stored_offsets(self.progress_group)
        found = {}
        for id, (begin, end) in bounds.items():
            if id not in stored or stored[id].offset > end:  # a topic that was deleted and made anew begins anew
                found[id] = Progress(begin)
                continue
            try:
                found[id] = Progress.decode(*stored[id])
            except ValueError as error:
                raise ConfigurationError(
                    f"group {self.progress_group!r}: what it has stored for {id.topic}[{id.partition}] cannot be "
                    f"read ({error}); delete the group to begin anew"
                ) from error
            found[id].mark(0, begin)
        return found

    async def letters(
        self, cluster: str, ranges: Mapping[TopicPartition, tuple[int, int]], *, limit: int | None = None
    ) -> AsyncGenerator[list[Letter], None]:
        """Letters of partitions in lists of one partition each, ascending. See `Broker.read`."""
        async with aclosing(self.brokers[cluster].read(ranges, limit=limit)) as reading:
            async for records in reading:
                yield [read_letter(record) for record in records]

    async def admits(self, wanted: LetterFilter, letter: Letter, source: PlannedTopic) -> bool:
        """Whether the letter fits, its key included. `source`: the topic that its dead-letter topic belongs to."""
        if not wanted.admits(letter):
            return False
        return wanted.key is None or await self._has_key(letter, wanted.key, source)

    @staticmethod
    async def _has_key(letter: Letter, key: str, source: PlannedTopic) -> bool:
        raw = letter.record.key
        if raw is None or raw == key.encode(errors="surrogateescape"):  # arguments may hold bytes that are no text
            return raw is not None
        try:
            value = await source.codec.decode_key(raw)
        except DeimosError as error:
            if error.retriable:
                raise
            return False  # only its bytes could have matched
        if isinstance(value, bytes):
            return False
        if isinstance(value, str | int):
            return str(value) == key
        try:
            return bool(json.loads(json.dumps(value, default=str)) == json.loads(key))
        except (ValueError, RecursionError):
            return False

    async def summarize(
        self, topics: Sequence[LetterTopic], wanted: LetterFilter, *, newest: int
    ) -> tuple[dict[LetterTopic, LetterSummary], list[Letter]]:
        """Counts for each topic, and the letters that failed last.

        Args:
            newest: At most so many letters.
        """
        summaries = {topic: LetterSummary() for topic in topics}
        last = NewestLetters(newest)
        for cluster, bounds in (await self.bounds(topics)).items():
            by_name = {topic.name: topic for topic in topics if topic.cluster == cluster}
            progress = await self.progress(cluster, bounds)
            async with aclosing(self.letters(cluster, bounds)) as reading:
                async for letters in reading:
                    topic = by_name[letters[0].address.topic]
                    done = progress[TopicPartition(topic.name, letters[0].address.partition)]
                    for letter in letters:
                        if await self.admits(wanted, letter, topic.source):
                            summaries[topic].add(letter, replayed=letter.address.offset in done)
                            last.add(letter)
        return summaries, last.letters()

    async def find(self, address: LetterAddress) -> tuple[LetterTopic, Letter] | None:
        """The letter at an address; None if there is none (any more).

        Raises:
            ConfigurationError: The topic is no dead-letter topic of the application.
        """
        for topic in await self.topics([address.topic]):
            if address.topic not in self.own_names(topic):
                continue
            id = TopicPartition(topic.name, address.partition)
            if id not in topic.ids():
                continue
            async with aclosing(
                self.letters(topic.cluster, {id: (address.offset, address.offset + 1)}, limit=1)
            ) as reading:
                async for letters in reading:
                    return topic, letters[0]
        return None

    async def open(self, topic: LetterTopic, letter: Letter) -> Opened:
        """Key and payload, decoded where they can be.

        Raises:
            RegistryUnavailableError: The schema registry is away; that says nothing about the letter.
        """
        codec = topic.source.codec
        values, problems = {}, {}
        for name, decode, data in (
            ("key", codec.decode_key, letter.record.key),
            ("payload", codec.decode_payload, letter.record.value),
        ):
            try:
                values[name] = await decode(data)
            except DeimosError as error:
                if error.retriable:
                    raise
                problems[name] = str(error)
        return Opened(values.get("key"), values.get("payload"), problems)
