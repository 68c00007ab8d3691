"""Values by the column's type: what passes, what is converted, what is refused."""

from __future__ import annotations

import enum
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.engine import Dialect

from deimos_async.models.values import REFUSALS, conversion, unfit

SQLITE: Dialect = sqlite.dialect()
MYSQL: Dialect = mysql.dialect()


class Suit(enum.Enum):
    HEARTS = "SPADES"
    SPADES = "HEARTS"
    CLUBS = 3


def stored_values(members: Any) -> list[str]:
    return [str(member.value) for member in members]


class Tags(sa.types.TypeDecorator[Any]):
    impl = sa.String
    cache_ok = True


def converted(type_: Any, value: Any, dialect: Dialect = SQLITE, **options: Any) -> Any:
    found = conversion(type_, dialect, **options)
    assert found is not None
    return value if type(value) in found.passes else found.convert(value)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (sa.Integer(), "many"),
        (sa.Integer(), "1_000"),
        (sa.Integer(), 1.5),
        (sa.Integer(), float("inf")),
        (sa.Integer(), {}),
        (sa.Float(), "1_0"),
        (sa.Float(), []),
        (sa.Numeric(), "many"),
        (sa.Numeric(), float("nan")),
        (sa.Numeric(), Decimal("Infinity")),
        (sa.Boolean(), "perhaps"),
        (sa.Boolean(), 2),
        (sa.DateTime(), "some-other-val"),
        (sa.DateTime(), 10**18),
        (sa.DateTime(), float("nan")),
        (sa.DateTime(), True),
        (sa.DateTime(), {}),
        (sa.Date(), 17),
        (sa.Time(), "noon"),
        (sa.Uuid(), "no uuid"),
        (sa.Uuid(as_uuid=False), "no uuid"),
        (sa.Enum(Suit), "DIAMONDS"),
        (sa.Enum(Suit), {}),
        (sa.Enum("a", "b"), "c"),
        (sa.String(5), b"\xff"),
        (sa.String(5), object()),
        (sa.LargeBinary(), 7),
        (sa.JSON(), {"a": b"bytes"}),
        (sa.JSON(), [float("nan")]),
        (sa.ARRAY(sa.Integer()), "text"),
        (sa.ARRAY(sa.Integer()), ["many"]),
    ],
)
def test_value_that_does_not_fit_is_refused(type_: Any, value: Any) -> None:
    with pytest.raises(REFUSALS):
        converted(type_, value)


def test_refusal_names_the_column_and_the_kind_of_value_only() -> None:
    error = unfit(sa.Column("price", sa.Numeric(10, 2)), "secret")
    assert str(error) == "column 'price' (Numeric(precision=10, scale=2)): a value of type str does not fit"


@pytest.mark.parametrize(
    ("type_", "value", "found"),
    [
        (sa.Integer(), " 17 ", 17),
        (sa.Integer(), True, 1),
        (sa.Integer(), Decimal(5), 5),
        (sa.Numeric(), 0.1, Decimal("0.1")),
        (sa.Boolean(), " Yes ", True),
        (sa.Boolean(), 0.0, False),
        (sa.DateTime(), "-1", datetime(1969, 12, 31, 23, 59, 59)),  # noqa: DTZ001
        (sa.DateTime(), 1.5, datetime(1970, 1, 1, 0, 0, 1, 500_000)),  # noqa: DTZ001
        (sa.DateTime(), Decimal("1.5"), datetime(1970, 1, 1, 0, 0, 1, 500_000)),  # noqa: DTZ001
        (sa.DateTime(timezone=True), "2024-01-01", datetime(2024, 1, 1, tzinfo=UTC)),
        (sa.Uuid(), UUID(int=5).bytes, UUID(int=5)),
        (sa.Enum(Suit), 3, Suit.CLUBS),
        (sa.Enum(Suit), "HEARTS", Suit.HEARTS),
        (sa.Enum(Suit, values_callable=stored_values), "HEARTS", Suit.SPADES),
        (sa.String(5), b"key", "key"),
        (sa.String(5), UUID(int=5), str(UUID(int=5))),
        (sa.LargeBinary(), bytearray(b"x"), b"x"),
        (sa.ARRAY(sa.Integer()), ("1", None), [1, None]),
        (sa.ARRAY(sa.Integer()), [["1"], [2]], [[1], [2]]),
        (sa.JSON(none_as_null=True), None, None),
    ],
)  # fmt: skip
def test_value_is_converted(type_: Any, value: Any, found: Any) -> None:
    result = converted(type_, value)
    assert result == found
    assert type(result) is type(found)


def test_none_in_a_json_column_is_null_and_not_json_s_null() -> None:
    assert converted(sa.JSON(), None) is sa.null()


@pytest.mark.parametrize(
    ("type_", "truncates", "found"),
    [
        (sa.String(3), True, "abc"),
        (sa.String(3), False, "abcdef"),
        (sa.String(), True, "abcdef"),
        (sa.Text(3), True, "abcdef"),
        (sa.CHAR(4), True, "abcd"),
    ],
)
def test_only_limited_text_is_cut(type_: Any, truncates: bool, found: str) -> None:
    assert converted(type_, "abcdef", truncate=truncates) == found


def test_variant_of_the_database_counts() -> None:
    type_ = sa.String().with_variant(sa.Integer(), "mysql")
    assert converted(type_, 7, MYSQL) == 7
    assert converted(type_, 7) == "7"


@pytest.mark.parametrize("type_", [Tags(), postgresql.INET(), sa.Interval(), mysql.SET("a", "b")])
def test_types_that_know_their_values_themselves_get_them_as_they_are(type_: Any) -> None:
    assert conversion(type_, MYSQL) is None
