"""Schema backends by name: our own, and those that other packages offer as entry points."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import EntryPoint, entry_points

from deimos_async.errors import ConfigurationError
from deimos_async.schemas.protocol import SchemaBackend

__all__ = ["BACKEND_NAMES", "ENTRY_POINT_GROUP", "backend"]

ENTRY_POINT_GROUP = "deimos_async.schema_backends"
"""Entry points of this group name objects that are `SchemaBackend`s."""

_HOMES = {
    "avro_local": ("deimos_async.schemas.avro", "avro_local"),
    "avro_schema_registry": ("deimos_async.schemas.avro", "avro_schema_registry"),
    "avro_validation": ("deimos_async.schemas.avro", "avro_validation"),
    "mock": ("deimos_async.schemas.mock", "mock"),
    "plain": ("deimos_async.schemas.plain", "plain"),
}
_LATER = frozenset({"json_local", "json_schema_registry", "proto_local", "proto_schema_registry"})
_PORT = ("uses_registry", "uses_files", "supports_key_schemas", "mock", "compile", "key_schema", "missing_types")

BACKEND_NAMES = tuple(sorted(_HOMES))
"""The backends of this version."""


def backend(name: str) -> SchemaBackend:
    """The backend of that name; its library is loaded now. Our own names cannot be taken over by entry points.

    Raises:
        ConfigurationError: There is none (lists the names), this version does not have it yet, or the package that
            offers it cannot be loaded.
    """
    home = _HOMES.get(name)
    if home is not None:
        # start-up time: a backend's library is loaded where the backend is used
        found: SchemaBackend = getattr(importlib.import_module(home[0]), home[1])
        return found
    offered = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    if name in offered:
        return _load(offered[name])
    known = [*BACKEND_NAMES, *sorted(set(offered) - set(BACKEND_NAMES))]
    if name in _LATER:
        raise ConfigurationError(f"schema backend {name!r} is not available in this version; use {', '.join(known)}")
    close = difflib.get_close_matches(name, [*known, *_LATER], 1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigurationError(f"schema backend {name!r} does not exist; {hint}there are {', '.join(known)}")


def _load(entry: EntryPoint) -> SchemaBackend:
    where = f"schema backend {entry.name!r} (entry point {entry.value!r})"
    try:
        found: SchemaBackend = entry.load()
    except Exception as error:
        # Another package's code: whatever it raises when it is imported, the name that was asked for is to be told.
        raise ConfigurationError(f"{where} cannot be loaded: {type(error).__name__}: {error}") from error
    missing = [attribute for attribute in _PORT if not hasattr(found, attribute)]
    if missing or isinstance(found, type):
        problem = "is a class; name an instance" if isinstance(found, type) else f"has no {', '.join(missing)}"
        raise ConfigurationError(f"{where} {problem}; it must be a SchemaBackend")
    return found
