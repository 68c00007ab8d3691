"""Single values: what is converted, to what, and what is refused."""

from __future__ import annotations

import math
from collections import OrderedDict, UserDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from fractions import Fraction
from ipaddress import ip_address
from pathlib import PurePosixPath
from uuid import UUID

import pytest
from pydantic import BaseModel

from deimos_async.schemas import coercion
from deimos_async.schemas.coercion import Unfit


class Word(StrEnum):
    LEFT = "left"


class Plain(Enum):
    LEFT = "left"
    TWO = 2


class Number(IntEnum):
    TWO = 2


class Model(BaseModel):
    a: int = 1


@dataclass
class Point:
    x: int = 1


class Textual:
    def __str__(self) -> str:
        return "own text"


class ToDict:
    def to_dict(self) -> dict[str, int]:
        return {"a": 1}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, True),
        (False, False),
        (1, True),
        (0, False),
        ("true", True),
        ("FALSE", False),
        (" True ", True),
    ],
)
def test_boolean_is_taken_from_truth_ones_and_words(value: object, expected: bool) -> None:
    assert coercion.to_boolean(value) is expected


@pytest.mark.parametrize("value", [None, 2, -1, 1.0, "", "1", "yes", "t", [], {}, object()])
def test_boolean_refuses_everything_else(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_boolean(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (5, 5),
        ("5", 5),
        ("+5", 5),
        ("-5", -5),
        (" 12 ", 12),
        ("1_000", 1000),
        ("010", 10),
        ("08", 8),
        (Number.TWO, 2),
        (Plain.TWO, 2),
        (datetime(1970, 1, 1, 0, 0, 1, 900_000, tzinfo=UTC), 1),
        (datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC), -1),  # half a second before the epoch rounds down
        (datetime(1970, 1, 1, 1, tzinfo=timezone(timedelta(hours=1))), 0),
        (2**31 - 1, 2**31 - 1),
        (-(2**31), -(2**31)),
    ],
)
def test_integer_is_taken_from_numbers_decimal_text_and_moments(value: object, expected: int) -> None:
    assert coercion.to_integer(value, 32) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        4.0,
        4.5,
        Decimal(4),
        Fraction(4),
        "",
        "12abc",
        "1e3",
        "4.0",
        "0x1A",
        "0b1",
        "0o7",
        "1__0",
        "_1",
        "1_",
        "- 1",
        "٣",
        [],
        b"1",
        date(2020, 1, 1),
        datetime(2020, 1, 1),  # noqa: DTZ001
        2**31,
        -(2**31) - 1,
        str(2**31),
        "9" * 5000,
    ],
)
def test_integer_refuses_floats_booleans_other_text_and_what_is_too_large(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_integer(value, 32)


def test_long_has_64_bits() -> None:
    assert coercion.to_integer("9223372036854775807", 64) == 2**63 - 1
    with pytest.raises(Unfit, match=r"^$") as caught:
        coercion.to_integer(11111111111111111111, 64)
    assert caught.value.errors == [("", "out of range: more than 64 bits")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (1.5, 1.5),
        (Decimal("123.456"), 123.456),
        (Fraction(1, 2), 0.5),
        ("1.1", 1.1),
        ("1e3", 1000.0),
        (" 2 ", 2.0),
        ("-.5", -0.5),
        ("1_0.5", 10.5),
        (math.inf, math.inf),
    ],
)
def test_float_is_taken_from_real_numbers_and_text(value: object, expected: float) -> None:
    for bits in (32, 64):
        result = coercion.to_float(value, bits)
        assert type(result) is float
        assert result == expected


@pytest.mark.parametrize(
    "value", [None, True, "", "abc", "1.1.1", "nan", "inf", "1e999", "0x1p3", 10**400, 1 + 2j, b"1", []]
)
def test_float_refuses_everything_else(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_float(value, 64)


def test_float_of_32_bits_has_a_smaller_range() -> None:
    largest = (2 - 2**-23) * 2.0**127
    assert coercion.to_float(largest, 32) == largest
    assert coercion.to_float(1e39, 64) == 1e39
    with pytest.raises(Unfit):
        coercion.to_float(1e39, 32)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("text", "text"),
        (5, "5"),
        (1.5, "1.5"),
        (True, "true"),
        (False, "false"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (date(2020, 1, 2), "2020-01-02"),
        (time(1, 2), "01:02:00"),
        (datetime(2020, 1, 2, 3, tzinfo=UTC), "2020-01-02T03:00:00+00:00"),
        (Word.LEFT, "left"),
        (Plain.LEFT, "left"),
        (Plain.TWO, "2"),
        (Number.TWO, "2"),
        ([1, "a", None, Decimal("1.5")], '[1,"a",null,"1.5"]'),
        ((1, 2), "[1,2]"),
        ({"a": [True, date(2020, 1, 2)]}, '{"a":[true,"2020-01-02"]}'),
        (OrderedDict(a=1), '{"a":1}'),
        (Point(3), '{"x":3}'),
        (Model(a=2), '{"a":2}'),
        (ToDict(), '{"a":1}'),
        (Textual(), "own text"),
        (ip_address("10.0.0.1"), "10.0.0.1"),
        (PurePosixPath("/a/b"), "/a/b"),
    ],
)
def test_text_is_taken_from_what_has_a_text_form(value: object, expected: str) -> None:
    result = coercion.to_text(value)
    assert type(result) is str
    assert result == expected


