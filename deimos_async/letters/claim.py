"""Which replay may go on: the one that began last.

A replay first puts a mark of its own beside every partition that it is about to read, as the text of an offset that a
group without members has stored. It looks at the marks before it sends a list, and before it notes that list. Where it
finds another's, it ends: whoever began later reads the notes after putting its mark, and goes on from there. There is
no waiting and no time-out, so that a replay that was killed stands in nobody's way.

Kafka compares nothing when it stores an offset: between the last look and the note there is a moment in which another
replay may begin. It repeats the one list that was on its way then.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable

from deimos_async.brokers.protocol import Broker, StoredOffset
from deimos_async.errors import CommitError
from deimos_async.message import TopicPartition

__all__ = ["Claim"]


class Claim:
    """One replay's claim to the partitions of one cluster.

    Args:
        group: Group whose offsets carry the marks.
    """

    def __init__(self, broker: Broker, group: str, partitions: Iterable[TopicPartition]) -> None:
        self._broker = broker
        self._group = group
        self._partitions = tuple(partitions)
        self._mark = secrets.token_hex(8)

    async def take(self) -> None:
        """Put the marks; replays that are under way there end at their next look.

        Raises:
            BrokerError: They could not be stored.
        """
        await self._broker.store_offsets(self._group, dict.fromkeys(self._partitions, StoredOffset(0, self._mark)))

    async def check(self) -> None:
        """Whether the marks still stand.

        Raises:
            CommitError: `lost`: another replay has begun since.
            BrokerError: They cannot be read.
        """
        stored = await self._broker.stored_offsets(self._group)
        for id in self._partitions:
            if id not in stored or stored[id].metadata != self._mark:
                raise CommitError(
                    f"another replay of {id.topic} has begun meanwhile and goes on; this one has ended. Of what it has "
                    "sent, the last list may come again. Run it again when the other one has ended",
                    lost=True,
                )
