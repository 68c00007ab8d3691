"""Topics that the application needs: which exist, and making those that do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deimos_async.assembly import RequiredTopic
from deimos_async.brokers.protocol import Broker, NewTopic
from deimos_async.errors import ConfigurationError

__all__ = ["TopicState", "check_topics", "create_topics", "topic_states"]


@dataclass(frozen=True, slots=True)
class TopicState:
    """A required topic beside what its cluster has. `existing`: partitions found, None where it is missing."""

    required: RequiredTopic
    existing: int | None


async def topic_states(brokers: Mapping[str, Broker], required: Sequence[RequiredTopic]) -> list[TopicState]:
    """Ask each cluster once."""
    found: dict[tuple[str, str], int] = {}
    for cluster in {topic.cluster for topic in required}:
        names = [topic.name for topic in required if topic.cluster == cluster]
        for name, info in (await brokers[cluster].topics(names)).items():
            found[cluster, name] = info.partitions
    return [TopicState(topic, found.get((topic.cluster, topic.name))) for topic in required]


async def create_topics(brokers: Mapping[str, Broker], required: Sequence[RequiredTopic]) -> list[TopicState]:
    """Make what is missing; returns what was made. A dead-letter topic takes the partition count of its source."""
    states = await topic_states(brokers, required)
    partitions = {
        (state.required.cluster, state.required.name): state.existing or state.required.partitions for state in states
    }
    missing = [state for state in states if state.existing is None]
    for cluster in {state.required.cluster for state in missing}:
        await brokers[cluster].create_topics(
            [
                NewTopic(
                    topic.name,
                    partitions.get((cluster, topic.source or topic.name), topic.partitions),
                    topic.replication_factor,
                    topic.config,
                )
                for topic in (state.required for state in missing)
                if topic.cluster == cluster
            ]
        )
    return missing


async def check_topics(brokers: Mapping[str, Broker], required: Sequence[RequiredTopic]) -> None:
    """Raises ConfigurationError naming every topic that is missing, or a dead-letter topic with too few partitions."""
    states = await topic_states(brokers, required)
    existing = {(state.required.cluster, state.required.name): state.existing for state in states}
    problems = []
    for state in states:
        topic = state.required
        where = "" if topic.cluster == "default" else f" in cluster {topic.cluster!r}"
        if state.existing is None:
            if topic.is_optional:
                continue
            what = f"dead-letter topic {topic.name!r} of {topic.source!r}" if topic.source else f"topic {topic.name!r}"
            problems.append(
                f"{what} does not exist{where}; make it with `python -m deimos_async topics create APP`, "
                "or set 'kafka.create_topics' to true"
            )
        elif topic.source is not None:
            count = existing.get((topic.cluster, topic.source))
            if count is not None and state.existing < count:
                problems.append(
                    f"dead-letter topic {topic.name!r} has {state.existing} partitions{where}, but {topic.source!r} "
                    f"has {count}; dead letters keep their partition: give it at least {count}"
                )
    if problems:
        raise ConfigurationError(*problems)
