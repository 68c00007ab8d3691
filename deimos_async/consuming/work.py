"""What one consumer does, decided at start: the values that everything in this package works by."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from deimos_async.consuming.clock import Clock, LoopClock
from deimos_async.consuming.handling import Call
from deimos_async.consuming.keyed import KeyedRetries
from deimos_async.consuming.stored_offsets import StoredOffsets
from deimos_async.message import Message, OutboundRecord
from deimos_async.specs import Delivering, Ordering
from deimos_async.telemetry.protocol import Metrics, Tracing
from deimos_async.topics import FatalError, OnError, PayloadLog

__all__ = ["Decoding", "NextRetry", "Work"]


class Decoding(Protocol):
    """How the bytes of the consumer's topic are read. Plain calls; what they lack is learned first."""

    def payload(self, data: bytes | None) -> Any:
        """Raises DecodeError, or `UnknownWriter` where the schema must be learned."""

    def key(self, data: bytes | None) -> Any: ...

    unknown: type[Exception]
    """Raised when the writer's schema was not seen yet."""

    async def learn(self, unknown: Any) -> None:
        """Fetch it. Raises RegistryUnavailableError; afterwards the same call decodes or raises DecodeError."""


@dataclass(frozen=True, slots=True)
class NextRetry:
    """Where a message goes after its attempts in place, and how many seconds it waits there."""

    topic: str
    delay: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one consumer does, decided at start."""

    name: str
    group: str
    """Consumer group, with its prefix."""
    topic: str
    """Topic, with its prefix."""
    batch: bool
    max_batch: int
    max_wait: float
    concurrency: int
    ordering: Ordering
    delivery: Delivering
    max_buffered: int
    max_buffered_bytes: int
    call: Call
    decoding: Decoding
    policy: OnError
    reraise: bool
    fatal: tuple[FatalError, ...]
    dead_letter_topic: str
    spring_headers: bool = False
    """Whether dead letters carry spring-kafka's headers, too."""
    retry: NextRetry | None = None
    """The (next) retry topic; None: there is none."""
    is_retry: bool = False
    """Whether the topic is itself a retry topic, whose messages wait until they are due."""
    publish: Callable[[OutboundRecord], Awaitable[None]]
    """Sends one record and waits for the acknowledgement."""
    metrics: Metrics
    tracing: Tracing
    payload_log: PayloadLog
    on_failure: Callable[[BaseException, Sequence[Message[Any]]], None] = field(default=lambda error, messages: None)
    """Told once when the consumer stops for an error."""
    clock: Clock = field(default_factory=LoopClock)
    """What messages wait by."""
    offsets: StoredOffsets | None = None
    """With effectively once: offsets in the database, which `call` moves. What ends otherwise is stored here."""
    keyed: KeyedRetries | None = None
    """With `then="retry_keyed"`: where messages wait whose attempts in place are used up."""