@pytest.mark.parametrize("value", [None, object(), b"bytes", bytearray(b"x"), 1j, [object()], {"a": object()}, int])
def test_text_is_not_taken_from_null_bytes_and_objects_without_a_text_form(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_text(value)


def test_text_of_a_list_that_contains_itself_is_refused() -> None:
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(Unfit):
        coercion.to_text(endless)


@pytest.mark.parametrize("value", [b"ab", bytearray(b"ab"), memoryview(b"ab"), "ab"])
def test_bytes_are_taken_from_buffers_and_text(value: object) -> None:
    result = coercion.to_bytes(value, 2)
    assert type(result) is bytes
    assert result == b"ab"


@pytest.mark.parametrize("value", [None, 1, [1], "\ud800"])
def test_bytes_refuse_everything_else(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_bytes(value)


def test_bytes_of_another_size_than_fixed_are_refused() -> None:
    with pytest.raises(Unfit):
        coercion.to_bytes(b"abc", 2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("1.5"), "1.50"),
        (Decimal("1.500"), "1.50"),  # zeros that go lose nothing
        (Decimal("-99.99"), "-99.99"),
        (Decimal("1E+1"), "10.00"),
        (Decimal("0E+9999"), "0.00"),
        (Decimal("-0"), "0.00"),
        (3, "3.00"),
        ("3.25", "3.25"),
        (0.1, "0.10"),  # by its shortest text, not 0.1000000000000000055
    ],
)
def test_decimal_gets_the_scale_of_the_schema(value: object, expected: str) -> None:
    assert str(coercion.to_decimal(value, 4, 2)) == expected


@pytest.mark.parametrize(
    "value",
    [
        Decimal("1.234"),
        Decimal(100),
        Decimal("1E+999999"),
        Decimal("1E-999999"),
        Decimal("NaN"),
        Decimal("Infinity"),
        0.123,
        "abc",
        "",
        None,
        True,
        math.nan,
        math.inf,
    ],
)
def test_decimal_that_would_lose_digits_is_refused(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_decimal(value, 4, 2)


@pytest.mark.parametrize("value", [UUID(int=7), str(UUID(int=7)), UUID(int=7).hex, UUID(int=7).bytes, UUID(int=7).urn])
def test_uuid_is_taken_from_its_usual_forms(value: object) -> None:
    assert coercion.to_uuid(value) == UUID(int=7)


@pytest.mark.parametrize("value", ["", "abc", b"short", 7, None])
def test_uuid_refuses_everything_else(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_uuid(value)


@pytest.mark.parametrize("value", ["LEFT", Plain.LEFT, Word.LEFT])
def test_symbol_is_taken_from_text_and_from_names_of_members(value: object) -> None:
    result = coercion.to_symbol(value, {"LEFT": 0})
    assert type(result) is str
    assert result == "LEFT"


def test_value_of_a_member_goes_before_its_name() -> None:
    assert coercion.to_symbol(Word.LEFT, {"LEFT": 0, "left": 1}) == "left"


@pytest.mark.parametrize("value", ["UP", Plain.TWO, 0, None, True])
def test_symbol_refuses_what_is_none(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_symbol(value, {"LEFT": 0})


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (date(2020, 2, 29), date(2020, 2, 29)),
        ("2020-02-29", date(2020, 2, 29)),
        (datetime(2020, 2, 29, tzinfo=UTC), date(2020, 2, 29)),
        (-1, date(1969, 12, 31)),
    ],
)
def test_date_is_taken_from_dates_iso_text_and_days(value: object, expected: date) -> None:
    result = coercion.to_date(value)
    assert type(result) is date
    assert result == expected


@pytest.mark.parametrize(
    "value", [None, True, 1.0, "20200229", "2020-02-30", "today", datetime(2020, 1, 1, 1, tzinfo=UTC), 10**12]
)
def test_date_refuses_everything_else(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_date(value)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (time(1, 2, 3, 4567), 1, time(1, 2, 3, 4567)),
        (time(1, 2, 3, 4567), 1000, time(1, 2, 3, 4000)),
        ("12:30", 1000, time(12, 30)),
        ("12:30:01.5", 1, time(12, 30, 1, 500_000)),
        (86_399_999, 1000, time(23, 59, 59, 999_000)),
    ],
)
def test_time_of_day_is_cut_to_its_unit(value: object, unit: int, expected: time) -> None:
    assert coercion.to_time(value, unit) == expected


