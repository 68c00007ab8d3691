"""What may be deleted: never a row that is later than one of its key that failed."""

from __future__ import annotations

import random

import pytest

from deimos_async.outbox.settling import compact, deletable


@pytest.mark.parametrize(
    ("orders", "failed", "expected"),
    [
        ([1, 2, 1], set(), [0, 1, 2]),
        ([1, 2, 1], {0}, [1]),
        ([1, 2, 1], {2}, [0, 1]),
        ([1, 1, 1, 2], {1}, [0, 3]),
        ([1, 1], {0, 1}, []),
        ([], set(), []),
    ],
)
def test_prefix_of_each_key_is_deleted(orders: list[int], failed: set[int], expected: list[int]) -> None:
    assert deletable(orders, failed) == expected


def test_sending_again_what_is_left_ends_with_the_last_value_of_each_key() -> None:
    chance = random.Random(11)
    for _ in range(200):
        left = [(chance.randrange(4), number) for number in range(12)]
        last = {key: max(number for other, number in left if other == key) for key, _ in left}
        stored: dict[int, int] = {}
        while left:
            failed = {place for place in range(len(left)) if chance.random() < 0.3}
            for place, (key, number) in enumerate(left):
                if place not in failed:
                    stored[key] = number
            done = set(deletable([key for key, _ in left], failed))
            left = [row for place, row in enumerate(left) if place not in done]
        assert stored == last


@pytest.mark.parametrize(
    ("keys", "standing"),
    [
        ([(1, b"a"), (2, b"b"), (1, b"a")], [2, 1, 2]),
        ([(1, None), (1, None), (2, b"b")], [0, 1, 2]),
        ([(1, b"a"), (5, None), (1, b"a"), (1, b"a")], [3, 1, 3, 3]),
        ([(1, b"a"), (2, b"a")], [0, 1]),
        ([], []),
    ],
)
def test_last_row_of_a_key_stands_for_all_and_rows_without_a_key_for_themselves(
    keys: list[tuple[int, bytes | None]], standing: list[int]
) -> None:
    assert compact(keys) == standing
