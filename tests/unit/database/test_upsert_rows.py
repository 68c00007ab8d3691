"""Each key once, in an order that all writers share."""

from __future__ import annotations

import random
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest

from deimos_async.database.upserts.rows import alike, fold, in_order, rounds


def folded(*rows: dict[str, Any], versions: list[Any] | None = None, keep_first: tuple[str, ...] = ()) -> Any:
    return fold(rows, [row.get("id") for row in rows], versions=versions, keep_first=keep_first)


def test_rows_come_out_in_order_of_keys_and_those_without_behind_them() -> None:
    rows = [{"id": 3}, {"id": None, "n": 1}, {"id": 1}, {"n": 2}, {"id": 2}]
    assert folded(*rows) == ([{"id": 1}, {"id": 2}, {"id": 3}, {"id": None, "n": 1}, {"n": 2}], 0)


def test_later_row_wins_and_keeps_what_only_the_earlier_one_says() -> None:
    assert folded({"id": 1, "a": 1, "b": 1}, {"id": 1, "a": 2, "c": None}).rows == [
        {"id": 1, "a": 2, "b": 1, "c": None}
    ]


def test_columns_to_keep_stay_with_the_first_row_that_has_them() -> None:
    rows = [{"id": 1, "b": 0}, {"id": 1, "a": 1}, {"id": 1, "a": 2, "b": 2}]
    assert folded(*rows, keep_first=("a",)).rows == [{"id": 1, "a": 1, "b": 2}]


def test_rows_given_are_not_changed() -> None:
    first, second = {"id": 1, "a": 1}, {"id": 1, "a": 2}
    folded(first, second)
    assert (first, second) == ({"id": 1, "a": 1}, {"id": 1, "a": 2})


def test_older_version_is_dropped_whole_and_equal_one_wins() -> None:
    rows = [{"id": 1, "a": 2}, {"id": 1, "a": 1, "b": 1}, {"id": 1, "a": 3}, {"id": 2, "a": 0}]
    assert folded(*rows, versions=[2, 1, 2, 0]) == ([{"id": 1, "a": 3}, {"id": 2, "a": 0}], 1)


def test_versions_that_do_not_compare_are_a_type_error() -> None:
    with pytest.raises(TypeError):
        folded({"id": 1}, {"id": 1}, versions=[1, "2"])


@pytest.mark.parametrize(
    "keys",
    [
        [3, 1, 2.5, 10**30],
        ["b", "a", "ä", ""],
        [1, "1", b"1", uuid.UUID(int=1), datetime.now(UTC), datetime(2024, 1, 1), 1.5],  # noqa: DTZ001
        [(1, "a"), (1, 2), (0, None), (None, 0)],
    ],
)
def test_order_does_not_depend_on_how_the_keys_came(keys: list[Any]) -> None:
    expected = in_order(keys)
    assert sorted(map(repr, expected)) == sorted(map(repr, keys))
    for seed in range(20):
        shuffled = keys.copy()
        random.Random(seed).shuffle(shuffled)
        assert in_order(shuffled) == expected


def test_result_is_that_of_writing_the_rows_one_after_the_other() -> None:
    generator = random.Random(3)
    for _ in range(200):
        rows = [
            {"id": generator.randrange(4), **{name: generator.randrange(9) for name in generator.sample("abc", 2)}}
            for _ in range(generator.randrange(12))
        ]
        versions = [generator.randrange(4) for _ in rows]
        table: dict[int, tuple[int, dict[str, int]]] = {}
        refused = 0
        for row, version in zip(rows, versions, strict=True):
            stored, values = table.get(row["id"], (version, {}))
            if version < stored:
                refused += 1
            else:
                table[row["id"]] = (version, {**values, **row})
        assert folded(*rows, versions=versions) == ([table[key][1] for key in sorted(table)], refused)


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("Key", "kEY"),
        ("a", "a  "),
        ("\u00e4", "A"),
        ("\u00e4", "a\u0308"),
        ("\uff21", "a"),
        ("stra\u00dfe", "STRASSE"),
        ("\u00df", "s"),
        ("a\u200bb", "ab"),
        ("\U0001f600", "\U0001f601"),
        ("\u0416", "\u0436"),
    ],
)
def test_texts_that_some_collation_takes_for_one_are_alike(one: str, same: str) -> None:
    assert alike(one) == alike(same)


@pytest.mark.parametrize(
    ("one", "other"), [("a", "b"), (" a", "a"), ("a b", "ab"), ("1", 1), (b"A", b"a"), (None, ""), ("\u0436", "\u0437")]
)
def test_other_values_are_not_alike(one: Any, other: Any) -> None:
    assert alike(one) != alike(other)


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ("", []),
        ("a b c", ["a b c"]),
        ("a b a", ["a b a"]),
        ("a A", ["a", "A"]),
        ("a A b a B A", ["a b", "A B", "a", "A"]),
        ("a A A a", ["a", "A A", "a"]),
        ("- a - A", ["- a -", "A"]),
    ],
)
def test_keys_that_may_be_one_come_in_rounds_in_their_order(keys: str, found: list[str]) -> None:
    given = [None if key == "-" else key for key in keys.split()]
    cut = rounds(given, [None if key is None else key.lower() for key in given])
    assert [" ".join(keys.split()[position] for position in part) for part in cut] == found
