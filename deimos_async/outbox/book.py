"""What topics take, asked from the brokers from time to time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from deimos_async.brokers.protocol import Broker, TopicLimits

__all__ = ["RECENT", "TopicBook"]

_VALID = 60.0
"""Seconds for which an answer is taken as known."""
_VALID_MISSING = 1.0
"""The same, where the topic does not exist."""
RECENT = 2.0
"""The same, where a row cannot be sent by what is known."""


class TopicBook:
    """Limits of topics.

    Args:
        brokers: By the cluster's name.
        cluster_of: Cluster of a topic, by its name in Kafka.
    """

    def __init__(
        self, brokers: Mapping[str, Broker], cluster_of: Callable[[str], str], monotonic: Callable[[], float]
    ) -> None:
        self._brokers = brokers
        self.cluster_of = cluster_of
        self._monotonic = monotonic
        self._known: dict[str, tuple[float, TopicLimits | None]] = {}

    async def limits(self, topic: str, *, within: float = _VALID) -> TopicLimits | None:
        """Limits of a topic; None: it does not exist.

        Args:
            within: Seconds since when they must be known; 0: ask now.

        Raises:
            BrokerError: The brokers cannot be asked.
        """
        known = self._known.get(topic)
        if known is not None:
            asked, found = known
            if self._monotonic() - asked < min(within, _VALID_MISSING if found is None else _VALID):
                return found
        found = (await self._brokers[self.cluster_of(topic)].limits([topic])).get(topic)
        self._known[topic] = self._monotonic(), found
        return found
