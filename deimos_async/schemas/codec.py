"""How one topic's payloads and keys become bytes and back.

Two ways lead in. `encode_payload` and its like are coroutines that ask the registry when they must. On the path of
messages everything is prepared first: `prepare` finds the ids of schemas that are written, `learn` fetches a writer's
schema when its id is first seen; in between all calls are plain functions without I/O. Consumers never register.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from deimos_async.errors import ConfigurationError, DecodeError, EncodeError, SchemaError, SchemaNotFoundError
from deimos_async.schemas import keys
from deimos_async.schemas.backends import backend as find_backend
from deimos_async.schemas.files import SchemaFiles
from deimos_async.schemas.protocol import NO_DEFAULT, CompiledSchema, RegisteredSchema, SchemaBackend, SchemaField
from deimos_async.schemas.wire import FRAME_SIZE, frame_prefix, schema_id
from deimos_async.topics import UNSET, FieldKey, KeyConfig, NoKey, SchemaKey, TopicOptions, split_schema_name

if TYPE_CHECKING:  # start-up time: the client's module loads its HTTP library
    from deimos_async.schemas.registry import SchemaRegistry

__all__ = ["TopicCodec", "UnknownWriter", "build_codec"]

_AUTOMATIC = ("message_id", "timestamp")
_MOST_REFERENCES = 100


class UnknownWriter(Exception):
    """Bytes name a schema id that was not seen yet: `await codec.learn(unknown)`, then decode again."""

    def __init__(self, id: int, *, is_key: bool) -> None:
        super().__init__(id, is_key)
        self.id = id
        self.is_key = is_key


class _Side:
    """Payloads, or keys, of a topic: a schema, the prefix of what is written, decoders of what is read."""

    __slots__ = ("decoders", "prefix", "schema", "subject", "written")

    def __init__(self, schema: CompiledSchema, subject: str) -> None:
        self.schema = schema
        self.written = schema
        self.subject = subject
        self.prefix: bytes | None = None
        self.decoders: dict[bytes, Callable[[bytes, int], Any]] = {}


class TopicCodec:
    """One topic's codec. Made by `build_codec`."""

    def __init__(
        self,
        topic: str,
        *,
        backend: SchemaBackend,
        key: KeyConfig | None,
        value_schema: CompiledSchema,
        key_schema: CompiledSchema | None,
        registry: SchemaRegistry | None,
        auto_register: bool,
        use_latest_version: bool,
        subject_strategy: str,
        unknown_fields: str,
    ) -> None:
        self._topic = topic
        self._backend = backend
        self._key_config = key
        self._registry = registry
        self._auto_register = auto_register
        self._use_latest_version = use_latest_version
        self._unknown_fields = unknown_fields

        def subject(schema: CompiledSchema, kind: str) -> str:
            match subject_strategy:
                case "record":
                    return schema.full_name
                case "topic_record":
                    return f"{topic}-{schema.full_name}"
                case _:
                    return f"{topic}-{kind}"

        self._value = _Side(value_schema, subject(value_schema, "value"))
        self._key = None if key_schema is None else _Side(key_schema, subject(key_schema, "key"))
        self.prepared = registry is None
        """Whether the ids of everything that is written are known."""
        self._automatic = _automatic_fields(value_schema)
        self.payload_decoder = self._make_payload_decoder()
        """Bytes or None -> payload. Raises DecodeError; UnknownWriter where the writer's schema must be learned."""
        self.key_decoder = self._make_key_decoder()
        """The same for keys."""

    # --- coroutines: ask the registry when they must ---------------------------------------------------------------

    async def encode_payload(self, payload: Any) -> bytes | None:
        """Coerced, checked and framed bytes; None for None. Raises EncodeError, RegistryError."""
        if payload is None:
            return None
        await self._prepare_side(self._value)
        return self.encode_payload_now(self.coerce(payload))

    async def decode_payload(self, data: bytes | None) -> Any:
        """The value. Raises DecodeError, RegistryError."""
        return await self._decode(self.payload_decoder, data)

    async def encode_key(self, key: Any) -> bytes | None:
        """As `encode_payload`, for keys. Raises EncodeError for a missing key, or one that the topic does not have."""
        if self._key is not None:
            await self._prepare_side(self._key)
        return self.encode_key_now(key)

    async def decode_key(self, data: bytes | None) -> Any:
        """As `decode_payload`, for keys."""
        return await self._decode(self.key_decoder, data)

    async def _decode(self, decoder: Callable[[bytes | None], Any], data: bytes | None) -> Any:
        try:
            return decoder(data)
        except UnknownWriter as unknown:
            await self.learn(unknown)
            return decoder(data)

    # --- what has no I/O -------------------------------------------------------------------------------------------

    def coerce(self, payload: Any) -> Any:
        """A new payload made to fit. Raises EncodeError with every field that cannot be."""
        try:
            return self._value.written.coerce(payload)
        except EncodeError as error:
            error.topic = self._topic
            raise

    def validate(self, payload: Any) -> None:
        """Check, converting nothing. Raises EncodeError with every field that is wrong."""
        try:
            self._value.written.validate(payload)
        except EncodeError as error:
            error.topic = self._topic
            raise

    def schema_fields(self) -> tuple[SchemaField, ...]:
        """Top-level fields of the value schema, in its order."""
        return self._value.written.schema_fields()

    def complete(self, payload: Any, now: datetime) -> Any:
        """The payload with `message_id` and `timestamp`, where the schema has them and it does not.

        Nothing is added to None, to an empty payload, or to one with only `payload_key`: they are tombstones. An empty
        text counts as missing. The argument is left as it is; it is returned itself if there is nothing to add.
        """
        if not self._automatic or payload is None:
            return payload
        mapping = payload if isinstance(payload, Mapping) else _as_mapping(payload)
        if mapping is None or not any(name != keys.PAYLOAD_KEY for name in mapping):
            return payload
        added = {
            name: make(name, now)
            for name, make in self._automatic.items()
            if mapping.get(name) is None or mapping[name] == ""
        }
        return {**mapping, **added} if added else payload

    def choose_key(self, payload: Any, key: Any) -> tuple[Any, Any]:
        """The payload without `payload_key`, and the key: the one given, else `payload_key`, else the key field."""
        if self._key_config is None:
            return payload, key
        return keys.choose_key(self._key_config, payload, key)

    def encode_payload_now(self, payload: Any) -> bytes:
        """Framed bytes of a payload that `coerce` returned. After `prepare`."""
        side = self._value
        try:
            body = side.written.encode(payload)
        except EncodeError as error:
            error.topic = self._topic
            raise
        return body if self._registry is None else self._prefix(side) + body

    def encode_key_now(self, key: Any) -> bytes | None:
        """Framed bytes of a key, None where the topic has none. After `prepare`."""
        config = self._key_config
        if config is None:
            raise EncodeError("the topic is declared without key=, so nothing can be sent to it", topic=self._topic)
        keys.check_presence(config, key, self._topic)
        if isinstance(config, NoKey):
            return None
        try:
            side = self._key
            if side is None:
                return keys.plain_key(key)
            assert isinstance(config, (FieldKey, SchemaKey))
            body = side.written.encode(side.written.coerce(keys.wrap(config, key)))
        except EncodeError as error:
            error.topic = self._topic
            raise
        return body if self._registry is None else self._prefix(side) + body

    def _prefix(self, side: _Side) -> bytes:
        if side.prefix is None:
            raise SchemaError(f"topic {self._topic!r}: the id of its schema is not known yet; await prepare() first")
        return side.prefix

    # --- the registry ----------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Find, or register, the schemas that are written. Any number of times; asks only for what it does not know.

        Raises:
            RegistryUnavailableError: No registry answers.
            SchemaNotFoundError: It is not registered, and `schema.auto_register` is off.
            SchemaIncompatibleError: The registry refuses it.
        """
        await self._prepare_side(self._value)
        if self._key is not None:
            await self._prepare_side(self._key)
        self.prepared = True

    async def _prepare_side(self, side: _Side) -> None:
        registry = self._registry
        if registry is None or side.prefix is not None:
            return
        schema = side.schema
        if self._use_latest_version:
            found = await registry.latest(side.subject)
            if not _same(found.text, schema.text):
                side.written = await self._compile(found)
        elif self._auto_register:
            found = await registry.register(side.subject, schema.text, schema_type=schema.schema_type)
        else:
            try:
                found = await registry.lookup(side.subject, schema.text, schema_type=schema.schema_type)
            except SchemaNotFoundError as error:
                raise SchemaNotFoundError(
                    f"topic {self._topic!r}: schema {schema.full_name} is not registered under {side.subject!r}, and "
                    "'schema.auto_register' is off; register it, or switch that on"
                ) from error
        prefix = frame_prefix(found.id)
        writer = None if side.written is schema else side.written
        side.decoders.setdefault(prefix[1:], schema.decoder(writer))
        side.prefix = prefix

    async def learn(self, unknown: UnknownWriter) -> None:
        """Fetch the schema that an id names, so that its messages can be decoded.

        Raises:
            DecodeError: The registry does not know the id, or what it names cannot be used.
            RegistryUnavailableError: No registry answers.
        """
        registry = self._registry
        side = self._key if unknown.is_key else self._value
        assert registry is not None
        assert side is not None
        try:
            found = await registry.by_id(unknown.id)
            if found.schema_type != side.schema.schema_type:
                raise DecodeError(
                    f"schema id {unknown.id} is {found.schema_type}, not {side.schema.schema_type}", topic=self._topic
                )
            if _same(found.text, side.schema.text):
                decoder = side.schema.decoder()
            else:
                decoder = side.schema.decoder(await self._compile(found))
        except SchemaError as error:
            if isinstance(error, DecodeError):
                error.topic = self._topic
                raise
            raise DecodeError(f"schema id {unknown.id}: {error}", topic=self._topic) from error
        side.decoders[frame_prefix(unknown.id)[1:]] = decoder

    async def _compile(self, found: RegisteredSchema) -> CompiledSchema:
        registry = self._registry
        assert registry is not None
        named: dict[str, str] = {}
        waiting = list(found.references)
        while waiting:
            reference = waiting.pop()
            if reference.name in named:
                continue
            if len(named) >= _MOST_REFERENCES:
                raise SchemaError(f"schema id {found.id} has more than {_MOST_REFERENCES} references")
            referenced = await registry.version(reference.subject, reference.version)
            named[reference.name] = referenced.text
            waiting += referenced.references
        return self._backend.compile(found.text, named=named, unknown_fields=self._unknown_fields)

    # --- decoders --------------------------------------------------------------------------------------------------

    def _make_payload_decoder(self) -> Callable[[bytes | None], Any]:
        if self._registry is None:
            read = self._value.schema.decoder()
            topic = self._topic

            def decode_unframed(data: bytes | None) -> Any:
                if data is None:
                    return None
                try:
                    return read(data, 0)
                except DecodeError as error:
                    error.topic = topic
                    raise

            return decode_unframed
        return self._framed(self._value, is_key=False)

    def _make_key_decoder(self) -> Callable[[bytes | None], Any]:
        config, side = self._key_config, self._key
        if config is None or isinstance(config, NoKey):
            return lambda data: data
        topic = self._topic
        if side is None:

            def decode_text(data: bytes | None) -> Any:
                if data is None:
                    return None
                try:
                    return keys.plain_key_text(data)
                except DecodeError as error:
                    error.topic = topic
                    raise

            return decode_text
        assert isinstance(config, (FieldKey, SchemaKey))
        if self._registry is not None:
            decode: Callable[[bytes | None], Any] = self._framed(side, is_key=True)
        else:
            read = side.schema.decoder()

            def decode(data: bytes | None) -> Any:
                assert data is not None
                try:
                    return read(data, 0)
                except DecodeError as error:
                    error.topic = topic
                    raise

        if isinstance(config, SchemaKey):
            return lambda data: None if data is None else decode(data)
        field = keys.key_name(config)
        return lambda data: None if data is None else decode(data)[field]

    def _framed(self, side: _Side, *, is_key: bool) -> Callable[[bytes | None], Any]:
        find = side.decoders.get
        topic = self._topic

        def decode(data: bytes | None) -> Any:
            if data is None:
                return None
            read = find(data[1:FRAME_SIZE])
            try:
                if read is None or data[0]:
                    raise UnknownWriter(schema_id(data), is_key=is_key)
                return read(data, FRAME_SIZE)
            except DecodeError as error:
                error.topic = topic
                raise

        return decode


def _automatic_fields(schema: CompiledSchema) -> dict[str, Callable[[str, datetime], Any]]:
    make = getattr(schema, "automatic", None)
    if make is None:
        return {}
    probe = datetime.now(UTC)
    return {name: make for name in _AUTOMATIC if make(name, probe) is not NO_DEFAULT}


def _as_mapping(payload: Any) -> Mapping[str, Any] | None:
    """The fields of a dataclass, a pydantic model, or an object with `to_dict`; None for anything else."""
    if dataclasses.is_dataclass(payload) and not isinstance(payload, type):
        return {field.name: getattr(payload, field.name) for field in dataclasses.fields(payload)}
    for method in ("model_dump", "to_dict"):
        convert = getattr(payload, method, None)
        if callable(convert):
            converted = convert()
            return converted if isinstance(converted, Mapping) else None
    return None


def _same(one: str, other: str) -> bool:
    """Whether two Avro texts are the same schema for reading, whatever their white space and order of attributes."""
    if one == other:
        return True
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def build_codec(
    topic: str,
    options: TopicOptions,
    files: SchemaFiles,
    registry: SchemaRegistry | None,
    backend_name: str,
) -> TopicCodec:
    """A topic's codec.

    Args:
        topic: Name in Kafka, prefix included: subjects carry it.
        options: The topic's, merged with everything below.
        registry: Where ids come from; None for backends without one.
        backend_name: See `backends.backend`.

    Raises:
        ConfigurationError: Unknown schema or backend, a key field that the schema lacks ...; each problem names the
            topic and what to change.
    """
    backend = find_backend(backend_name)
    where = f"topic {topic!r}"
    namespace = options.namespace or None
    unknown_fields = options.unknown_fields or "drop"
    problems: list[str] = []

    def compiled(name: str) -> CompiledSchema | None:
        try:
            text, named = files.with_dependencies(backend, name)
            return backend.compile(text, named=named, unknown_fields=unknown_fields)
        except SchemaError as error:
            problems.append(f"{where}: {error}")
            return None

    value: CompiledSchema | None
    if not backend.uses_files:
        value = backend.compile("", unknown_fields=unknown_fields)
    elif not options.schema:
        problems.append(f"{where}: schema backend {backend_name!r} needs schema=, e.g. schema='com.acme.Order'")
        value = None
    else:
        value = compiled(split_schema_name(options.schema, namespace))
    key: KeyConfig | None = None if options.key is UNSET else options.key
    key_schema: CompiledSchema | None = None
    if isinstance(key, (FieldKey, SchemaKey)):
        if not backend.supports_key_schemas:
            problems.append(
                f"{where}: schema backend {backend_name!r} has no key schemas; use Key.plain() or Key.none()"
            )
        elif isinstance(key, SchemaKey):
            if backend.uses_files:
                key_schema = compiled(split_schema_name(key.schema, key.namespace or namespace))
            else:
                key_schema = backend.compile("", unknown_fields=unknown_fields)
        elif value is not None:
            try:
                name = f"{value.full_name}_key"
                if backend.uses_files and files.has(name):
                    key_schema = compiled(name)
                else:
                    key_schema = backend.compile(backend.key_schema(value, key.field), unknown_fields=unknown_fields)
            except ConfigurationError as error:
                problems += [f"{where}: {problem}" for problem in error.problems]
            except SchemaError as error:
                problems.append(f"{where}: {error}")
    if problems:
        raise ConfigurationError(*problems)
    assert value is not None
    return TopicCodec(
        topic,
        backend=backend,
        key=key,
        value_schema=value,
        key_schema=key_schema,
        registry=registry,
        auto_register=bool(options.auto_register),
        use_latest_version=bool(options.use_latest_version),
        subject_strategy=options.subject_strategy or "topic",
        unknown_fields=unknown_fields,
    )
