"""Records (raw bytes) and messages (decoded), and what places them in Kafka."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, NamedTuple, Protocol

from typing_extensions import TypeVar

__all__ = [
    "RESERVED_HEADERS",
    "Delivery",
    "HeaderValue",
    "Headers",
    "HeadersInput",
    "InboundRecord",
    "Message",
    "OutboundRecord",
    "TopicPartition",
    "encode_headers",
    "moment_of",
]

P = TypeVar("P", default=Any)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

HeaderValue = bytes | None
HeadersInput = Mapping[str, "str | bytes | None"] | Iterable[tuple[str, "str | bytes | None"]]
"""What users give as headers: a mapping, or pairs where a name may occur again."""
RESERVED_HEADERS = (
    "deimos-dlq-", "deimos-retry-", "deimos-replay", "deimos-message-id", "deimos-seq", "deimos-enqueued-at",
)  # fmt: skip
"""Beginnings of the names by which dead letters, retry topics and replays are steered, and messages of the outbox told
apart. Producers leave them out of what users give: passed on with `headers=message.headers` they would say of a new
message what was true of another one.
"""


class TopicPartition(NamedTuple):
    """One partition, by the topic's name in Kafka (with its prefix)."""

    topic: str
    partition: int


class Delivery(NamedTuple):
    """Where an acknowledged message lies."""

    topic: str
    partition: int
    offset: int


class InboundRecord(Protocol):
    """A record as the broker gave it. Transports hand out objects of their own that have these attributes."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int | None:
        """Milliseconds since the epoch, UTC; None or negative where Kafka has none."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]: ...


class OutboundRecord(NamedTuple):
    """A record that is ready to be sent: encoded, and under the topic's name in Kafka.

    A tuple of plain values, as the garbage collector does not keep watching those: a long list of them costs less.

    Attributes:
        topic: Name in Kafka, prefix included.
        key, value: Encoded bytes or None.
        headers: Pairs in order; names may repeat.
        partition: Explicit partition, or None to choose by key.
        partition_key: Bytes that choose the partition instead of `key`, or None.
        timestamp: Milliseconds since the epoch, or None for the time of sending.
    """

    topic: str
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    partition: int | None = None
    partition_key: bytes | None = None
    timestamp: int | None = None

    def __repr__(self) -> str:  # what it carries does not belong into logs
        return f"OutboundRecord(topic={self.topic!r}, partition={self.partition!r})"


class Headers:
    """A message's headers: iterates as `(name, value)` pairs in order, repeated names kept.

    `headers["name"]` and `headers.get("name")` give the last value of that name, as Kafka's own clients do;
    `get_all` gives every value. Values are bytes or None.
    """

    __slots__ = ("_pairs",)

    def __init__(self, pairs: Sequence[tuple[str, bytes | None]] = ()) -> None:
        self._pairs = pairs

    def __iter__(self) -> Iterator[tuple[str, bytes | None]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, name: object) -> bool:
        return any(pair[0] == name for pair in self._pairs)

    def __getitem__(self, name: str) -> bytes | None:
        for found, value in reversed(self._pairs):
            if found == name:
                return value
        raise KeyError(name)

    def get(self, name: str, default: bytes | None = None) -> bytes | None:
        """Last value of that name, else the default."""
        for found, value in reversed(self._pairs):
            if found == name:
                return value
        return default

    def get_all(self, name: str) -> list[bytes | None]:
        """Every value of that name, in order."""
        return [value for found, value in self._pairs if found == name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and list(self._pairs) == list(other._pairs)

    def __hash__(self) -> int:
        return hash(tuple(self._pairs))

    def __repr__(self) -> str:
        return f"Headers({[name for name, _ in self._pairs]})"


class Message(Generic[P]):
    """One decoded message, read-only.

    Payload and key are decoded before the handler is called. `payload` is None for a tombstone. `topic` is the
    name in Kafka, prefix included.
    """

    __slots__ = ("_headers", "_key", "_payload", "_record")
    _headers: Headers

    def __init__(self, record: InboundRecord, key: Any, payload: P) -> None:
        self._record = record
        self._key = key
        self._payload = payload

    @property
    def topic(self) -> str:
        return self._record.topic

    @property
    def partition(self) -> int:
        return self._record.partition

    @property
    def offset(self) -> int:
        return self._record.offset

    @property
    def timestamp(self) -> datetime | None:
        """Aware UTC datetime, made when read; None where Kafka has none, or one after the year 9999."""
        return moment_of(self._record.timestamp)

    @property
    def key(self) -> Any:
        return self._key

    @property
    def payload(self) -> P:
        return self._payload

    @property
    def headers(self) -> Headers:
        try:
            return self._headers
        except AttributeError:  # made when first read: most handlers never do
            self._headers = Headers(self._record.headers)
            return self._headers

    @property
    def raw_key(self) -> bytes | None:
        return self._record.key

    @property
    def raw_payload(self) -> bytes | None:
        return self._record.value

    @property
    def is_tombstone(self) -> bool:
        """Whether the record has no value at all. An empty value is not a tombstone."""
        return self._record.value is None

    def __repr__(self) -> str:
        return f"Message(topic={self.topic!r}, partition={self.partition}, offset={self.offset})"


def moment_of(milliseconds: int | None) -> datetime | None:
    """Aware UTC datetime of a record's timestamp; None where there is none, or one that no datetime can be.

    Args:
        milliseconds: Since the epoch. A producer may write any 64-bit number.
    """
    if milliseconds is None or milliseconds < 0:
        return None
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds)
    except OverflowError:
        return None


def encode_headers(headers: HeadersInput | None) -> list[tuple[str, bytes | None]]:
    """Headers as users give them, as pairs with bytes; text is UTF-8. Order and repeated names are kept.

    Raises:
        TypeError: A name is not `str`, or a value is none of `str`, `bytes`, None; the text names the header.
    """
    if headers is None:
        return []
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    encoded: list[tuple[str, bytes | None]] = []
    for name, value in pairs:
        if not isinstance(name, str):
            raise TypeError(f"header names are str, not {type(name).__name__}")
        if isinstance(value, str):
            encoded.append((name, value.encode()))
        elif value is None or isinstance(value, bytes):
            encoded.append((name, value))
        else:
            raise TypeError(f"header {name!r}: values are str, bytes or None, not {type(value).__name__}")
    return encoded
