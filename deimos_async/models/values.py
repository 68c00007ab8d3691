"""Values of payloads as values of columns, by the column's type. Computes only.

A column's conversion is found once. Most values need none, and for a whole column of them that is seen by their types.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Literal, TypeAlias, get_args
from uuid import UUID

from sqlalchemy import Column, null, types
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from deimos_async.schemas.coercion import Unfit, as_list, as_mapping, to_text

__all__ = ["EPOCH_UNITS", "REFUSALS", "Conversion", "EpochUnit", "conversion", "unfit"]

EpochUnit: TypeAlias = Literal["seconds", "milliseconds", "microseconds"]
EPOCH_UNITS = get_args(EpochUnit)

Convert = Callable[[Any], Any]

REFUSALS: tuple[type[Exception], ...] = (ValueError, TypeError, ArithmeticError, KeyError, Unfit)
"""What a conversion raises for a value that does not fit."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NONE: frozenset[type] = frozenset({type(None)})
_TRUE = frozenset({"true", "t", "yes", "y", "on", "1"})
_FALSE = frozenset({"false", "f", "no", "n", "off", "0"})


@dataclass(frozen=True, slots=True)
class Conversion:
    """How values become a column's.

    Attributes:
        passes: Exact types of values that stay as they are.
        convert: For all others. Raises one of `REFUSALS`.
    """

    passes: frozenset[type]
    convert: Convert


def unfit(column: Column[Any], value: Any) -> ValueError:
    """The error for a value that a column's conversion refuses. It names column and type, not the value."""
    return ValueError(f"column {column.key!r} ({column.type!r}): a value of type {type(value).__name__} does not fit")


def conversion(
    type_: TypeEngine[Any], dialect: Dialect, *, epoch_unit: EpochUnit = "seconds", truncate: bool = False
) -> Conversion | None:
    """The conversion for columns of a type; None: values are given to the type as they are.

    A `TypeDecorator` knows its values itself, and so do types that only one database has.

    Args:
        type_: The column's; variants are resolved.
        epoch_unit: What a number means in a column of date and time.
        truncate: Whether text is cut to the length of a `String(n)`; `Text` is not limited by it.

    Source: Deimos 2.6, conversion of schema fields to columns (whole numbers, and text that is one, are seconds since
    the epoch); differs by the unit that can be chosen, and by refusing what is no time.
    """
    kind = type_.dialect_impl(dialect)
    if isinstance(kind, TypeDecorator):
        return None
    if isinstance(kind, types.Enum):
        return _enumeration(kind)
    if isinstance(kind, types.String):
        if type(kind).__name__ == "SET":  # MySQL's: its values are sets
            return None
        limit = kind.length if truncate and not isinstance(kind, types.Text) else None
        return Conversion(_NONE | {str}, _text) if limit is None else Conversion(_NONE, _cut(limit))
    if isinstance(kind, types.Boolean):
        return Conversion(_NONE | {bool}, _boolean)
    if isinstance(kind, types.Integer):
        return Conversion(_NONE | {int}, _integer)
    if isinstance(kind, types.Float):
        return Conversion(_NONE | {float}, _float)
    if isinstance(kind, types.Numeric):
        return Conversion(_NONE, _decimal)
    if isinstance(kind, types.DateTime):
        return Conversion(_NONE, (_zoned if kind.timezone else _naive)(epoch_unit))
    if isinstance(kind, types.Date):
        return Conversion(_NONE | {date}, _date)
    if isinstance(kind, types.Time):
        return Conversion(_NONE | {time}, _time)
    if isinstance(kind, types.Uuid):
        return Conversion(_NONE | {UUID}, _uuid) if kind.as_uuid else Conversion(_NONE, _uuid_text)
    if isinstance(kind, types.LargeBinary):
        return Conversion(_NONE | {bytes}, _binary)
    if isinstance(kind, types.JSON):
        return Conversion(frozenset({str, int, bool}), _json(null() if not kind.none_as_null else None))
    if isinstance(kind, types.ARRAY):
        return _array(conversion(kind.item_type, dialect, epoch_unit=epoch_unit, truncate=truncate))
    return None


# --- text, numbers ---------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    # Keys of a topic that does not say what its keys are come as bytes.
    return bytes(value).decode() if isinstance(value, bytes | bytearray | memoryview) else to_text(value)


def _cut(length: int) -> Convert:
    def cut(value: Any) -> str:
        text = value if type(value) is str else _text(value)
        return text if len(text) <= length else text[:length]

    return cut


def _boolean(value: Any) -> bool:
    if isinstance(value, int | float | Decimal) and value in (0, 1):
        return bool(value)
    text = _text(value).strip().lower()
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    raise ValueError


def _integer(value: Any) -> int:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | Decimal):
        whole = int(value)
        if whole != value:
            raise ValueError
        return whole
    return int(_number_text(value))


