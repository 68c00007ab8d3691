"""A schema registry in this process: for `--embedded` and for tests."""

from __future__ import annotations

from collections.abc import Sequence

from deimos_async.errors import SchemaNotFoundError
from deimos_async.schemas.protocol import RegisteredSchema, SchemaReference

__all__ = ["MemorySchemaRegistry"]


class MemorySchemaRegistry:
    """Ids from 1; the same text has the same id under every subject; versions count for each subject. Never away."""

    def __init__(self) -> None:
        self._by_id: list[RegisteredSchema] = []
        self._subjects: dict[str, list[RegisteredSchema]] = {}

    async def register(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """The schema under that subject, made if it is not there."""
        versions = self._subjects.setdefault(subject, [])
        for version in versions:
            if (version.text, version.schema_type, version.references) == (text, schema_type, tuple(references)):
                return version
        known = next(
            (s for s in self._by_id if (s.text, s.schema_type, s.references) == (text, schema_type, tuple(references))),
            None,
        )
        id = known.id if known is not None else len(self._by_id) + 1
        registered = RegisteredSchema(id, text, schema_type, tuple(references), subject, len(versions) + 1)
        versions.append(registered)
        if known is None:
            self._by_id.append(registered)
        return registered

    async def lookup(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """Raises SchemaNotFoundError if it is not registered under that subject."""
        for version in self._subjects.get(subject, ()):
            if (version.text, version.schema_type, version.references) == (text, schema_type, tuple(references)):
                return version
        raise SchemaNotFoundError(f"the schema is not registered under subject {subject!r}")

    async def by_id(self, id: int) -> RegisteredSchema:
        """Raises SchemaNotFoundError for an id that was never given."""
        if not 0 < id <= len(self._by_id):
            raise SchemaNotFoundError(f"no schema has the id {id}")
        return self._by_id[id - 1]

    async def latest(self, subject: str) -> RegisteredSchema:
        """Raises SchemaNotFoundError for a subject without versions."""
        versions = self._subjects.get(subject)
        if not versions:
            raise SchemaNotFoundError(f"no subject {subject!r}")
        return versions[-1]

    async def version(self, subject: str, version: int) -> RegisteredSchema:
        """Raises SchemaNotFoundError for a version that does not exist."""
        versions = self._subjects.get(subject, [])
        if not 0 < version <= len(versions):
            raise SchemaNotFoundError(f"subject {subject!r} has no version {version}")
        return versions[version - 1]

    async def ping(self) -> None:
        """Always there."""

    async def close(self) -> None:
        """Nothing is open."""
