"""A schema registry in this process, for tests and `--embedded`."""

from __future__ import annotations

import json
from collections.abc import Sequence

from deimos_async.errors import RegistryError, SchemaNotFoundError
from deimos_async.schemas.protocol import RegisteredSchema, SchemaReference

__all__ = ["MemorySchemaRegistry"]

_INVALID_SCHEMA = 42201

_Content = tuple[str, str, tuple[SchemaReference, ...]]


class MemorySchemaRegistry:
    """`SchemaRegistry` that keeps everything in memory and is never away.

    Ids count from 1; the same text of the same type with the same references has one id under all subjects. Versions
    count from 1 in each subject. Any later version is accepted: compatibility is not checked. A text that is not JSON
    (for `AVRO` and `JSON`) and an unknown reference are refused with a RegistryError, as real registries do. No method
    awaits anything, so it may be used in any event loop and after `close`.
    """

    def __init__(self) -> None:
        self._ids: dict[_Content, int] = {}
        self._contents: list[_Content] = []
        self._subjects: dict[str, list[int]] = {}

    async def register(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """See `SchemaRegistry.register`."""
        content = (schema_type, text, tuple(references))
        id = self._ids.get(content)
        if id is None:
            self._check(subject, content)
            self._contents.append(content)
            id = self._ids[content] = len(self._contents)
        versions = self._subjects.setdefault(subject, [])
        if id not in versions:
            versions.append(id)
        return self._registered(id, subject, versions.index(id) + 1)

    async def lookup(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """See `SchemaRegistry.lookup`."""
        id = self._ids.get((schema_type, text, tuple(references)))
        versions = self._subjects.get(subject, [])
        if id is None or id not in versions:
            raise SchemaNotFoundError(f"the schema registry has no such schema under subject {subject!r}")
        return self._registered(id, subject, versions.index(id) + 1)

    async def by_id(self, id: int) -> RegisteredSchema:
        """See `SchemaRegistry.by_id`."""
        if not 0 < id <= len(self._contents):
            raise SchemaNotFoundError(f"the schema registry has no schema with id {id}")
        return self._registered(id, None, None)

    async def latest(self, subject: str) -> RegisteredSchema:
        """See `SchemaRegistry.latest`."""
        versions = self._subjects.get(subject)
        if versions is None:
            raise SchemaNotFoundError(f"the schema registry has no version of subject {subject!r}")
        return self._registered(versions[-1], subject, len(versions))

    async def version(self, subject: str, version: int) -> RegisteredSchema:
        """See `SchemaRegistry.version`."""
        versions = self._subjects.get(subject, [])
        if not 0 < version <= len(versions):
            raise SchemaNotFoundError(f"the schema registry has no version {version} of subject {subject!r}")
        return self._registered(versions[version - 1], subject, version)

    async def ping(self) -> None:
        """It is there."""

    async def close(self) -> None:
        """There is nothing to close, and what is known stays known."""

    def _check(self, subject: str, content: _Content) -> None:
        schema_type, text, references = content
        problem = None
        if schema_type in ("AVRO", "JSON"):
            try:
                json.loads(text)
            except (ValueError, RecursionError):
                problem = f"the text is not JSON, as schema type {schema_type} needs it"
        for reference in references:
            if not 0 < reference.version <= len(self._subjects.get(reference.subject, [])):
                problem = f"reference to version {reference.version} of unknown subject {reference.subject!r}"
        if problem is not None:
            raise RegistryError(
                f"the schema registry refuses the schema for subject {subject!r}: {problem}",
                status=422,
                code=_INVALID_SCHEMA,
            )

    def _registered(self, id: int, subject: str | None, version: int | None) -> RegisteredSchema:
        schema_type, text, references = self._contents[id - 1]
        return RegisteredSchema(id, text, schema_type, references, subject, version)