@pytest.mark.parametrize("value", [None, True, 1.0, -1, 86_400_000, "25:00", "1230", time(1, tzinfo=UTC)])
def test_time_of_day_refuses_everything_else(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_time(value, 1000)


BERLIN = timezone(timedelta(hours=1))


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (datetime(2020, 1, 1, 1, tzinfo=BERLIN), 1, datetime(2020, 1, 1, tzinfo=UTC)),
        (datetime(2020, 1, 1, 0, 0, 0, 1999, tzinfo=UTC), 1000, datetime(2020, 1, 1, 0, 0, 0, 1000, tzinfo=UTC)),
        # floor, not towards zero: -0.5 ms is in the millisecond before
        (
            datetime(1969, 12, 31, 23, 59, 59, 999_500, tzinfo=UTC),
            1000,
            datetime(1969, 12, 31, 23, 59, 59, 999_000, UTC),
        ),
        ("2020-01-01T00:00:00Z", 1000, datetime(2020, 1, 1, tzinfo=UTC)),
        ("2020-01-01 01:00+01:00", 1000, datetime(2020, 1, 1, tzinfo=UTC)),
        (1500, 1000, datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)),
        (-1, 1, datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
    ],
)
def test_timestamp_becomes_utc_and_is_cut_down(value: object, unit: int, expected: datetime) -> None:
    result = coercion.to_timestamp(value, unit)
    assert result == expected
    assert result.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        1.5,
        "2020-01-01",
        "2020-01-01T00:00:00",
        "20200101T000000Z",
        "1577836800000",
        date(2020, 1, 1),
        datetime(2020, 1, 1),  # noqa: DTZ001
        10**20,
        datetime.min.replace(tzinfo=BERLIN),
    ],
)
def test_timestamp_refuses_naive_datetimes_and_everything_else(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_timestamp(value, 1000)


def test_naive_datetime_is_told_to_add_a_timezone() -> None:
    with pytest.raises(Unfit) as caught:
        coercion.to_timestamp(datetime(2020, 1, 1), 1)  # noqa: DTZ001
    assert caught.value.errors == [("", "the datetime is naive: add a timezone")]


@pytest.mark.parametrize("value", [datetime(2020, 1, 1, 5), "2020-01-01T05:00", 1_577_854_800_000])  # noqa: DTZ001
def test_local_timestamp_is_naive(value: object) -> None:
    assert coercion.to_local_timestamp(value, 1000) == datetime(2020, 1, 1, 5)  # noqa: DTZ001


@pytest.mark.parametrize("value", [datetime(2020, 1, 1, tzinfo=UTC), "2020-01-01T05:00Z", None, True, 1.0])
def test_local_timestamp_refuses_timezones(value: object) -> None:
    with pytest.raises(Unfit):
        coercion.to_local_timestamp(value, 1000)


@pytest.mark.parametrize("value", [{"a": 1}, OrderedDict(a=1), UserDict(a=1), Model(), ToDict()])
def test_mapping_is_taken_from_mappings_models_and_objects(value: object) -> None:
    assert dict(coercion.as_mapping(value) or {}) == {"a": 1}


@pytest.mark.parametrize("value", [None, 1, "a", [1], Model, Point, ToDict, Decimal(1)])
def test_mapping_is_not_taken_from_classes_and_scalars(value: object) -> None:
    assert coercion.as_mapping(value) is None


def test_dataclass_is_taken_one_level_deep() -> None:
    inner = Point()
    assert coercion.as_mapping(Point(inner)) == {"x": inner}  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["abc", b"abc", {"a": 1}, iter([1]), None, 1])
def test_list_is_not_taken_from_text_mappings_and_iterators(value: object) -> None:
    assert coercion.as_list(value) is None


def test_paths_grow_from_the_part_to_the_whole() -> None:
    item = Unfit("wrong")
    price = Unfit(coercion.unfit_at("price", item, None))
    third = Unfit(coercion.unfit_at(3, price, None))
    labels = Unfit(coercion.unfit_at(coercion.key_step('a "b"'), third, None))
    top = Unfit(coercion.unfit_at("record", labels, [("earlier", "x")]))
    assert top.errors == [("earlier", "x"), ('record["a \\"b\\""][3].price', "wrong")]
