"""Committing: what has ended, at intervals, before partitions go, and at the end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable

from deimos_async.brokers.protocol import BrokerConsumer
from deimos_async.consuming.lanes import Partition
from deimos_async.consuming.measuring import Measurements
from deimos_async.errors import BrokerError, CommitError
from deimos_async.message import TopicPartition

__all__ = ["Committer"]

logger = logging.getLogger("deimos_async.consuming")


class Committer:
    """Commits the positions of partitions. One commit at a time, so that an older one never comes after a newer."""

    def __init__(self, name: str, consumer: BrokerConsumer, measured: Measurements) -> None:
        self._name = name
        self._consumer = consumer
        self._measured = measured
        self._turn = asyncio.Lock()
        self._clean: dict[TopicPartition, float] = {}
        """When everything that had ended was last seen to be committed, on the monotonic clock."""

    async def commit(self, partitions: Iterable[Partition]) -> bool:
        """Commit what has ended and was not committed yet.

        Returns:
            False if it could not be stored. Nothing is lost by that: the next commit stores it, or, where the
            partitions belong to others by now, they read these messages again.
        """
        async with self._turn:
            began = time.monotonic()
            moved: dict[Partition, int] = {}
            for part in partitions:
                position = part.to_commit
                if position is None:
                    self._clean[part.id] = began
                else:
                    moved[part] = position
                    self._clean.setdefault(part.id, began)
            if not moved:
                return True
            offsets: dict[TopicPartition, int] = {part.id: position for part, position in moved.items()}
            try:
                await self._commit(offsets)
            except CommitError as error:
                if error.lost:
                    logger.warning("%s: partitions went before their last commit: %s", self._name, error)
                    for part in moved:
                        part.halt(closes_gaps=False)
                else:
                    logger.warning("%s: commit failed, tried again later: %s", self._name, error)
                return False
            except BrokerError as error:
                logger.warning("%s: commit failed, tried again later: %s", self._name, error)
                return False
            for part, position in moved.items():
                part.committed = position
                self._clean[part.id] = began
            return True

    async def _commit(self, offsets: dict[TopicPartition, int]) -> None:
        began = time.perf_counter()
        try:
            await self._consumer.commit(offsets)
        except BrokerError:
            self._measured.commit_failures += 1
            raise
        finally:
            self._measured.committed(time.perf_counter() - began)

    def age(self, partitions: Iterable[Partition]) -> float:
        """Seconds for which something that has ended has not been committed, in the worst of these partitions."""
        now = time.monotonic()
        return max(
            (now - self._clean.get(part.id, now) for part in partitions if part.to_commit is not None), default=0.0
        )

    def forget(self, partitions: Iterable[TopicPartition]) -> None:
        """They are not ours any more."""
        for partition in partitions:
            self._clean.pop(partition, None)

    async def commit_ahead(self, partition: Partition, position: int) -> bool:
        """Commit before handling (at most once). False: the records must not be handled."""
        async with self._turn:
            try:
                await self._commit({partition.id: position})
            except BrokerError as error:
                logger.warning("%s: commit ahead failed, records are fetched again: %s", self._name, error)
                return False
            partition.committed = position
            return True
