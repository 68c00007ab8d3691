"""What a poller reads next, and what it has sent: positions as text, windows of closed ticks, the overlap. No I/O.

Rows are ordered by (timestamp, primary key), so that a page may end anywhere within one instant. The upper end of a
window is exclusive and cut to what the column can tell apart: a tick is read when it is over, as a row that is changed
twice within it looks the same both times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from deimos_async.database.polling.protocol import Bounds, Position

__all__ = ["Sent", "behind", "floor", "moment", "next_end", "read_key", "rewound", "write_key"]

_WRITERS: Mapping[type, tuple[str, Callable[[Any], Any]]] = {
    bool: ("bool", bool),
    int: ("int", int),
    str: ("str", str),
    float: ("float", float.hex),
    bytes: ("bytes", bytes.hex),
    UUID: ("uuid", str),
    Decimal: ("decimal", str),
    datetime: ("datetime", datetime.isoformat),
    date: ("date", date.isoformat),
    time: ("time", time.isoformat),
}
_READERS: Mapping[str, Callable[[Any], Any]] = {
    "bool": bool,
    "int": int,
    "str": str,
    "float": float.fromhex,
    "bytes": bytes.fromhex,
    "uuid": UUID,
    "decimal": Decimal,
    "datetime": datetime.fromisoformat,
    "date": date.fromisoformat,
    "time": time.fromisoformat,
}
_SLACK = timedelta(seconds=1)
"""By how much a cursor may be ahead of the database's time before its clock counts as set back."""


def write_key(key: Sequence[Any]) -> str:
    """A primary key as text that `read_key` takes back, each part with its type.

    Raises:
        TypeError: A part is of a type that is not known.
    """
    parts = []
    for value in key:
        found = _WRITERS.get(type(value)) or next(
            (writer for cls, writer in _WRITERS.items() if cls is not int and isinstance(value, cls)), None
        )
        if found is None:
            raise TypeError(
                f"a primary key of type {type(value).__name__} cannot be kept as a cursor; the types are "
                f"{', '.join(cls.__name__ for cls in _WRITERS)}"
            )
        name, write = found
        parts.append([name, write(value)])
    return json.dumps(parts)


def read_key(text: str) -> tuple[Any, ...]:
    """The primary key that `write_key` has written."""
    return tuple(_READERS[name](value) for name, value in json.loads(text))


def moment(text: str) -> datetime:
    """The time of a position, aware; one that names no zone is in UTC."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def floor(time: datetime, digits: int) -> datetime:
    """The time cut to so many digits of seconds, 0 to 6."""
    return time.replace(microsecond=time.microsecond - time.microsecond % 10 ** (6 - digits))


def next_end(bounds: Bounds, *, delay: float, digits: int) -> datetime:
    """Exclusive end of what may be read: nothing will appear before it any more.

    Args:
        delay: Seconds to stay behind, for clocks that differ, and for stamps that were taken before their transaction
            began.
        digits: What the column keeps of seconds.

    Source: Deimos 2.6, time-based poller (`now - delay_time`, inclusive). Differs: stays behind open transactions, too.
    """
    latest = bounds.now if bounds.oldest is None else min(bounds.now, bounds.oldest)
    return floor(latest - timedelta(seconds=delay), digits)


def rewound(time: datetime, seconds: float) -> Position:
    """Before all rows of the moment so many seconds earlier."""
    return Position((time - timedelta(seconds=seconds)).astimezone(UTC).replace(tzinfo=None).isoformat(" "), None)


def behind(position: Position | None, now: datetime) -> bool:
    """Whether a cursor is not in the future. One that is would stop the poller without a word: the clock went back."""
    return position is None or moment(position.time) <= now + _SLACK


class Sent:
    """Rows that were sent and may be read again, with the times that they had.

    Used where transactions cannot be seen: what has just been read is read again for a while, in case something
    appeared between.
    """

    def __init__(self) -> None:
        self._times: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._times)

    def has(self, key: str, time: str) -> bool:
        """Whether the row was sent with this time."""
        return self._times.get(key) == time

    def add(self, key: str, time: str) -> None:
        """It was sent."""
        self._times[key] = time

    def forget_before(self, limit: datetime) -> None:
        """What is older is not read again."""
        self._times = {key: time for key, time in self._times.items() if moment(time) >= limit}
