"""Avro's logical types: what Python value stands for a long, an int, a string, bytes or a fixed.

Source: Apache Avro specification 1.12, "Logical Types". A logical type that is unknown, or not valid where it
stands, is ignored as the specification wants; so are `duration` and timestamps in nanoseconds, which no datetime holds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

from deimos_async.schemas.coercion import (
    EPOCH,
    Unfit,
    epoch_micros,
    kind_of,
    to_date,
    to_decimal,
    to_local_timestamp,
    to_time,
    to_timestamp,
    to_uuid,
)

__all__ = ["Logical", "logical_type"]

_LOCAL_EPOCH = EPOCH.replace(tzinfo=None)
_DAYS_TO_EPOCH = date(1970, 1, 1).toordinal()


@dataclass(frozen=True, slots=True, eq=False)
class Logical:
    """One logical type on one underlying type.

    Attributes:
        name: As in the schema.
        python: The type of its values.
        coerce: Any value that can be made to fit -> the Python value, else `Unfit`.
        to_raw: Exact value -> value of the underlying type. Numbers are taken as the raw unit. Raises `Unfit`.
        from_raw: Value of the underlying type -> Python value. Raises ValueError or OverflowError for what is none.
        to_json: Python value -> text; `coerce` reads it back.
    """

    name: str
    python: type
    coerce: Callable[[Any], Any]
    to_raw: Callable[[Any], Any]
    from_raw: Callable[[Any], Any]
    to_json: Callable[[Any], str]

    @property
    def group(self) -> tuple[type, bool]:
        """Equal for logical types that mean the same kind of value in different units or scales."""
        return self.python, self.name.startswith("local-")


def logical_type(kind: str, source: Mapping[str, Any]) -> Logical | None:
    """The logical type that an attribute of a schema declares, or None.

    Args:
        kind: Underlying type.
        source: The type's JSON: `logicalType`, `precision`, `scale`, `size`.
    """
    name = source.get("logicalType")
    if name == "decimal":
        return _decimal(kind, source)
    if name == "uuid" and (kind == "string" or (kind == "fixed" and source.get("size") == 16)):
        return _uuid(kind)
    build = _BY_TYPE.get((kind, name)) if isinstance(name, str) else None
    return build() if build else None


def _decimal(kind: str, source: Mapping[str, Any]) -> Logical | None:
    precision, scale, size = source.get("precision"), source.get("scale", 0), source.get("size")
    if kind not in ("bytes", "fixed") or type(precision) is not int or type(scale) is not int:
        return None
    if kind == "fixed":
        if type(size) is not int or size < 1 or precision > math.floor(math.log10(2) * (8 * size - 1)):
            return None
    else:
        size = None
    if not 0 <= scale <= precision or precision < 1:
        return None
    coerce = partial(to_decimal, precision=precision, scale=scale)

    def to_raw(value: Any) -> bytes:
        if not isinstance(value, Decimal) and (not isinstance(value, int) or isinstance(value, bool)):
            raise Unfit(f"expected a decimal number, got {kind_of(value)}")
        sign, digits, _ = coerce(value).as_tuple()
        unscaled = int(Decimal((sign, digits, 0)))
        # as short as two's complement can be, as Java's BigInteger writes it
        length = size or (unscaled if unscaled >= 0 else ~unscaled).bit_length() // 8 + 1
        return unscaled.to_bytes(length, "big", signed=True)

    def from_raw(raw: bytes) -> Decimal:
        # built from its digits: no arithmetic context may round what another program wrote
        sign, digits, _ = Decimal(int.from_bytes(raw, "big", signed=True)).as_tuple()
        return Decimal((sign, digits, -scale))

    return Logical("decimal", Decimal, coerce, to_raw, from_raw, "{:f}".format)


def _uuid(kind: str) -> Logical:
    textual = kind == "string"

    def to_raw(value: Any) -> Any:
        if not isinstance(value, UUID):
            if not textual or not isinstance(value, str):
                raise Unfit(f"expected a UUID, got {kind_of(value)}")
            value = to_uuid(value)
        return str(value) if textual else value.bytes

    def from_raw(raw: Any) -> UUID:
        return UUID(raw) if textual else UUID(bytes=raw)

    return Logical("uuid", UUID, to_uuid, to_raw, from_raw, str)


def _date() -> Logical:
    def to_raw(value: Any) -> int:
        if type(value) is date or (isinstance(value, date) and not isinstance(value, datetime)):
            return value.toordinal() - _DAYS_TO_EPOCH
        return _number(value, to_date, "a date")

    def from_raw(raw: int) -> date:
        return date.fromordinal(raw + _DAYS_TO_EPOCH)

    return Logical("date", date, to_date, to_raw, from_raw, date.isoformat)


def _time(name: str, unit: int) -> Logical:
    coerce = partial(to_time, unit=unit)

    def to_raw(value: Any) -> int:
        if not isinstance(value, time):
            return _number(value, coerce, "a time of day")
        if value.tzinfo is not None:
            raise Unfit("the time of day has a timezone, which the schema cannot keep")
        seconds = (value.hour * 60 + value.minute) * 60 + value.second
        return (seconds * 1_000_000 + value.microsecond) // unit

    def from_raw(raw: int) -> time:
        seconds, micros = divmod(raw * unit, 1_000_000)
        minutes, second = divmod(seconds, 60)
        hour, minute = divmod(minutes, 60)
        return time(hour, minute, second, micros)

    return Logical(name, time, coerce, to_raw, from_raw, time.isoformat)


def _timestamp(name: str, unit: int) -> Logical:
    coerce = partial(to_timestamp, unit=unit)

    def to_raw(value: Any) -> int:
        if not isinstance(value, datetime):
            return _number(value, coerce, "an aware datetime")
        if value.tzinfo is None:
            raise Unfit("the datetime is naive: add a timezone")
        # the first and the last hours of a timezone may lie outside of the years that UTC has
        return epoch_micros(value if value.tzinfo is UTC else coerce(value)) // unit

    if unit == 1:

        def from_raw(raw: int) -> datetime:
            return EPOCH + timedelta(0, 0, raw)
    else:

        def from_raw(raw: int) -> datetime:
            return EPOCH + timedelta(0, 0, 0, raw)

    return Logical(name, datetime, coerce, to_raw, from_raw, datetime.isoformat)


def _local_timestamp(name: str, unit: int) -> Logical:
    coerce = partial(to_local_timestamp, unit=unit)

    def to_raw(value: Any) -> int:
        if not isinstance(value, datetime):
            return _number(value, coerce, "a naive datetime")
        if value.tzinfo is not None:
            raise Unfit("the datetime has a timezone, which a local timestamp cannot keep")
        return epoch_micros(value) // unit

    def from_raw(raw: int) -> datetime:
        return _LOCAL_EPOCH + timedelta(0, 0, raw * unit)

    return Logical(name, datetime, coerce, to_raw, from_raw, datetime.isoformat)


def _number(value: Any, check: Callable[[Any], Any], wanted: str) -> int:
    if type(value) is not int:
        raise Unfit(f"expected {wanted}, got {kind_of(value)}")
    check(value)
    return value


_BY_TYPE: Mapping[tuple[str, str], Callable[[], Logical]] = {
    ("int", "date"): _date,
    ("int", "time-millis"): partial(_time, "time-millis", 1000),
    ("long", "time-micros"): partial(_time, "time-micros", 1),
    ("long", "timestamp-millis"): partial(_timestamp, "timestamp-millis", 1000),
    ("long", "timestamp-micros"): partial(_timestamp, "timestamp-micros", 1),
    ("long", "local-timestamp-millis"): partial(_local_timestamp, "local-timestamp-millis", 1000),
    ("long", "local-timestamp-micros"): partial(_local_timestamp, "local-timestamp-micros", 1),
}
