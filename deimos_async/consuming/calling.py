"""Calls of a handler with what surrounds them: spans, and lines in the log of messages."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from deimos_async.consuming.handling import Call
from deimos_async.consuming.work import Work
from deimos_async.message import Message
from deimos_async.payload_log import payload_view

__all__ = ["log_handled", "logs_messages", "traced_batch", "traced_message"]

_logger = logging.getLogger("deimos_async.messages")


async def traced_message(work: Work, message: Message[Any], call: Call, *, drawn: bool) -> None:
    """One attempt within a span of its own.

    Args:
        drawn: `Tracing.samples` has said yes.
    """
    with work.tracing.consume_span(
        work.name,
        topic=message.topic,
        group=work.group,
        partition=message.partition,
        headers=(list(message.headers),),
        attributes={"messaging.kafka.offset": message.offset},
        drawn=drawn,
    ) as span:
        try:
            await call(message)
        except Exception as error:
            span.set_error(error)
            raise


async def traced_batch(work: Work, messages: list[Message[Any]], call: Call) -> None:
    """One attempt with a batch, within a span that is linked to those of the producers."""
    first = messages[0]
    with work.tracing.consume_span(
        work.name,
        topic=first.topic,
        group=work.group,
        partition=first.partition,
        headers=[list(message.headers) for message in messages],
        attributes={"messaging.batch.message_count": len(messages)},
    ) as span:
        try:
            await call(messages)
        except Exception as error:
            span.set_error(error)
            raise


def logs_messages() -> bool:
    """Whether messages that were handled are logged."""
    return _logger.isEnabledFor(logging.INFO)


def log_handled(work: Work, messages: Sequence[Message[Any]]) -> None:
    """A line for messages that were handled in one call."""
    first, last = messages[0], messages[-1]
    _logger.info(
        "handled %s[%d]@%d..%d by %s: %s",
        first.topic, first.partition, first.offset, last.offset, work.name, payload_view(messages, work.payload_log),
    )  # fmt: skip
