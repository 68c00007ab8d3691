"""A schema registry that is left as it was found: for tests of applications."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from deimos_async.errors import RegistryError, SchemaNotFoundError
from deimos_async.schemas.protocol import RegisteredSchema, SchemaReference
from deimos_async.schemas.registry import HttpSchemaRegistry, escaped
from deimos_async.schemas.registry_options import RegistryOptions

__all__ = ["DisposableSchemaRegistry"]

_log = logging.getLogger(__name__)


class DisposableSchemaRegistry(HttpSchemaRegistry):
    """A client whose subjects are deleted at `close`: those under which it registered something.

    Args:
        options: Where the registry is.
        prefix: How the names of subjects begin that belong to this client alone; others stay, as those named after a
            record do. What cannot be deleted is logged and stays.
    """

    def __init__(self, options: RegistryOptions, prefix: str) -> None:
        super().__init__(options)
        self._prefix = prefix
        self._registered: set[str] = set()

    async def register(
        self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
    ) -> RegisteredSchema:
        """See `SchemaRegistry.register`."""
        if subject.startswith(self._prefix):
            self._registered.add(subject)
        return await super().register(subject, text, schema_type=schema_type, references=references)

    async def close(self) -> None:
        """Delete the subjects, and close. Any number of times."""
        subjects, self._registered = sorted(self._registered), set()
        try:
            for subject in subjects:
                await self._delete(subject)
        except RegistryError as error:
            _log.warning("the schema registry keeps subjects of a test: %s", error)
        finally:
            await super().close()

    async def _delete(self, subject: str) -> None:
        # Source: Confluent Schema Registry API v1: only what is deleted already can be deleted for good.
        for path in (f"/subjects/{escaped(subject)}", f"/subjects/{escaped(subject)}?permanent=true"):
            try:
                await self._http.ask("DELETE", path, lambda answer: answer, what=f"subject {subject!r}")
            except SchemaNotFoundError:
                return
