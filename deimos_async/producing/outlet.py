"""What producing needs of a running application, decided at start."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from deimos_async.errors import ConfigurationError
from deimos_async.events import EventBus
from deimos_async.message import Delivery, OutboundRecord
from deimos_async.producing.measuring import SendMeasurements
from deimos_async.telemetry.protocol import Tracing
from deimos_async.topics import PayloadLog, Topic

if TYPE_CHECKING:  # start-up time: the codec's module loads schema libraries
    from collections.abc import Iterator

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from deimos_async.schemas.codec import TopicCodec

__all__ = [
    "BACKENDS",
    "DIRECT_BACKENDS",
    "Outgoing",
    "Outlets",
    "ProducerBackend",
    "StoringBackend",
    "TopicOutlet",
    "disabled",
    "is_disabled",
    "is_storing",
]


DIRECT_BACKENDS = frozenset({"kafka", "kafka_async"})
"""Names of backends that send after the commit of a transaction, not with it."""
BACKENDS = ("kafka", "kafka_async", "outbox", "test")
"""Names of all backends."""


@dataclass(frozen=True, slots=True)
class TopicOutlet:
    """One topic to produce to."""

    name: str
    """As declared."""
    kafka_name: str
    """With its prefix."""
    cluster: str
    codec: TopicCodec
    payload_log: PayloadLog


class Outgoing:
    """One message on its way: the encoded record, and what it was made from (coerced payload, unencoded key)."""

    __slots__ = ("key", "outlet", "partition_key", "payload", "producer", "record")

    def __init__(
        self,
        outlet: TopicOutlet,
        producer: str,
        record: OutboundRecord,
        payload: Any,
        key: Any,
        partition_key: Any,
    ) -> None:
        self.outlet = outlet
        self.producer = producer
        self.record = record
        self.payload = payload
        self.key = key
        self.partition_key = partition_key

    @property
    def topic(self) -> str:
        """As declared, without the prefix."""
        return self.outlet.name

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        return self.record.headers


class ProducerBackend(Protocol):
    """Where encoded messages go."""

    name: str

    async def send(self, messages: Sequence[Outgoing]) -> list[Delivery] | None:
        """Send in order. Returns deliveries where they are awaited, else None. Raises DeliveryError."""


class StoringBackend(ProducerBackend, Protocol):
    """Where messages go with the transaction they belong to, not after it."""

    def enlist(self, session: AsyncSession | Session, messages: Sequence[Outgoing]) -> None:
        """Store messages at the end of the session's outermost transaction; a rollback drops them."""

    def write(self, session: Session, messages: Sequence[Outgoing]) -> None:
        """Store messages now, as at that end; where the session may be used as by `AsyncSession.run_sync`."""


def is_storing(backend: ProducerBackend) -> TypeGuard[StoringBackend]:
    """Whether messages go with the transaction."""
    return backend.name == "outbox"


@dataclass(frozen=True, slots=True)
class Outlets:
    """Everything that the producers of one running application share."""

    owner: object
    """The application: its transactions, its disabled producers."""
    topics: Mapping[str, TopicOutlet]
    backends: Mapping[str, ProducerBackend]
    default_backend: str
    disabled: bool
    events: EventBus
    measured: SendMeasurements
    tracing: Tracing
    truncate_columns: bool = False
    """Whether model producers cut text to the lengths of columns."""
    open_session: Callable[[], AsyncSession] | None = None
    """A new session on the application's database; None: there is none."""

    def topic(self, topic: Topic | str) -> TopicOutlet:
        """Raises ConfigurationError for a topic that is not declared."""
        name = topic if isinstance(topic, str) else topic.name
        found = self.topics.get(name)
        if found is None:
            raise ConfigurationError(f"topic {name!r} is not declared; declare it with app.topic({name!r}, ...)")
        return found

    def backend(self, name: str) -> ProducerBackend:
        """Raises ConfigurationError for a backend that does not exist."""
        found = self.backends.get(name)
        if found is None:
            if name == "outbox":
                problem = "there is no database; set 'database.url', or give Deimos(engine=...)"
            elif name in DIRECT_BACKENDS:
                problem = (
                    "this process has no connection to Kafka, as all its producers use the outbox; "
                    f"declare a producer with backend={name!r}"
                )
            else:
                problem = f"it does not exist; one of {', '.join(map(repr, BACKENDS))}"
            raise ConfigurationError(f"producer backend {name!r}: {problem}")
        return found


_disabled: ContextVar[tuple[tuple[object, frozenset[object]], ...]] = ContextVar(
    "deimos_async.disabled_producers", default=()
)


@contextmanager
def disabled(owner: object, producers: Sequence[object]) -> Iterator[None]:
    """Stop all producers of the application, or only those given, in this context (task) alone. Blocks nest."""
    token = _disabled.set((*_disabled.get(), (owner, frozenset(producers))))
    try:
        yield
    finally:
        _disabled.reset(token)


def is_disabled(owner: object, producer: object | None = None) -> bool:
    """Whether all producers, or this one, are stopped here."""
    return any(
        whose is owner and (not producers or (producer is not None and producer in producers))
        for whose, producers in _disabled.get()
    )
