"""Which messages of a batch are written, and in which steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from deimos_async.models.messages import compact, groups, slices


@dataclass(frozen=True)
class Given:
    key: Any
    name: str


@dataclass(unsafe_hash=False, eq=True)
class Compound:
    """A key that is equal by value and cannot be hashed."""

    one: str
    two: list[int]


def given(text: str) -> list[Given]:
    """`A1 -1` is a message of key A and one without a key, each with its name."""
    return [Given(None if name[0] == "-" else name[0], name) for name in text.split()]


def names(messages: list[Given]) -> str:
    return " ".join(message.name for message in messages)


@pytest.mark.parametrize(
    ("batch", "kept"),
    [
        ("", ""),
        ("A1 B1 A2 B2 C1", "A2 B2 C1"),
        ("A1 B1 C1 A2", "B1 C1 A2"),
        ("-1 -2 A1 -3 A2", "-1 -2 -3 A2"),
        ("A1 -1 A2 -2", "-1 A2 -2"),
    ],
)
def test_last_message_of_each_key_is_kept_and_all_without_a_key(batch: str, kept: str) -> None:
    assert names(compact(given(batch))) == kept


@pytest.mark.parametrize(
    ("batch", "found"),
    [
        ("", []),
        ("A1 A2 B1 C1 C2 C3", ["A1 B1 C1", "A2 C2", "C3"]),
        ("-1 -2 A1 -3", ["-1 -2 A1 -3"]),
        ("A1 A2 -1", ["A1 -1", "A2"]),
    ],
)
def test_slices_have_each_key_once_in_order(batch: str, found: list[str]) -> None:
    messages = given(batch)
    assert [names(part) for part in slices(messages, [None] * len(messages))] == found


def test_keys_that_lead_to_one_row_come_in_slices_of_their_own() -> None:
    messages = given("A1 B1 C1 A2 -1 B2")
    rows = [1, 1, None, 1, None, 2]  # B2 leads elsewhere, as far as the test goes
    assert [names(part) for part in slices(messages, rows)] == ["A1 C1 -1 B2", "B1", "A2"]


@pytest.mark.parametrize(
    ("one", "same", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 1, "b": 3}),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1, 2]}}, {"a": {"b": [2, 1]}}),
        ([1, {"a": 1}], [1, {"a": 1}], [{"a": 1}, 1]),
        (({"a": 1},), ({"a": 1},), ({"a": 2},)),
        (Compound("x", [1]), Compound("x", [1]), Compound("x", [2])),
        (0, 0, ""),
    ],
)
def test_keys_are_compared_by_value(one: Any, same: Any, other: Any) -> None:
    batch = [Given(one, "1"), Given(same, "2"), Given(other, "3")]
    assert names(compact(batch)) == "2 3"
    assert [names(part) for part in slices(batch, [None] * 3)] == ["1 3", "2"]


@pytest.mark.parametrize(
    ("count", "size", "sizes"),
    [(5, 6, [5]), (5, 5, [5]), (5, 4, [4, 1]), (5, 1, [1] * 5), (5, None, [5]), (0, None, [])],
)
def test_groups_are_at_most_as_large_as_said(count: int, size: int | None, sizes: list[int]) -> None:
    found = list(groups(list(range(count)), size))
    assert [len(group) for group in found] == sizes
    assert [item for group in found for item in group] == list(range(count))
