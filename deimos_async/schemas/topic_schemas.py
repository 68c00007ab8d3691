"""Which schemas a topic's payloads and keys have: found in files, made from the value's, compiled and checked."""

from __future__ import annotations

from typing import NamedTuple

from deimos_async.errors import ConfigurationError, SchemaError
from deimos_async.schemas.files import SchemaFiles
from deimos_async.schemas.keys import key_name
from deimos_async.schemas.protocol import CompiledSchema, SchemaBackend
from deimos_async.topics import UNSET, FieldKey, NoKey, PlainKey, SchemaKey, TopicOptions, split_schema_name

__all__ = ["FoundSchema", "TopicSchemas", "find_schemas"]

_CHOICES = {"unknown_fields": ("drop", "error"), "subject_strategy": ("topic", "record", "topic_record")}


class FoundSchema(NamedTuple):
    """A schema by its full name; `schema` is None where only the registry has it."""

    full_name: str
    schema: CompiledSchema | None


class TopicSchemas(NamedTuple):
    """A topic's schemas; `key` is None where keys have none."""

    value: FoundSchema
    key: FoundSchema | None


def find_schemas(topic: str, options: TopicOptions, files: SchemaFiles, backend: SchemaBackend) -> TopicSchemas:
    """The schemas of one topic.

    A schema without a file is a mistake, except with `use_latest_version` on a backend with a registry.

    Args:
        topic: Name for errors.
        options: The topic's, merged with everything below.

    Raises:
        ConfigurationError: With every mistake that was found, each naming the topic and what to change.
    """
    search = _Search(topic, options, files, backend)
    value, key = search.value(), None
    if search.has_key_schema():
        key = search.key(value)
    if search.problems or value is None:
        raise ConfigurationError(*search.problems)
    return TopicSchemas(value, key)


class _Search:
    """Notes every mistake instead of raising the first."""

    def __init__(self, topic: str, options: TopicOptions, files: SchemaFiles, backend: SchemaBackend) -> None:
        self.where = f"topic {topic!r}"
        self.options = options
        self.files = files
        self.backend = backend
        self.problems: list[str] = []
        for name, choices in _CHOICES.items():
            given = getattr(options, name)
            if given is not UNSET and given not in choices:
                self.note(f"{name}={given!r} is none of {', '.join(map(repr, choices))}")
        self.unknown_fields = options.unknown_fields if options.unknown_fields in _CHOICES["unknown_fields"] else "drop"
        self.may_be_elsewhere = bool(options.use_latest_version) and backend.uses_registry

    def note(self, problem: str) -> None:
        self.problems.append(f"{self.where}: {problem}")

    def value(self) -> FoundSchema | None:
        options = self.options
        if options.schema:
            return self.find(split_schema_name(options.schema, options.namespace or None))
        if not self.backend.uses_files:
            return self.find("")
        self.note(
            f"schema backend {self.backend.name!r} needs schema=, e.g. schema='com.acme.Order'; "
            "for bytes without a schema give schema_backend='plain'"
        )
        return None

    def has_key_schema(self) -> bool:
        config = self.options.key
        if config is UNSET or isinstance(config, NoKey | PlainKey):
            return False
        if not isinstance(config, FieldKey | SchemaKey):
            self.note(f"key={config!r} is none of Key.field(...), Key.schema(...), Key.plain(), Key.none()")
            return False
        if not self.backend.supports_key_schemas:
            self.note(f"schema backend {self.backend.name!r} has no key schemas; use Key.plain() or Key.none()")
            return False
        return True

    def key(self, value: FoundSchema | None) -> FoundSchema | None:
        config, options = self.options.key, self.options
        if isinstance(config, FieldKey):
            return None if value is None else self.field_key(config.field, value)
        assert isinstance(config, SchemaKey)  # see has_key_schema
        namespace = config.namespace or options.namespace or (options.schema or "").rpartition(".")[0]
        return self.find(split_schema_name(config.schema, namespace or None))

    def field_key(self, field: str, value: FoundSchema) -> FoundSchema | None:
        full_name = f"{value.full_name}_key"
        if self.backend.uses_files and self.files.has(full_name):
            key = self.find(full_name)
            self.check_field(field, field.partition(".")[0], "schema", value)
            self.check_field(field, key_name(field), "key schema", key)
            return key
        if value.schema is None:
            # The value's schema is in the registry only, and so must be the key's.
            return FoundSchema(full_name, None)
        try:
            text = self.backend.key_schema(value.schema, field)
            return FoundSchema(full_name, self.backend.compile(text, unknown_fields=self.unknown_fields))
        except ConfigurationError as error:
            for problem in error.problems:
                self.note(problem)
        except SchemaError as error:
            self.note(str(error))
        return None

    def check_field(self, field: str, name: str, what: str, found: FoundSchema | None) -> None:
        if found is None or found.schema is None:
            return
        names = [entry.name for entry in found.schema.schema_fields()]
        if name not in names:
            self.note(
                f"field {name!r} of key=Key.field({field!r}) is not in the {what} {found.full_name}, "
                f"which has {', '.join(names) or 'no fields'}"
            )

    def find(self, full_name: str) -> FoundSchema | None:
        text, named = full_name, dict[str, str]()
        try:
            if self.backend.uses_files:
                if self.may_be_elsewhere and not self.files.has(full_name):
                    return FoundSchema(full_name, None)
                text, named = self.files.with_dependencies(self.backend, full_name)
            return FoundSchema(full_name, self.backend.compile(text, named=named, unknown_fields=self.unknown_fields))
        except SchemaError as error:
            self.note(str(error))
        return None
