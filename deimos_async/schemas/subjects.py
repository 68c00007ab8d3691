"""One side of a topic, its payloads or its keys: their schema, what is written before each body, and who wrote what.

`LocalSide` needs nobody; `RegistrySide` frames what it writes in the Confluent format and finds the writer's schema of
what it reads by the id in it. Both have the same methods, so that `codec` need not know which it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from deimos_async.errors import (
    DecodeError,
    EncodeError,
    NotRunningError,
    SchemaError,
    SchemaIncompatibleError,
    SchemaNotFoundError,
)
from deimos_async.schemas.plain import PlainSchema
from deimos_async.schemas.protocol import CompiledSchema, RegisteredSchema, SchemaBackend
from deimos_async.schemas.registry_flights import PerLoop, SingleFlight
from deimos_async.schemas.wire import FRAME_BYTES, frame_prefix, schema_id

if TYPE_CHECKING:  # start-up time: the client's module loads its HTTP library
    from deimos_async.schemas.registry import SchemaRegistry

__all__ = ["Decode", "LocalSide", "RegistryRules", "RegistrySide", "UnknownWriter", "subject_name"]

Decode = Callable[[bytes | None], Any]
"""Bytes or None -> value; None for None."""

_MOST_REFERENCES = 100
"""A schema that draws in more is refused: whoever can register one must not be able to keep readers busy for ever."""


class UnknownWriter(Exception):
    """Bytes name a schema id that was not seen yet: `await codec.learn(unknown)`, then decode again.

    It never reaches users, and is no DeimosError: it asks for a step instead of reporting a mistake.
    """

    def __init__(self, id: int, is_key: bool) -> None:
        super().__init__(id, is_key)
        self.id = id
        self.is_key = is_key


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryRules:
    """How a topic uses the registry.

    Attributes:
        auto_register: Whether a schema that is written and not registered is registered.
        use_latest_version: Whether the subject's newest schema is written instead of the file's.
        latest_ttl: Seconds after which the newest schema is asked for again.
        unknown_fields: `"drop"` or `"error"`, for schemas that come from the registry.
    """

    auto_register: bool
    use_latest_version: bool
    latest_ttl: float
    unknown_fields: str


def subject_name(strategy: str, topic: str, full_name: str, *, is_key: bool) -> str:
    """The registry's name for the line of versions that a schema belongs to.

    Args:
        strategy: `"topic"`, `"record"` or `"topic_record"`.
        topic: Name in Kafka. Its prefix is in the subjects of values and keys alike.

    Source: Confluent Schema Registry documentation, "Subject name strategy".
    """
    if strategy == "record":
        return full_name
    if strategy == "topic_record":
        return f"{topic}-{full_name}"
    return f"{topic}-{'key' if is_key else 'value'}"


def _as_they_are(data: bytes | None) -> bytes | None:
    return data


class LocalSide:
    """Bodies without a frame: whoever reads has the schema, or finds it in the body.

    Attributes:
        writing: The schema of what is written.
        decode: Bytes -> value. Raises DecodeError.
    """

    prepared = True

    def __init__(self, topic: str, schema: CompiledSchema) -> None:
        self._topic = topic
        self.writing = schema
        # bytes that are not decoded are passed on without a call to say so
        self.decode = _as_they_are if isinstance(schema, PlainSchema) else self._make_decode(schema.decoder())

    def encode(self, payload: Any) -> bytes:
        """Bytes of a payload that `writing.coerce` returned. Raises EncodeError."""
        try:
            return self.writing.encode(payload)
        except EncodeError as error:
            error.topic = self._topic
            raise

    async def prepare(self) -> None:
        """Nothing is needed."""

    async def learn(self, id: int) -> None:
        """Nothing is unknown."""

    def _make_decode(self, read: Callable[[bytes, int], Any]) -> Decode:
        topic = self._topic

        def decode(data: bytes | None) -> Any:
            if data is None:
                return None
            try:
                return read(data, 0)
            except DecodeError as error:
                error.topic = topic
                raise

        return decode


class RegistrySide:
    """Bodies behind the id of their schema.

    Writing needs `prepare` first. Reading needs the registry when an id is first seen, and only asks: it never
    registers. What is read is given in the schema of the file; without a file, as its writer wrote it.

    Args:
        topic: Name in Kafka.
        full_name: Of the schema, also where there is no file.
        subject: See `subject_name`.
        is_key: Which side it is.
        schema: Of the file; None if it is in the registry only.
        clock: Seconds that only grow.

    Attributes:
        decode: Bytes -> value. Raises DecodeError; `UnknownWriter` where `learn` is needed first.
    """

    def __init__(
        self,
        topic: str,
        full_name: str,
        subject: str,
        schema: CompiledSchema | None,
        *,
        is_key: bool,
        backend: SchemaBackend,
        registry: SchemaRegistry,
        rules: RegistryRules,
        clock: Callable[[], float],
    ) -> None:
        self._topic = topic
        self._full_name = full_name
        self._subject = subject
        self._schema = schema
        self._is_key = is_key
        self._backend = backend
        self._registry = registry
        self._rules = rules
        self._clock = clock
        self._flights = PerLoop(SingleFlight)
        self._writing = schema
        self._prefix: bytes | None = None
        self._prepared_until = -math.inf
        # By the frame's 5 bytes, which saves parsing them: a first byte that is not zero is not found either.
        self._readers: dict[bytes, Callable[[bytes, int], Any]] = {}
        self._unusable: dict[bytes, str] = {}
        self.decode = self._make_decode()

    @property
    def prepared(self) -> bool:
        """Whether `encode` may be called, and knows the newest version where that is wanted."""
        return self._clock() < self._prepared_until

    @property
    def writing(self) -> CompiledSchema:
        """The schema of what is written. Raises NotRunningError if it is in the registry and not fetched yet."""
        if self._writing is None:
            raise self._unprepared()
        return self._writing

    def encode(self, payload: Any) -> bytes:
        """Framed bytes of a payload that `writing.coerce` returned. Raises EncodeError, NotRunningError."""
        prefix = self._prefix
        if prefix is None or self._writing is None:
            raise self._unprepared()
        try:
            return prefix + self._writing.encode(payload)
        except EncodeError as error:
            error.topic = self._topic
            raise

    async def prepare(self) -> None:
        """Find, or register, what is written; asks only for what is not known. However many call, one asks.

        Cancelled: the question stays under way for the others.

        Raises:
            RegistryUnavailableError: No registry answers.
            SchemaNotFoundError: The schema is not registered and may not be.
            SchemaIncompatibleError: The registry refuses it, or its newest version is no schema of this backend.
        """
        if not self.prepared:
            await self._flights.get().ask("prepare", self._prepare)

    async def learn(self, id: int) -> None:
        """Fetch the schema of that id, with what it refers to. However many call, one asks.

        Raises:
            DecodeError: The registry has no such id (it may be asked again), or what it has cannot be read into ours
                (which is remembered).
            RegistryUnavailableError: No registry answers.
        """
        try:
            await self._flights.get().ask(id, lambda: self._learn(id))
        except SchemaNotFoundError as error:
            raise DecodeError(f"written with schema id {id}: {error}", topic=self._topic) from error

    async def _prepare(self) -> None:
        own, until = self._schema, math.inf
        found = await self._newest() if self._rules.use_latest_version else None
        if found is not None:
            writing = await self._compile(found)
            until = self._clock() + self._rules.latest_ttl
            if own is not None and writing.text == own.text:
                writing = own
        else:
            assert own is not None  # without a file the newest version was found, or that failed
            found, writing = await self._registered(own), own
        prefix = frame_prefix(found.id)
        if own is None or writing is own:
            # What is read with the schema that is written needs no question.
            self._readers.setdefault(prefix, writing.decoder())
        self._writing, self._prefix, self._prepared_until = writing, prefix, until

    async def _newest(self) -> RegisteredSchema | None:
        try:
            return await self._registry.latest(self._subject)
        except SchemaNotFoundError as error:
            if self._schema is None:
                raise SchemaNotFoundError(
                    f"topic {self._topic!r}: schema {self._full_name} is neither below 'schema.path' nor under subject "
                    f"{self._subject!r} in the registry; add its file, or register it"
                ) from error
            return None

    async def _registered(self, schema: CompiledSchema) -> RegisteredSchema:
        try:
            if self._rules.auto_register:
                return await self._registry.register(self._subject, schema.text, schema_type=schema.schema_type)
            return await self._registry.lookup(self._subject, schema.text, schema_type=schema.schema_type)
        except SchemaNotFoundError as error:
            raise SchemaNotFoundError(
                f"topic {self._topic!r}: schema {self._full_name} is not registered under subject {self._subject!r}; "
                "register it, or set 'schema.auto_register'"
            ) from error
        except SchemaIncompatibleError as error:
            raise SchemaIncompatibleError(f"topic {self._topic!r}: schema {self._full_name}: {error}") from error

    async def _learn(self, id: int) -> None:
        prefix = frame_prefix(id)
        if prefix in self._readers or prefix in self._unusable:
            return
        found = await self._registry.by_id(id)
        try:
            writer = await self._compile(found)
            self._readers[prefix] = (self._schema or writer).decoder(None if self._schema is None else writer)
        except SchemaNotFoundError:
            raise
        except DecodeError as error:
            problem = "; ".join(str(each) for each in error.errors)
        except SchemaError as error:
            problem = str(error)
        else:
            return
        self._unusable[prefix] = f"written with schema id {id}: {problem}"

    async def _compile(self, found: RegisteredSchema) -> CompiledSchema:
        wanted = None if self._schema is None else self._schema.schema_type
        if wanted is not None and found.schema_type != wanted:
            raise SchemaIncompatibleError(f"schema id {found.id} is of type {found.schema_type}, not {wanted}")
        named: dict[str, str] = {}
        waiting = list(found.references)
        while waiting:
            reference = waiting.pop()
            if reference.name in named:
                continue
            if len(named) == _MOST_REFERENCES:
                raise SchemaIncompatibleError(
                    f"schema id {found.id} refers to more than {_MOST_REFERENCES} other schemas"
                )
            referenced = await self._registry.version(reference.subject, reference.version)
            named[reference.name] = referenced.text
            waiting += referenced.references
        return self._backend.compile(found.text, named=named, unknown_fields=self._rules.unknown_fields)

    def _make_decode(self) -> Decode:
        find = self._readers.get
        topic = self._topic
        unread = self._unread

        def decode(data: bytes | None) -> Any:
            if data is None:
                return None
            try:
                read = find(data[:FRAME_BYTES])
                if read is None:
                    unread(data)
                return read(data, FRAME_BYTES)
            except DecodeError as error:
                error.topic = topic
                raise

        return decode

    def _unread(self, data: bytes) -> NoReturn:
        id = schema_id(data)
        problem = self._unusable.get(data[:FRAME_BYTES])
        if problem is not None:
            raise DecodeError(problem, schema=self._full_name)
        raise UnknownWriter(id, self._is_key)

    def _unprepared(self) -> NotRunningError:
        return NotRunningError(
            f"topic {self._topic!r}: the id of its schema {self._full_name} is not known yet; "
            "await prepare() first, or use the running application"
        )
