"""What follows an error."""

from __future__ import annotations

from typing import Any

import pytest

from deimos_async.consuming.on_error import (
    DeadLetter,
    GiveUp,
    Keep,
    PassOver,
    Retry,
    Skip,
    StopConsumer,
    TryAgain,
    Wait,
    backoff_delay,
    decide,
    is_surroundings,
)
from deimos_async.errors import BrokerUnavailableError, DatabaseUnavailableError, DecodeError, RegistryUnavailableError
from deimos_async.topics import Backoff, OnError

THREE = OnError(attempts=3, backoff=Backoff(1.0, 30.0))


def decision(error: BaseException, policy: OnError = THREE, **given: Any) -> object:
    arguments: dict[str, Any] = {
        "attempt": 1,
        "waits": 0,
        "fatal": False,
        "surroundings": False,
        "undecodable": False,
        "has_retry_topic": False,
        "random": lambda: 0.0,
    }
    return decide(error, policy=policy, **(arguments | given))


@pytest.mark.parametrize(
    ("error", "given", "expected"),
    [
        (ValueError(), {"attempt": 1}, TryAgain(0.5)),  # ceiling 1 * 2**0, half of it fixed
        (ValueError(), {"attempt": 2}, TryAgain(1.0)),
        (ValueError(), {"attempt": 3}, GiveUp()),
        (ValueError(), {"fatal": True}, StopConsumer()),
        (ValueError(), {"undecodable": True}, GiveUp()),
        (Retry(after=7), {"attempt": 1}, TryAgain(7.0)),
        (Retry(after=7), {"attempt": 3}, GiveUp()),
        (DeadLetter("no"), {"attempt": 1}, GiveUp()),
        (DeadLetter("no"), {"fatal": True}, GiveUp()),
        (Skip("no"), {"attempt": 1}, PassOver()),
        (ValueError(), {"surroundings": True, "attempt": 99}, Wait(0.5)),
        (ValueError(), {"surroundings": True, "waits": 1}, Wait(1.0)),
        (ValueError(), {"surroundings": True, "fatal": True}, StopConsumer()),
    ],
)
def test_default_policy_decides(error: BaseException, given: dict[str, Any], expected: object) -> None:
    assert decision(error, **given) == expected


@pytest.mark.parametrize(
    ("then", "expected"), [("dead_letter", GiveUp()), ("skip", PassOver()), ("stop", StopConsumer())]
)
@pytest.mark.parametrize("given", [{"attempt": 3}, {"undecodable": True}])
def test_then_follows_the_last_attempt_and_undecodable_bytes(
    then: Any, expected: object, given: dict[str, Any]
) -> None:
    assert decision(ValueError(), OnError(then=then), **given) == expected


@pytest.mark.parametrize(
    ("error", "given", "expected"),
    [
        (ValueError(), {"attempt": 2}, TryAgain(1.0)),
        (ValueError(), {"attempt": 3}, Keep(None)),
        (Retry(after=7), {"attempt": 3}, Keep(7.0)),
        (ValueError(), {"attempt": 3, "undecodable": True}, GiveUp()),
        (KeyError(), {"attempt": 1}, GiveUp()),  # what is not tried again in place is not later either
        (ValueError(), {"attempt": 99, "surroundings": True}, Wait(0.5)),
        (Skip("no"), {"attempt": 3}, PassOver()),
        (DeadLetter("no"), {"attempt": 3}, GiveUp()),
        (ValueError(), {"attempt": 3, "fatal": True}, StopConsumer()),
    ],
)
def test_only_what_is_tried_again_waits_with_its_key(
    error: BaseException, given: dict[str, Any], expected: object
) -> None:
    policy = OnError(attempts=3, backoff=Backoff(1.0, 30.0), then="retry_keyed", exclude=(KeyError,))
    assert decision(error, policy, **given) == expected


def test_only_included_and_not_excluded_errors_are_retried() -> None:
    policy = OnError(include=(LookupError,), exclude=(KeyError,))
    assert isinstance(decision(IndexError(), policy), TryAgain)
    assert decision(KeyError(), policy) == GiveUp()
    assert decision(ValueError(), policy) == GiveUp()


def test_classes_to_wait_on_are_the_surroundings_and_count_no_attempt() -> None:
    assert isinstance(decision(TimeoutError(), OnError(wait_on=(TimeoutError,)), attempt=50), Wait)


def test_backoff_doubles_to_its_maximum_and_jitter_stays_below() -> None:
    backoff = Backoff(0.1, 1.0)
    assert [backoff_delay(backoff, attempt, 1.0) for attempt in (1, 2, 3, 4, 5, 1000)] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff_delay(backoff, 5, 0.0) == 0.5


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (BrokerUnavailableError("away"), True),
        (RegistryUnavailableError("away"), True),
        (DatabaseUnavailableError("away"), True),
        (DecodeError("bad"), False),
        (ValueError(), False),
        (ConnectionError(), False),  # the handler's own: named in wait_on if it is to wait
    ],
)
def test_our_retriable_errors_are_the_surroundings(error: BaseException, expected: bool) -> None:
    assert is_surroundings(error) is expected


def test_database_errors_that_ended_with_their_connection_are_the_surroundings() -> None:
    from sqlalchemy.exc import OperationalError

    lost = OperationalError("SELECT 1", None, Exception("gone"), connection_invalidated=True)
    refused = OperationalError("SELECT x", None, Exception("no such table"))
    assert is_surroundings(lost)
    assert not is_surroundings(refused)


@pytest.mark.parametrize("after", [-1, True, "5", float("inf"), float("nan")])
def test_retry_takes_seconds_only(after: Any) -> None:
    with pytest.raises(ValueError, match="seconds"):
        Retry(after=after)
