"""Sending what leaves a consumer's topic: to its dead-letter topic, or to the next retry topic."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from deimos_async.consuming import dead_letters
from deimos_async.consuming.lanes import Doom
from deimos_async.consuming.work import Work
from deimos_async.errors import DeimosError
from deimos_async.message import InboundRecord, OutboundRecord

__all__ = ["send_away"]


async def send_away(work: Work, record: InboundRecord, doom: Doom) -> str:
    """Send a record away and wait for the acknowledgement; returns the topic.

    What is refused is tried again with fewer headers of ours.

    Raises:
        DeimosError: `retriable`: the brokers are away. Else nothing was taken.
    """
    refused: DeimosError | None = None
    for letter in _letters(work, record, doom):
        try:
            await work.publish(letter)
            return letter.topic
        except DeimosError as failed:
            if failed.retriable:
                raise
            refused = failed
    assert refused is not None
    raise refused


def _letters(work: Work, record: InboundRecord, doom: Doom) -> Iterator[OutboundRecord]:
    now = datetime.fromtimestamp(work.clock.time(), UTC)
    if doom.deferred and work.retry is not None:
        yield dead_letters.defer(
            record,
            doom.error,
            topic=work.retry.topic,
            group=work.group,
            attempts=doom.attempts,
            now=now,
            delay=work.retry.delay,
            is_retry=work.is_retry,
        )
        return
    letter = dead_letters.build(
        record,
        doom.error,
        topic=work.dead_letter_topic,
        group=work.group,
        attempts=doom.attempts,
        now=doom.first_failed_at or now,
        as_spring=work.spring_headers,
        is_retry=work.is_retry,
    )
    yield letter
    yield dead_letters.bare(record, letter, is_retry=work.is_retry)