def _float(value: Any) -> float:
    return float(value) if isinstance(value, int | float | Decimal) else float(_number_text(value))


def _decimal(value: Any) -> Decimal:
    if isinstance(value, int | Decimal):
        number = Decimal(value)
    else:
        # The shortest text of a float: 0.1 is meant, not its binary neighbour.
        number = Decimal(repr(float(value)) if isinstance(value, float) else _number_text(value))
    if not number.is_finite():
        raise ValueError
    return number


def _number_text(value: Any) -> str:
    if not isinstance(value, str | bytes):
        raise TypeError
    # Python's literals may have underscores; elsewhere they are no numbers.
    text = _text(value).strip()
    if "_" in text:
        raise ValueError
    return text


# --- times -----------------------------------------------------------------------------------------------------------


def _moment(unit: EpochUnit) -> Callable[[Any], datetime]:
    def moment(value: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day, tzinfo=UTC)
        if isinstance(value, str | bytes):
            text = _text(value).strip()
            digits = text.removeprefix("-")
            if not (digits.isascii() and digits.isdigit()):
                return datetime.fromisoformat(text)
            value = int(text)
        if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
            raise TypeError
        number = int(value) if value == int(value) else float(value)
        return _EPOCH + timedelta(**{unit: number})

    return moment


def _zoned(unit: EpochUnit) -> Convert:
    to_moment = _moment(unit)

    def zoned(value: Any) -> datetime:
        moment: datetime = value if type(value) is datetime else to_moment(value)
        if moment.tzinfo is UTC:
            return moment
        # Databases without zones store what is given, so it is UTC always.
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    return zoned


def _naive(unit: EpochUnit) -> Convert:
    to_moment = _moment(unit)

    def naive(value: Any) -> datetime:
        moment: datetime = value if type(value) is datetime else to_moment(value)
        if moment.tzinfo is None:
            return moment
        return (moment if moment.tzinfo is UTC else moment.astimezone(UTC)).replace(tzinfo=None)

    return naive


def _date(value: Any) -> date:
    if isinstance(value, datetime):
        return (value if value.tzinfo is None else value.astimezone(UTC)).date()
    if isinstance(value, date):
        return value
    text = _text(value).strip()
    return date.fromisoformat(text) if len(text) == len("2000-01-01") else datetime.fromisoformat(text).date()


def _time(value: Any) -> time:
    return value if isinstance(value, time) else time.fromisoformat(_text(value).strip())


# --- the rest --------------------------------------------------------------------------------------------------------


def _uuid(value: Any) -> UUID:
    if isinstance(value, bytes) and len(value) == 16:
        return UUID(bytes=value)
    return UUID(_text(value).strip())


def _uuid_text(value: Any) -> str:
    return str(_uuid(value))


def _binary(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(memoryview(value))


def _enumeration(kind: types.Enum) -> Conversion:
    """Members by name or value; of two that a text may mean, the one is taken as which the database stores it."""
    members = kind.enum_class
    if members is None:
        return Conversion(_NONE, _chosen({text: text for text in kind.enums}))
    by_name = dict(members.__members__)
    by_value: dict[Any, Any] = {}
    for member in members:
        if getattr(type(member.value), "__hash__", None) is not None:
            by_value[member.value] = member
    stored_by_value = kind.values_callable is not None
    lookup = {**by_name, **by_value} if stored_by_value else {**by_value, **by_name}
    return Conversion(_NONE | {members}, _chosen(lookup))


def _chosen(lookup: Mapping[Any, Any]) -> Convert:
    def choose(value: Any) -> Any:
        try:
            return lookup[value]
        except KeyError:
            return lookup[_text(value)]

    return choose


def _json(nothing: Any) -> Convert:
    """As JSON takes it: times in ISO form, decimal numbers and UUIDs as text. None is NULL, not JSON's null."""

    def converted(value: Any) -> Any:
        return nothing if value is None else _json_value(value)

    return converted


def _json_value(value: Any) -> Any:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError
        return value
    if (fields := as_mapping(value)) is not None:
        return {name if type(name) is str else _text(name): _json_value(inner) for name, inner in fields.items()}
    if (items := as_list(value)) is not None:
        return [_json_value(item) for item in items]
    return to_text(value)


def _array(item: Conversion | None) -> Conversion:
    def converted(value: Any) -> Any:
        items = as_list(value)
        if items is None:
            raise TypeError
        if item is None or item.passes.issuperset(map(type, items)):
            return list(items)
        return [inner(each) for each in items]

    def inner(value: Any) -> Any:
        assert item is not None
        if type(value) in item.passes:
            return value
        return converted(value) if isinstance(value, list | tuple) else item.convert(value)

    return Conversion(_NONE, converted)
