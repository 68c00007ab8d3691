"""What follows when a handler raised: decided here, done by the dispatcher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from deimos_async.errors import DeimosError
from deimos_async.topics import Backoff, OnError

__all__ = [
    "DeadLetter",
    "Decision",
    "Defer",
    "GiveUp",
    "Keep",
    "PassOver",
    "Retry",
    "Skip",
    "StopConsumer",
    "TryAgain",
    "Wait",
    "decide",
]


class Retry(Exception):
    """Raised by a handler: try this message again `after` seconds. Counts as an attempt."""

    def __init__(self, after: float, reason: str = "") -> None:
        if isinstance(after, bool) or not isinstance(after, (int, float)) or not 0 <= after < float("inf"):
            raise ValueError(f"Retry(after={after!r}): seconds, 0 or more")
        super().__init__(after, reason)
        self.after = float(after)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or f"retry after {self.after} s"


class DeadLetter(Exception):
    """Raised by a handler: this message goes to the dead-letter topic at once."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Skip(Exception):
    """Raised by a handler: this message is done with, on purpose."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class TryAgain:
    """Another attempt after `delay` seconds."""

    delay: float


@dataclass(frozen=True, slots=True)
class Wait:
    """The surroundings' fault: the same attempt again after `delay` seconds, nothing is counted."""

    delay: float


@dataclass(frozen=True, slots=True)
class Defer:
    """To the next retry topic."""


@dataclass(frozen=True, slots=True)
class Keep:
    """To the table of messages that wait, until `delay` seconds later."""

    delay: float | None
    """None: as long as messages wait there after their first failure."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """To the dead-letter topic."""


@dataclass(frozen=True, slots=True)
class PassOver:
    """Done with, on purpose."""


@dataclass(frozen=True, slots=True)
class StopConsumer:
    """The consumer stops; the message is not committed."""


Decision: TypeAlias = TryAgain | Wait | Defer | Keep | GiveUp | PassOver | StopConsumer


def backoff_delay(backoff: Backoff, attempt: int, random: float) -> float:
    """Seconds after the attempt-th failed attempt (from 1).

    The ceiling is `initial * 2 ** (attempt - 1)` up to `maximum`. Half of it is fixed and half is drawn, so that many
    members spread out and none comes back at once. Source: exponential backoff with equal jitter.

    Args:
        random: From [0, 1).
    """
    ceiling = min(backoff.maximum, backoff.initial * 2.0 ** min(attempt - 1, 60))
    return ceiling / 2 + ceiling / 2 * random


def decide(
    error: BaseException,
    *,
    attempt: int,
    waits: int,
    policy: OnError,
    fatal: bool,
    surroundings: bool,
    undecodable: bool,
    has_retry_topic: bool,
    random: Callable[[], float],
) -> Decision:
    """What follows.

    Args:
        error: What the handler (or the decoding) raised.
        attempt: Which attempt failed, from 1.
        waits: How often this message has waited for the surroundings in a row.
        policy: The consumer's.
        fatal: Whether `reraise_errors` or a `fatal_error` callable selects the error: it stops before any retry.
        surroundings: Whether the error is the database's, broker's or registry's absence.
        undecodable: Whether the message could not be decoded: trying again would not help.
        has_retry_topic: Whether there is a (next) retry topic after the attempts in place.
    """
    if isinstance(error, Skip):
        return PassOver()
    if isinstance(error, DeadLetter):
        return GiveUp()
    if fatal:
        return StopConsumer()
    if surroundings or (policy.wait_on and isinstance(error, policy.wait_on)):
        return Wait(backoff_delay(policy.backoff, waits + 1, random()))
    if not undecodable and (isinstance(error, Retry) or _is_retried(error, policy)):
        if attempt < policy.attempts:
            return TryAgain(
                error.after if isinstance(error, Retry) else backoff_delay(policy.backoff, attempt, random())
            )
        if has_retry_topic:
            return Defer()
        if policy.then == "retry_keyed":
            return Keep(error.after if isinstance(error, Retry) else None)
    match policy.then:
        case "skip":
            return PassOver()
        case "stop":
            return StopConsumer()
        case _:  # with retry_keyed too: what is not tried again in place is not tried again later either
            return GiveUp()


def _is_retried(error: BaseException, policy: OnError) -> bool:
    if policy.include and not isinstance(error, policy.include):
        return False
    return not (policy.exclude and isinstance(error, policy.exclude))


def is_surroundings(error: BaseException) -> bool:
    """Whether an error is never the message's fault: our retriable errors, and a database that cannot be had.

    Of a group of errors all must be. SQLAlchemy marks what ended with its connection by `connection_invalidated`; what
    fails while a connection is opened has no statement yet, or is an error of the operating system that came through
    SQLAlchemy; a pool without a free connection is its `TimeoutError`.
    """
    if isinstance(error, DeimosError):
        return error.retriable
    if isinstance(error, BaseExceptionGroup):
        return all(is_surroundings(inner) for inner in error.exceptions)
    cls = type(error)
    if cls.__module__ == "sqlalchemy.exc":
        if cls.__name__ in ("OperationalError", "InterfaceError") and getattr(error, "statement", "") is None:
            return True
        return cls.__name__ == "TimeoutError" or bool(getattr(error, "connection_invalidated", False))
    return isinstance(error, OSError) and _came_through(error, "sqlalchemy.")


def _came_through(error: BaseException, package: str) -> bool:
    step = error.__traceback__
    while step is not None:
        if str(step.tb_frame.f_globals.get("__name__", "")).startswith(package):
            return True
        step = step.tb_next
    return False
