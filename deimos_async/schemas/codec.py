"""How one topic's payloads and keys become bytes and back.

Two ways lead in. `encode_payload` and its like are coroutines that ask the registry when they must. On the path of
messages everything is prepared first: `prepare` finds the ids of schemas that are written, `learn` fetches a writer's
schema when its id is first seen; in between all calls are plain functions without I/O. Consumers never register.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from deimos_async.errors import ConfigurationError, EncodeError
from deimos_async.schemas import keys
from deimos_async.schemas.backends import backend as find_backend
from deimos_async.schemas.coercion import as_mapping
from deimos_async.schemas.files import SchemaFiles
from deimos_async.schemas.protocol import NO_DEFAULT, CompiledSchema, SchemaField
from deimos_async.schemas.subjects import (
    Decode,
    LocalSide,
    RegistryRules,
    RegistrySide,
    UnknownWriter,
    subject_name,
)
from deimos_async.schemas.topic_schemas import FoundSchema, find_schemas
from deimos_async.topics import UNSET, FieldKey, KeyConfig, PlainKey, TopicOptions

if TYPE_CHECKING:  # start-up time: the client's module loads its HTTP library
    from deimos_async.schemas.registry import SchemaRegistry

__all__ = ["TopicCodec", "UnknownWriter", "build_codec"]

_MOST_MISSES = 8
"""Payloads in a row that did not fit as they were, after which that is tried only now and then."""
_LOOK_AGAIN = 100
_AUTOMATIC = ("message_id", "timestamp")
_KEYS_IN_PAYLOAD = frozenset({keys.PAYLOAD_KEY, "partition_key"})


class TopicCodec:
    """One topic's codec. Made by `build_codec`.

    Args:
        topic: Name in Kafka, for errors.
        key: How keys are made, or UNSET.
        value_side: Payloads.
        key_side: Keys, where they have a schema.

    Attributes:
        payload_decoder: Bytes or None -> payload. Raises DecodeError; `UnknownWriter` where the writer's schema must be
            learned first.
        key_decoder: The same for keys. Keys of a topic without `key=`, or with `Key.none()`, are given as their bytes.
    """

    def __init__(
        self,
        topic: str,
        key: KeyConfig,
        value_side: LocalSide | RegistrySide,
        key_side: LocalSide | RegistrySide | None,
    ) -> None:
        self._topic = topic
        self._key_config = key
        self._value = value_side
        self._key = key_side
        self._misses = 0
        self._automatic: tuple[str, ...] = ()
        self._automatic_of: CompiledSchema | None = None
        self.payload_decoder: Decode = value_side.decode
        self.key_decoder: Decode = self._make_key_decoder()
        self._is_plain_key = key_side is None and isinstance(key, PlainKey)

    @property
    def key(self) -> KeyConfig:
        """How keys are made, or UNSET."""
        return self._key_config

    # --- coroutines: ask the registry when they must ----------------------------------------------------------------

    async def encode_payload(self, payload: Any) -> bytes | None:
        """Coerced, checked and framed bytes; None for None. Raises EncodeError, RegistryError, SchemaError."""
        if payload is None:
            return None
        await self._value.prepare()
        return self._value.encode(self.coerce(payload))

    async def decode_payload(self, data: bytes | None) -> Any:
        """The value. Raises DecodeError, RegistryError."""
        return await self._decode(self.payload_decoder, data)

    async def encode_key(self, key: Any) -> bytes | None:
        """As `encode_payload`, for keys. Raises EncodeError also for a missing key, or one that the topic has not."""
        if self._key is not None:
            await self._key.prepare()
        return self.encode_key_now(key)

    async def decode_key(self, data: bytes | None) -> Any:
        """As `decode_payload`, for keys."""
        return await self._decode(self.key_decoder, data)

    async def _decode(self, decode: Decode, data: bytes | None) -> Any:
        try:
            return decode(data)
        except UnknownWriter as unknown:
            await self.learn(unknown)
        return decode(data)

    # --- preparation ------------------------------------------------------------------------------------------------

    @property
    def prepared(self) -> bool:
        """Whether the ids of everything that is written are known, and new enough for `use_latest_version`."""
        return self._value.prepared and (self._key is None or self._key.prepared)

    async def prepare(self) -> None:
        """Find, or register, the schemas that are written. Any number of times; asks only for what is not known.

        Raises:
            RegistryUnavailableError: No registry answers.
            SchemaNotFoundError: A schema is not registered, and `schema.auto_register` is off.
            SchemaIncompatibleError: The registry refuses one.
        """
        await self._value.prepare()
        if self._key is not None:
            await self._key.prepare()

    async def learn(self, unknown: UnknownWriter) -> None:
        """Fetch the schema that an id names, so that what it wrote can be decoded.

        Raises:
            DecodeError: The registry does not know the id. An unusable schema is reported by the next decode.
            RegistryUnavailableError: No registry answers.
        """
        side = self._key if unknown.is_key else self._value
        if side is not None:
            await side.learn(unknown.id)

    # --- what has no I/O --------------------------------------------------------------------------------------------

    def coerce(self, payload: Any) -> Any:
        """A new payload made to fit. Raises EncodeError with every field that cannot be."""
        schema = self._value.writing
        try:
            return schema.coerce(payload)
        except EncodeError as error:
            error.topic = self._topic
            raise

    def validate(self, payload: Any) -> None:
        """Check, converting nothing. Raises EncodeError with every field that is wrong."""
        schema = self._value.writing
        try:
            schema.validate(payload)
        except EncodeError as error:
            error.topic = self._topic
            raise

    def schema_fields(self) -> tuple[SchemaField, ...]:
        """Top-level fields of the value schema, in its order."""
        return self._value.writing.schema_fields()

    def complete(self, payload: Any, now: datetime) -> Any:
        """The payload with `message_id` and `timestamp`, where the schema has them and it does not.

        Nothing is added to None, to an empty mapping, or to one with only `payload_key` or `partition_key`: they are
        tombstones. Null and the empty text count as missing. The argument is left as it is; it is returned itself if
        there is nothing to add.

        Args:
            now: Aware.

        Source: Deimos 2.6, automatic fields; they are filled by the field's type here.
        """
        if payload is None:
            return None
        schema = self._value.writing
        if schema is not self._automatic_of:
            self._automatic, self._automatic_of = _automatic_fields(schema, now), schema
        if not self._automatic:
            return payload
        fields = as_mapping(payload)
        if fields is None or (fields is payload and fields.keys() <= _KEYS_IN_PAYLOAD):
            return payload
        missing = [name for name in self._automatic if (value := fields.get(name)) is None or value == ""]
        if not missing:
            return payload
        return {**fields, **{name: schema.automatic(name, now, uuid4) for name in missing}}  # type: ignore[attr-defined]

    def choose_key(self, payload: Any, key: Any) -> tuple[Any, Any]:
        """The payload without `payload_key`, and the key: the one given, else `payload_key`, else the key field."""
        return keys.choose_key(self._key_config, payload, key)

    def encode_fitting(self, payload: Any) -> tuple[Any, bytes]:
        """A payload made to fit, and its framed bytes. After `prepare`. Raises EncodeError.

        Most payloads fit as they are, which encoding finds out by itself: then nothing is copied, and the payload comes
        back as it was given. Where most do not, they are made to fit first.
        """
        side = self._value
        if self._misses < _MOST_MISSES or self._misses % _LOOK_AGAIN == 0:
            try:
                body = side.encode(payload)
            except EncodeError:
                self._misses += 1
            else:
                self._misses = 0
                return payload, body
        else:
            self._misses += 1
        payload = self.coerce(payload)
        return payload, side.encode(payload)

    def encode_payload_now(self, payload: Any) -> bytes | None:
        """Framed bytes of a payload that `coerce` returned; None for None. After `prepare`, else NotRunningError."""
        return None if payload is None else self._value.encode(payload)

    def encode_key_now(self, key: Any) -> bytes | None:
        """Framed bytes of a key, None where the topic has none. After `prepare`, else NotRunningError.

        Raises:
            EncodeError: The key is missing, does not fit, or the topic has none.
        """
        if self._is_plain_key and type(key) is str and key.isascii():
            return key.encode()
        config, side = self._key_config, self._key
        try:
            keys.check_presence(config, key)
            if key is None:
                return None
            if side is None:
                return keys.plain_key(key)
            # scalars first: asking an object for its fields is the slower question
            if isinstance(config, FieldKey) and (isinstance(key, str | int) or as_mapping(key) is None):
                key = {keys.key_name(config.field): key}
            return side.encode(side.writing.coerce(key))
        except EncodeError as error:
            error.topic = self._topic
            raise

    def decode_payload_now(self, data: bytes | None) -> Any:
        """As `payload_decoder`."""
        return self.payload_decoder(data)

    def decode_key_now(self, data: bytes | None) -> Any:
        """As `key_decoder`."""
        return self.key_decoder(data)

    def _make_key_decoder(self) -> Decode:
        config, side = self._key_config, self._key
        if side is None:
            return keys.text_decoder(self._topic) if isinstance(config, PlainKey) else _as_it_is
        if isinstance(config, FieldKey):
            return keys.picking(side.decode, keys.key_name(config.field), self._topic)
        return side.decode


def _as_it_is(data: bytes | None) -> bytes | None:
    return data


def _automatic_fields(schema: CompiledSchema, now: datetime) -> tuple[str, ...]:
    automatic = getattr(schema, "automatic", None)
    if automatic is None:
        return ()
    return tuple(name for name in _AUTOMATIC if automatic(name, now, uuid4) is not NO_DEFAULT)


def build_codec(
    topic: str,
    options: TopicOptions,
    files: SchemaFiles,
    registry: SchemaRegistry | None,
    backend_name: str,
    *,
    latest_ttl: float = 300.0,
    clock: Callable[[], float] = time.monotonic,
) -> TopicCodec:
    """A topic's codec. Files are read, nothing is asked.

    A schema without a file is a mistake, except with `use_latest_version` on a backend with a registry: then it comes
    from there.

    Args:
        topic: Name in Kafka, prefix included: subjects carry it.
        options: The topic's, merged with everything below.
        registry: Where ids come from; None for backends without one. It has this topic's credentials already.
        backend_name: See `backends.backend`.
        latest_ttl: Seconds for which the newest version of a subject is taken as known.
        clock: Seconds that only grow.

    Raises:
        ConfigurationError: Unknown backend or schema, a key field that the schema lacks ...; each problem names the
            topic and what to change.
    """
    try:
        backend = find_backend(backend_name)
    except ConfigurationError as error:
        raise ConfigurationError(*(f"topic {topic!r}: {problem}" for problem in error.problems)) from error
    schemas = find_schemas(topic, options, files, backend)
    key = schemas.key
    if not backend.uses_registry:
        assert schemas.value.schema is not None  # find_schemas gives none only where a registry is used
        value_side = LocalSide(topic, schemas.value.schema)
        return TopicCodec(topic, options.key, value_side, LocalSide(topic, key.schema) if key and key.schema else None)
    if registry is None:
        raise ConfigurationError(
            f"topic {topic!r}: schema backend {backend_name!r} needs a registry; set 'schema.registry_url'"
        )
    rules = RegistryRules(
        auto_register=options.auto_register is UNSET or bool(options.auto_register),
        use_latest_version=bool(options.use_latest_version),
        latest_ttl=latest_ttl,
        unknown_fields=options.unknown_fields or "drop",
    )

    def side(found: FoundSchema, *, is_key: bool) -> RegistrySide:
        return RegistrySide(
            topic,
            found.full_name,
            subject_name(options.subject_strategy or "topic", topic, found.full_name, is_key=is_key),
            found.schema,
            is_key=is_key,
            backend=backend,
            registry=registry,
            rules=rules,
            clock=clock,
        )

    return TopicCodec(
        topic, options.key, side(schemas.value, is_key=False), None if key is None else side(key, is_key=True)
    )
