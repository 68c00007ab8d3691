"""What one consumer did, added up in plain numbers and told to the metrics about once a second.

The path of a message only adds to numbers: one call of OpenTelemetry's SDK costs more than the decoding of a message.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection

from deimos_async.message import TopicPartition
from deimos_async.telemetry import names
from deimos_async.telemetry.protocol import Metrics
from deimos_async.telemetry.sampling import SampledHistogram

__all__ = ["Measurements"]

logger = logging.getLogger("deimos_async.consuming")


class Measurements:
    """Figures of one consumer. Whoever does something adds to an attribute; `tell` passes on what was added.

    Attributes:
        fetched: Messages put before the consumer, since it was made.
        handled: Messages whose handler has returned.
        failed: Calls that raised, and messages that could not be decoded, by the name of the error's class.
        retries: Attempts that are repeated in place.
        waits: Attempts put off for the surroundings.
        skipped, dead_lettered: Messages given up.
        kept: Messages put into the table of those that wait.
        drained: Those of the handled that had waited there.
        given_up: Those of the dead-lettered that had waited there.
        passed_over: Those of the skipped that are meant for other groups.
        rebalances: Assignments.
        commit_failures: Commits that could not be stored.
    """

    __slots__ = (
        "_commit",
        "_consumer",
        "_decode",
        "_metrics",
        "_poll_tags",
        "_process",
        "_told",
        "commit_failures",
        "dead_lettered",
        "drained",
        "failed",
        "fetched",
        "given_up",
        "handled",
        "kept",
        "passed_over",
        "rebalances",
        "retries",
        "skipped",
        "tags",
        "waits",
    )

    def __init__(self, metrics: Metrics, *, topic: str, group: str, consumer: str) -> None:
        self.passed_over = 0
        self.fetched = self.handled = self.retries = self.waits = self.skipped = self.dead_lettered = 0
        self.rebalances = self.commit_failures = 0
        self.kept = self.drained = self.given_up = 0
        self.failed: Counter[str] = Counter()
        self.tags = names.consumer_tags(topic=topic, group=group, consumer=consumer)
        self._consumer = consumer
        self._metrics = metrics
        self._told: Counter[tuple[str, str]] = Counter()
        self._poll_tags = names.messaging_tags("poll", topic, group=group)
        self._process = SampledHistogram(
            metrics, names.PROCESS_DURATION, names.messaging_tags("process", topic, group=group)
        )
        self._commit = SampledHistogram(
            metrics, names.OPERATION_DURATION, names.messaging_tags("commit", topic, group=group)
        )
        self._decode = SampledHistogram(metrics, names.DECODE_TIME, self.tags)

    def processed(self, seconds: float) -> None:
        """One handler call took so long (sampled)."""
        self._process.record(seconds)

    def decoded(self, seconds: float) -> None:
        """The decoding of one message took so long (sampled)."""
        self._decode.record(seconds)

    def committed(self, seconds: float) -> None:
        """One commit took so long, whether it was stored or not (sampled)."""
        self._commit.record(seconds)

    def pass_over(self, partition: TopicPartition, offsets: Collection[int]) -> None:
        """Messages at these offsets are meant for other groups, and end without being handled.

        A line for each at DEBUG. At INFO one whenever their number has doubled: a mark that does not belong there is
        seen, and a long replay for another group does not fill the log.
        """
        before = self.passed_over
        self.passed_over += len(offsets)
        self.skipped += len(offsets)
        if logger.isEnabledFor(logging.DEBUG):
            for offset in sorted(offsets):
                logger.debug("%s: %s[%d]@%d is for another group", self._consumer, *partition, offset)
        if self.passed_over.bit_length() > before.bit_length():
            logger.info(
                "%s: messages for other groups are passed over, %d up to now, the last one %s[%d]@%d",
                self._consumer, self.passed_over, *partition, max(offsets),
            )  # fmt: skip

    def tell(self) -> None:
        """Pass on what was added since the last time."""
        self._tell(names.CONSUMED, self.fetched, self._poll_tags)
        self._tell(names.HANDLED, self.handled, self.tags)
        self._tell(names.RETRIES, self.retries, self.tags)
        self._tell(names.WAITS, self.waits, self.tags)
        self._tell(names.SKIPPED, self.skipped, self.tags)
        self._tell(names.DEAD_LETTERED, self.dead_lettered, self.tags)
        self._tell(names.REBALANCES, self.rebalances, self.tags)
        self._tell(names.COMMIT_FAILURES, self.commit_failures, self.tags)
        self._tell(names.KEYED_STORED, self.kept, self.tags)
        self._tell(names.KEYED_HANDLED, self.drained, self.tags)
        self._tell(names.KEYED_GIVEN_UP, self.given_up, self.tags)
        for error, count in self.failed.items():
            self._tell(names.FAILED, count, {**self.tags, "error.type": error}, error)

    def _tell(self, name: str, total: int, tags: dict[str, str], which: str = "") -> None:
        new = total - self._told[name, which]
        if new:
            self._told[name, which] = total
            self._metrics.increment(name, by=new, tags=tags)
