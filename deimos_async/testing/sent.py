"""What was sent in a test: messages as a consumer would read them, in the order of sending."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deimos_async.brokers.protocol import BrokerProducer
from deimos_async.consuming.dead_letters import HEADER_PREFIX, RETRY_PREFIX
from deimos_async.errors import DeimosError, DeliveryError
from deimos_async.message import Delivery, Headers, OutboundRecord
from deimos_async.producing.outlet import Outgoing, ProducerBackend
from deimos_async.testing.matching import differences

if TYPE_CHECKING:  # start-up time: the codec's module loads schema libraries
    from deimos_async.schemas.codec import TopicCodec

__all__ = ["LetterRecorder", "OutboxRecorder", "Recorder", "SentHeaders", "SentMessage", "header_values"]

_NAMING = frozenset(prefix + name for prefix in (HEADER_PREFIX, RETRY_PREFIX) for name in ("topic", "group"))
"""Headers that hold a name in Kafka."""


class SentHeaders(Headers):
    """Headers that are also equal to a mapping, or to pairs, with text for bytes.

    `message.headers == {"origin": "billing"}` holds for the one header `origin` with the value `b"billing"`.
    """

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (Headers, Mapping, list, tuple)):
            return not differences(header_values(other), header_values(self))
        return NotImplemented

    __hash__ = Headers.__hash__

    def __repr__(self) -> str:
        return f"SentHeaders({list(self)})"


def header_values(headers: Headers | Mapping[str, Any] | Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Values by name, text as bytes; the list of them where a name is repeated. Order between names does not count."""
    pairs: Iterable[tuple[str, Any]] = headers.items() if isinstance(headers, Mapping) else headers
    found: dict[str, list[Any]] = {}
    for name, value in pairs:
        found.setdefault(name, []).append(value.encode() if isinstance(value, str) else value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


@dataclass(frozen=True, slots=True)
class SentMessage:
    """A message that the application has sent, decoded from its bytes.

    Attributes:
        topic: As declared, without the prefix; a dead-letter or retry topic as it would be declared.
        payload: None for a tombstone. Bytes where it cannot be decoded, in a dead letter; the key likewise.
        key: As a handler would get it.
        partition_key: The one that was given, else the key as text; None where the key is neither text nor number.
        headers: Comparable with a mapping.
    """

    topic: str
    payload: Any
    key: Any
    partition_key: str | bytes | None
    headers: SentHeaders
    _key_as_read: Callable[[Any], Any] = field(repr=False, compare=False)

    def key_as_read(self, key: Any) -> Any:
        """What a consumer of this topic would get for a key, so that `1` is `"1"` where keys are text.

        The key itself where it cannot be a key of this topic (a matcher, say).
        """
        try:
            return self._key_as_read(key)
        except DeimosError:
            return key


class Recorder:
    """A producer backend that keeps what goes through it; what another backend refused is not kept.

    Args:
        name: Name of the backend that it stands for.
        through: Where messages go.
        sent: Where they are kept, shared by all recorders of a test.
        tells: Whether deliveries are returned.
    """

    def __init__(self, name: str, through: ProducerBackend, sent: list[SentMessage], *, tells: bool = True) -> None:
        self.name = name
        self._through = through
        self._sent = sent
        self._tells = tells

    async def send(self, messages: Sequence[Outgoing]) -> list[Delivery] | None:
        """As the backend that it stands for."""
        # decoded before it is sent: no await may come between sending and keeping, so that the order holds
        decoded = [await _decoded(message) for message in messages]
        try:
            deliveries = await self._through.send(messages)
        except DeliveryError as error:
            self._sent += [one for one, delivery in zip(decoded, error.deliveries, strict=False) if delivery]
            raise
        self._sent += decoded
        return deliveries if self._tells else None


class OutboxRecorder:
    """Keeps messages that a transaction has stored in the outbox, when it was committed.

    Args:
        sent: Where they are kept, shared by all recorders of a test.
    """

    def __init__(self, sent: list[SentMessage]) -> None:
        self._sent = sent

    async def __call__(self, messages: Sequence[Outgoing]) -> None:
        """Keep them."""
        self._sent += [await _decoded(message) for message in messages]


class LetterRecorder:
    """A broker's producer that keeps the dead letters and retried messages that consumers send through it.

    Args:
        through: Where they go.
        sent: Where they are kept, shared with the recorders of a test.
        find: Name to show and codec to read with, for a topic's name in Kafka.
        prefix: Left out where a header of ours holds a name in Kafka.
    """

    def __init__(
        self,
        through: BrokerProducer,
        sent: list[SentMessage],
        find: Callable[[str], tuple[str, TopicCodec]],
        prefix: str,
    ) -> None:
        self._through = through
        self._sent = sent
        self._find = find
        self._prefix = prefix
        self.start = through.start
        self.stop = through.stop

    async def send(self, records: Sequence[OutboundRecord]) -> list[Delivery]:
        """See `BrokerProducer.send`."""
        decoded = [await self._decoded(record) for record in records]
        try:
            deliveries = await self._through.send(records)
        except DeliveryError as error:
            self._sent += [one for one, delivery in zip(decoded, error.deliveries, strict=False) if delivery]
            raise
        self._sent += decoded
        return deliveries

    async def _decoded(self, record: OutboundRecord) -> SentMessage:
        topic, codec = self._find(record.topic)
        payload, key = record.value, record.key
        with suppress(DeimosError):
            payload = await codec.decode_payload(record.value)
        with suppress(DeimosError):
            key = await codec.decode_key(record.key)
        with suppress(DeimosError):
            await codec.prepare()  # for `key_as_read`; a topic that is only read was not prepared
        return SentMessage(
            topic=topic,
            payload=payload,
            key=key,
            partition_key=_partition_key(None, key),
            headers=SentHeaders([(name, self._shown(name, value)) for name, value in record.headers]),
            _key_as_read=_key_reader(codec),
        )

    def _shown(self, name: str, value: bytes | None) -> bytes | None:
        return value.removeprefix(self._prefix.encode()) if value is not None and name in _NAMING else value


def _key_reader(codec: TopicCodec) -> Callable[[Any], Any]:
    def key_as_read(given: Any) -> Any:
        return None if given is None else codec.key_decoder(codec.encode_key_now(given))

    return key_as_read


async def _decoded(message: Outgoing) -> SentMessage:
    record, codec = message.record, message.outlet.codec
    key = await codec.decode_key(record.key)
    return SentMessage(
        topic=message.topic,
        payload=await codec.decode_payload(record.value),
        key=key,
        partition_key=_partition_key(message.partition_key, key),
        headers=SentHeaders(list(record.headers)),
        _key_as_read=_key_reader(codec),
    )


def _partition_key(given: str | bytes | None, key: Any) -> str | bytes | None:
    # Source: Deimos 2.6, choice of the partition key: the message's, else the unencoded key as text.
    if given is not None:
        return given
    if isinstance(key, bytes):
        return key
    return None if key is None or isinstance(key, (Mapping, list, tuple)) else str(key)
