"""The checker of the outbox's trials sees what it is there for. Pure: no brokers, no database."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from fault_deliveries import Arrival, duplicates, problems

WRITTEN = {"t1": ("k", 1), "t2": ("k", 2), "t3": ("k", 3)}


def arrival(count: int, **more: object) -> Arrival:
    """Message n of the key, as it should be but for this."""
    usual = Arrival("topic", 0, 0, "k", count, f"t{count}", b"id-%d" % count, count * 10, 0.0)
    return usual._replace(**more)


def account(numbers: Sequence[int]) -> list[str]:
    return problems(WRITTEN, list(WRITTEN), [arrival(number) for number in numbers])


def test_everything_once_in_order_is_no_problem() -> None:
    assert account([1, 2, 3]) == []


def test_copies_that_end_with_the_last_message_are_counted_and_no_problem() -> None:
    assert account([1, 2, 3, 2, 3]) == []
    assert duplicates([arrival(number) for number in (1, 2, 3, 2, 3)]) == 2


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ([1, 3], "1 messages lost: t2"),
        ([1, 2, 3, 4], "1 messages never committed: t4"),
        ([1, 3, 2], "1 messages came after a later one of their key: t2"),
        ([1, 2, 3, 2], "1 messages last of their key in the topic, and not the last one written: t2"),
    ],
)
def test_what_must_not_be_is_found(numbers: Sequence[int], problem: str) -> None:
    assert problem in account(numbers)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"number": 7}, "1 messages arrived as something else: t3"),
        ({"key": "other"}, "1 messages arrived as something else: t3"),
        ({"message_id": None}, "1 messages without a message id: t3"),
        ({"sequence": 5}, "1 messages came after a later one of their key: t3"),
    ],
)
def test_message_that_is_not_as_it_was_written_is_found(changed: dict[str, object], problem: str) -> None:
    assert problem in problems(WRITTEN, list(WRITTEN), [arrival(1), arrival(2), arrival(3, **changed)])


@pytest.mark.parametrize("changed", [{"message_id": b"new"}, {"sequence": 40}])
def test_copy_with_another_id_is_found(changed: dict[str, object]) -> None:
    found = problems(WRITTEN, list(WRITTEN), [arrival(1), arrival(2), arrival(3), arrival(3, **changed)])
    assert "1 messages came again with another id or sequence number: t3" in found


def test_acknowledged_commit_that_the_database_does_not_have_is_found() -> None:
    found = problems(WRITTEN, [*WRITTEN, "t9"], [arrival(number) for number in (1, 2, 3)])
    assert found == ["1 messages acknowledged and not in the database: t9"]


def test_number_that_was_given_twice_is_found() -> None:
    written = WRITTEN | {"t4": ("k", 3)}
    found = problems(written, list(written), [*(arrival(n) for n in (1, 2, 3)), arrival(3, token="t4", sequence=40)])
    assert found == ["1 messages written twice under one number: t4"]
