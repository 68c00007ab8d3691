"""What one value may become: numbers from text, text from objects, points in time from ISO text, mappings from objects.

Plain functions without a schema; each returns the converted value or raises `Unfit`, whose paths grow on the way up.
No problem names a value, since values may be personal: only types, limits and symbols are told.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from numbers import Integral, Real
from typing import Any
from uuid import UUID

from deimos_async.errors import FieldError

__all__ = [
    "EPOCH",
    "Unfit",
    "as_list",
    "as_mapping",
    "epoch_micros",
    "key_step",
    "kind_of",
    "to_boolean",
    "to_bytes",
    "to_date",
    "to_decimal",
    "to_float",
    "to_integer",
    "to_local_timestamp",
    "to_symbol",
    "to_text",
    "to_time",
    "to_timestamp",
    "to_uuid",
    "unfit_at",
]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LOCAL_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001 - local timestamps have no timezone
_EPOCH_DAY = date(1970, 1, 1)

# ASCII digits only: Python's own int() and float() take digits of every script. Longer texts cannot be in range.
_LONGEST_NUMBER = 400
_INTEGER = re.compile(r"[+-]?[0-9]+(?:_[0-9]+)*")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_DATETIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}.*")
_TIME = re.compile(r"[0-9]{2}:[0-9]{2}(?::[0-9]{2}(?:[.,][0-9]+)?)?")


class Unfit(Exception):
    """A value that cannot be made to fit. `errors`: pairs of path and problem; the path is relative to the value."""

    def __init__(self, errors: str | list[tuple[str, str]]) -> None:
        super().__init__()
        self.errors = [("", errors)] if isinstance(errors, str) else errors

    def field_errors(self) -> list[FieldError]:
        """The same for an `EncodeError` or a `DecodeError`."""
        return [FieldError(path, problem) for path, problem in self.errors]


def unfit_at(step: str | int, error: Unfit, earlier: list[tuple[str, str]] | None) -> list[tuple[str, str]]:
    """Errors of a part, told from the whole, after those found earlier.

    A path is written `record.field[3]["map key"].field`: `step` is a field's name, the index of an item, or the
    `key_step` of a map's key.
    """
    head = f"[{step}]" if isinstance(step, int) else step
    errors = earlier if earlier is not None else []
    for path, problem in error.errors:
        errors.append((head + (path if not path or path[0] == "[" else f".{path}"), problem))
    return errors


def key_step(key: Any) -> str:
    """Step of a path into a map: the key in JSON's quotes and brackets, so that no key looks like a field."""
    return f"[{json.dumps(str(key), ensure_ascii=False)}]"


def kind_of(value: Any) -> str:
    """What to call a value in an error: `null`, or its type's name."""
    return "null" if value is None else type(value).__name__


def _expected(wanted: str, value: Any) -> Unfit:
    return Unfit(f"expected {wanted}, got {kind_of(value)}")


def _unwrap(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


# --- mappings and lists ---------------------------------------------------------------------------------------------


def as_mapping(value: Any) -> Mapping[Any, Any] | None:
    """The fields of a mapping, a dataclass instance, a pydantic model or an object with `to_dict()`; else None.

    Dataclasses are taken one level deep, so that nested objects keep their types.
    """
    if isinstance(value, Mapping):
        return value
    cls = type(value)
    if dataclasses.is_dataclass(cls):
        return {
            entry.name: getattr(value, entry.name) for entry in dataclasses.fields(cls) if hasattr(value, entry.name)
        }
    for method in ("model_dump", "to_dict"):
        if callable(getattr(cls, method, None)):
            dumped = getattr(value, method)()
            return dumped if isinstance(dumped, Mapping) else None
    return None


def as_list(value: Any) -> Sequence[Any] | None:
    """The items of a list, tuple, set or other sequence; None for text, bytes, iterators and anything else."""
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, str | bytes | bytearray | memoryview):
        return None
    return list(value) if isinstance(value, Sequence | AbstractSet) else None


# --- numbers and truth ----------------------------------------------------------------------------------------------


