"""Comparison of what was expected with what was sent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any
from unittest.mock import ANY, MagicMock

import pytest
from pydantic import BaseModel

from deimos_async.testing.matching import Difference, differences


class Colour(StrEnum):
    RED = "red"


class Size(Enum):
    LARGE = "large"


@dataclass
class Price:
    amount: Any
    currency: str = "EUR"


class Order(BaseModel):
    order_id: int
    colour: Colour


class Generated:
    def to_dict(self) -> dict[str, Any]:
        return {"order_id": 1}


def described(*arguments: Any, **options: Any) -> list[str]:
    return [str(difference) for difference in differences(*arguments, **options)]


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        (None, None),
        ({"a": 1}, {"a": 1}),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 2}]}}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        (ANY, {"a": 1}),
        (ANY, None),
        ({"a": ANY, "b": 1}, {"a": [1], "b": 1}),
        ({"a": pytest.approx(0.1)}, {"a": 0.1 + 1e-9}),
        ({"price": Price(9.5)}, {"price": {"amount": 9.5, "currency": "EUR"}}),
        (Price(ANY), {"amount": 3, "currency": "EUR"}),
        ([Price(1)], [{"amount": 1, "currency": "EUR"}]),
        (Order(order_id=1, colour=Colour.RED), {"order_id": 1, "colour": "red"}),
        (Generated(), {"order_id": 1}),
        ({Colour.RED: 1}, {"red": 1}),
        ({1: "a"}, {"1": "a"}),
        ({"size": Size.LARGE}, {"size": "large"}),
        ({"a": 1, "payload_key": None}, {"a": 1}),
        ({"a": 1}, {"a": 1, "payload_key": None}),
        ({"a": math.nan}, {"a": math.nan}),
    ],
)
def test_equal_values_in_other_forms_match(expected: Any, actual: Any) -> None:
    assert differences(expected, actual) == []


@pytest.mark.parametrize(
    ("expected", "actual", "texts"),
    [
        (None, {}, ["it: expected None, is {}"]),
        ({}, None, ["it: expected {}, is None"]),
        ({"a": 1}, {"a": 2}, ["a: expected 1, is 2"]),
        ({"a": 1}, {"a": "1"}, ["a: expected 1, is '1'"]),
        ({"a": 1}, {}, ["a: expected 1, is missing"]),
        ({}, {"a": 1}, ["a: not expected, is 1"]),
        ({"a": None}, {}, ["a: expected None, is missing"]),
        ({}, {"a": None}, ["a: not expected, is None"]),
        ({"payload_key": 1}, {}, ["payload_key: expected 1, is missing"]),
        ({"a": {"b": [1, {"c": 2}]}}, {"a": {"b": [1, {"c": 3}]}}, ["a.b[1].c: expected 2, is 3"]),
        ({"a": [1, 2]}, {"a": [1]}, ["a[1]: expected 2, is missing"]),
        ({"a": [1]}, {"a": [1, 2]}, ["a[1]: not expected, is 2"]),
        ({"a": [1]}, {"a": 1}, ["a: expected [1], is 1"]),
        (
            {"p": Price(1)},
            {"p": {"amount": 2, "currency": "USD"}},
            ["p.amount: expected 1, is 2", "p.currency: expected 'EUR', is 'USD'"],
        ),
    ],
)
def test_each_difference_is_told_with_its_path(expected: Any, actual: Any, texts: list[str]) -> None:
    assert described(expected, actual) == texts


def test_partial_match_ignores_further_fields_at_every_depth() -> None:
    actual = {"a": {"b": 1, "more": 2}, "items": [{"c": 1, "more": 2}], "more": 3}
    assert differences({"a": {"b": 1}, "items": [{"c": 1}]}, actual, partial=True) == []
    assert described({"a": {"b": 2}, "items": []}, actual, partial=True) == [
        "a.b: expected 2, is 1",
        "items[0]: not expected, is {'c': 1, 'more': 2}",
    ]


def test_partial_match_still_needs_what_is_expected() -> None:
    assert described({"x": 1}, {"a": 1}, partial=True) == ["x: expected 1, is missing"]


def test_mock_is_asked_whether_it_is_equal_and_not_for_its_fields() -> None:
    mock = MagicMock()
    mock.__eq__.return_value = True
    assert differences({"a": mock}, {"a": {"b": 1}}) == []
    mock.model_dump.assert_not_called()


def test_expected_dict_against_a_tombstone_weighs_as_all_its_fields() -> None:
    assert differences({"a": 1, "b": 2}, None) == [Difference("", {"a": 1, "b": 2}, None, 3)]


def test_long_values_are_cut_in_the_text() -> None:
    (text,) = described({"a": "x" * 1000}, {"a": "y"})
    assert "... (1002 characters), is 'y'" in text
    assert len(text) < 400
