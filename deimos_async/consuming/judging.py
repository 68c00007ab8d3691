"""What follows an error of one consumer: `on_error` decides, by the consumer's policy and hooks."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

from deimos_async.consuming.measuring import Measurements
from deimos_async.consuming.on_error import DeadLetter, Decision, Skip, decide, is_surroundings
from deimos_async.consuming.work import Work
from deimos_async.message import InboundRecord, Message
from deimos_async.topics import OnError

__all__ = ["judge", "raise_if_ours"]

logger = logging.getLogger("deimos_async.consuming")


def judge(
    work: Work,
    measured: Measurements,
    error: BaseException,
    *,
    policy: OnError,
    attempt: int,
    waits: int,
    record: InboundRecord,
    messages: Sequence[Message[Any]],
    undecodable: bool,
) -> Decision:
    """Decide, and count the failure.

    Args:
        policy: The consumer's, or one that is made from it.
        record: The first one concerned, for hooks where there are no messages.
        messages: Empty where they could not be decoded.
    """
    surroundings = is_surroundings(error)
    decision = decide(
        error,
        attempt=attempt,
        waits=waits,
        policy=policy,
        fatal=_is_fatal(work, error, messages or [Message(record, None, None)], surroundings=surroundings),
        surroundings=surroundings,
        undecodable=undecodable,
        has_retry_topic=work.retry is not None,
        random=random.random,
    )
    if not surroundings and not isinstance(error, (Skip, DeadLetter)):
        measured.failed[type(error).__name__] += 1
    return decision


def _is_fatal(work: Work, error: BaseException, messages: Sequence[Message[Any]], *, surroundings: bool) -> bool:
    if isinstance(error, (Skip, DeadLetter)):
        return False
    if work.reraise and not surroundings:
        return True
    for selects in work.fatal:
        try:
            if selects(error, list(messages)):
                return True
        except Exception:
            # A broken callable must not decide silently: stopping loses nothing.
            logger.exception("%s: fatal_error itself failed; the consumer stops", work.name)
            return True
    return False


def raise_if_ours(error: asyncio.CancelledError) -> None:
    """A cancellation of the worker goes on; one that the handler's own work raised is the handler's error."""
    task = asyncio.current_task()
    if task is None or task.cancelling():
        raise error