def to_boolean(value: Any) -> bool:
    """True and False, the integers 1 and 0, the words true and false in any case; nothing else."""
    value = _unwrap(value)
    if isinstance(value, bool):
        return value
    if isinstance(value, Integral) and value in (0, 1):
        return bool(value)
    if isinstance(value, str) and (word := value.strip().lower()) in ("true", "false"):
        return word == "true"
    raise _expected("boolean", value)


def to_integer(value: Any, bits: int, *, per_second: int = 1) -> int:
    """A signed integer of that many bits.

    From integers (never booleans or floats), decimal text (sign, blanks around, single underscores; leading zeros are
    decimal), and aware datetimes, which become whole units since the epoch, rounded down.

    Args:
        bits: 32 or 64.
        per_second: Units in a second for datetimes.

    Source: Deimos 2.6 coercion, without its hexadecimal and octal traps.
    """
    value = _unwrap(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
    elif isinstance(value, str):
        text = value.strip()
        if not _INTEGER.fullmatch(text):
            raise Unfit("the text is not a whole number")
        if len(text) > _LONGEST_NUMBER:
            raise Unfit(f"out of range: more than {bits} bits")
        number = int(text)
    elif isinstance(value, datetime):
        if value.tzinfo is None:
            raise Unfit("the datetime is naive: add a timezone")
        number = epoch_micros(value) * per_second // 1_000_000
    else:
        raise _expected("an integer", value)
    limit = 1 << (bits - 1)
    if not -limit <= number < limit:
        raise Unfit(f"out of range: more than {bits} bits")
    return number


_LARGEST_FLOAT = math.ldexp(2 - 2**-24, 127)  # from here on rounding to 32 bits gives infinity


def to_float(value: Any, bits: int) -> float:
    """A float from any real number but booleans, or from text such as `1.1`, `1e3` or ` 2 `.

    With `bits` 32 the range is checked and the value kept as it is; it is rounded when it is written.
    """
    value = _unwrap(value)
    try:
        if isinstance(value, Real | Decimal) and not isinstance(value, bool):
            number = float(value)
        elif isinstance(value, str):
            text = value.strip()
            if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
                raise Unfit("the text is not a number")
            number = float(text)
            if math.isinf(number):
                raise Unfit("out of range: more than 64 bits")
        else:
            raise _expected("a number", value)
    except (OverflowError, ValueError) as error:
        raise Unfit("out of range: more than 64 bits") from error
    if bits == 32 and abs(number) >= _LARGEST_FLOAT and not math.isinf(number):
        raise Unfit("out of range: more than 32 bits")
    return number


def to_decimal(value: Any, precision: int, scale: int) -> Decimal:
    """A decimal with exactly `scale` digits after the point and at most `precision` digits.

    From Decimal, integers, text, and floats by their shortest text. Digits are never rounded away.
    """
    value = _unwrap(value)
    if isinstance(value, Decimal):
        number = value
    elif isinstance(value, Integral) and not isinstance(value, bool):
        number = Decimal(int(value))
    elif isinstance(value, float):
        number = Decimal(repr(float(value)))
    elif isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
            raise Unfit("the text is not a decimal number")
        number = Decimal(text)
    else:
        raise _expected("a decimal number", value)
    if not number.is_finite():
        raise Unfit("the decimal number is not finite")
    if number and number.adjusted() + 1 + scale > precision:
        raise Unfit(f"more than {precision} digits with {scale} after the point")
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    shift = exponent + scale
    if shift >= 0:
        # bounded: a number other than 0 was refused above when its exponent is large
        digits += (0,) * (shift if number else 0)
    else:
        if any(digits[shift:]):
            raise Unfit(f"more than {scale} digits after the point")
        digits = digits[:shift]
    return Decimal((sign if any(digits) else 0, digits or (0,), -scale))


# --- text and bytes -------------------------------------------------------------------------------------------------


def to_text(value: Any) -> str:
    """Text from anything with a text form of its own.

    Numbers, `true` and `false`, dates and times in ISO form, the value of an enum member, lists and mappings (also
    dataclasses and models) as JSON, objects whose class defines `__str__`. Not from null, bytes, or objects that have
    only the default form.
    """
    value = _unwrap(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(int(value) if isinstance(value, int) else float(value))
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes | bytearray | memoryview):
        raise Unfit("expected text, got bytes: decode them first")
    if isinstance(value, list | tuple | AbstractSet) or (not isinstance(value, Decimal | UUID) and _is_object(value)):
        try:
            return json.dumps(_json_form(value), ensure_ascii=False, separators=(",", ":"), default=_json_form)
        except (TypeError, ValueError, RecursionError) as error:
            raise Unfit(f"the {kind_of(value)} cannot be written as JSON text") from error
    if value is not None and _has_own_text(type(value)):
        return str(value)
    raise _expected("text", value)


def _has_own_text(cls: type) -> bool:
    # every object has a __str__; the one that all share says nothing about the value
    return getattr(cls, "__str__", None) is not object.__str__


def _is_object(value: Any) -> bool:
    cls = type(value)
    if isinstance(value, Mapping) or callable(getattr(cls, "model_dump", None)):
        return True
    if _has_own_text(cls):
        return False
    return dataclasses.is_dataclass(cls) or callable(getattr(cls, "to_dict", None))


def _json_form(value: Any) -> Any:
    if (mapping := as_mapping(value)) is not None:
        return dict(mapping)
    if (items := as_list(value)) is not None:
        return list(items)
    try:
        return to_text(value)
    except Unfit:
        raise TypeError(kind_of(value)) from None


def to_bytes(value: Any, size: int | None = None) -> bytes:
    """Bytes from bytes, bytearray, memoryview, or text as UTF-8; of exactly `size` bytes where that is given."""
    value = _unwrap(value)
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
    elif isinstance(value, str):
        try:
            data = value.encode()
        except UnicodeEncodeError as error:
            raise Unfit("the text has half of a surrogate pair and no UTF-8 form") from error
    else:
        raise _expected("bytes", value)
    if size is not None and len(data) != size:
        raise Unfit(f"expected {size} bytes, got {len(data)}")
    return data


def to_symbol(value: Any, symbols: Mapping[str, Any]) -> str:
    """A symbol of an enum: text, or an enum member by its value, else by its name."""
    for candidate in (value.value, value.name) if isinstance(value, Enum) else (value,):
        if isinstance(candidate, str) and candidate in symbols:
            return str.__str__(candidate)
    if isinstance(value, str | Enum):
        raise Unfit(f"not one of the symbols {_listed(symbols)}")
    raise _expected(f"one of the symbols {_listed(symbols)}", value)


def _listed(names: Iterable[str], most: int = 10) -> str:
    shown = list(names)
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def to_uuid(value: Any) -> UUID:
    """A UUID from a UUID, its text in any usual form, or its 16 bytes."""
    value = _unwrap(value)
    if isinstance(value, UUID):
        return value
    try:
        if isinstance(value, str):
            return UUID(value.strip())
        if isinstance(value, bytes | bytearray | memoryview):
            return UUID(bytes=bytes(value))
    except ValueError as error:
        raise Unfit("not a UUID") from error
    raise _expected("a UUID", value)


# --- dates and times ------------------------------------------------------------------------------------------------


def epoch_micros(moment: datetime) -> int:
    """Microseconds since the epoch, exact, negative before it. A naive moment counts from a naive epoch."""
    delta = moment - (EPOCH if moment.tzinfo is not None else _LOCAL_EPOCH)
    return (delta.days * 86_400 + delta.seconds) * 1_000_000 + delta.microseconds


def _parsed(parse: Callable[[str], Any], pattern: re.Pattern[str], text: str, wanted: str) -> Any:
    text = text.strip()
    if pattern.fullmatch(text):
        try:
            return parse(text)
        except ValueError:
            pass
    raise Unfit(f"the text is not {wanted}")


def to_date(value: Any) -> date:
    """A date from a date, a datetime at midnight, ISO text `2026-11-24`, or days since the epoch."""
    value = _unwrap(value)
    if isinstance(value, datetime):
        if value.time() != time.min:
            raise Unfit("the datetime has a time of day, which a date cannot keep: pass its date()")
        return value.date()
    if isinstance(value, date):
        return value
    if isinstance(value, str):
        parsed: date = _parsed(date.fromisoformat, _DATE, value, "an ISO date (2026-11-24)")
        return parsed
    if isinstance(value, Integral) and not isinstance(value, bool):
        try:
            return _EPOCH_DAY + timedelta(days=int(value))
        except OverflowError as error:
            raise Unfit("the date is outside of the years 1 to 9999") from error
    raise _expected("a date", value)


def to_time(value: Any, unit: int) -> time:
    """A time of day without a timezone, cut to the unit: from a time, ISO text `12:30:00`, or units since midnight.

    Args:
        unit: Microseconds in a unit, 1000 or 1.
    """
    value = _unwrap(value)
    if isinstance(value, str):
        value = _parsed(time.fromisoformat, _TIME, value, "an ISO time of day (12:30:00)")
    if isinstance(value, time):
        if value.tzinfo is not None:
            raise Unfit("the time of day has a timezone, which the schema cannot keep")
        return value.replace(microsecond=value.microsecond // unit * unit, fold=0)
    if isinstance(value, Integral) and not isinstance(value, bool):
        micros = int(value) * unit
        if not 0 <= micros < 86_400_000_000:
            raise Unfit("the time of day is outside of one day")
        return (_LOCAL_EPOCH + timedelta(microseconds=micros)).time()
    raise _expected("a time of day", value)


def to_timestamp(value: Any, unit: int) -> datetime:
    """A moment in UTC, cut down to the unit: from an aware datetime, ISO text with an offset, or units since the epoch.

    Args:
        unit: Microseconds in a unit, 1000 or 1.
    """
    value = _unwrap(value)
    if isinstance(value, str):
        value = _parsed(datetime.fromisoformat, _DATETIME, value, "an ISO datetime (2026-11-24T12:30:00Z)")
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise Unfit("the datetime is naive: add a timezone")
        try:
            moment = value.astimezone(UTC)
        except OverflowError as error:
            raise Unfit("the datetime is outside of the years 1 to 9999") from error
        return _plain_datetime(moment, unit)
    if isinstance(value, Integral) and not isinstance(value, bool):
        try:
            return EPOCH + timedelta(microseconds=int(value) * unit)
        except OverflowError as error:
            raise Unfit("the timestamp is outside of the years 1 to 9999") from error
    raise _expected("an aware datetime", value)


def to_local_timestamp(value: Any, unit: int) -> datetime:
    """A wall clock's datetime, cut down to the unit: from a naive datetime, ISO text without an offset, or units."""
    value = _unwrap(value)
    if isinstance(value, str):
        value = _parsed(datetime.fromisoformat, _DATETIME, value, "an ISO datetime without an offset")
    if isinstance(value, datetime):
        if value.tzinfo is not None:
            raise Unfit("the datetime has a timezone, which a local timestamp cannot keep")
        return _plain_datetime(value, unit)
    if isinstance(value, Integral) and not isinstance(value, bool):
        try:
            return _LOCAL_EPOCH + timedelta(microseconds=int(value) * unit)
        except OverflowError as error:
            raise Unfit("the timestamp is outside of the years 1 to 9999") from error
    raise _expected("a naive datetime", value)


def _plain_datetime(moment: datetime, unit: int) -> datetime:
    if type(moment) is datetime:
        extra = moment.microsecond % unit
        return moment.replace(microsecond=moment.microsecond - extra, fold=0) if extra or moment.fold else moment
    # a subclass (pandas, pendulum) may compare and print differently from what decoding gives back
    micros = epoch_micros(moment)
    return (EPOCH if moment.tzinfo is not None else _LOCAL_EPOCH) + timedelta(microseconds=micros - micros % unit)
