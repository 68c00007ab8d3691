"""Schema backends by name: our own, and those that other packages offer as entry points."""

from __future__ import annotations

import difflib
import importlib
from importlib.metadata import entry_points

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

BACKEND_NAMES = tuple(sorted(_HOMES))
"""The backends of this version."""


def backend(name: str) -> SchemaBackend:
    """The backend of that name; its library is loaded now.

    Raises:
        ConfigurationError: There is none; lists the names, or says that this version does not have it yet.
    """
    home = _HOMES.get(name)
    if home is not None:
        found: SchemaBackend = getattr(importlib.import_module(home[0]), home[1])
        return found
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name == name:
            loaded: SchemaBackend = entry.load()
            return loaded
    if name in _LATER:
        raise ConfigurationError(
            f"schema backend {name!r} is not available in this version; it has {', '.join(BACKEND_NAMES)}"
        )
    known = [*BACKEND_NAMES, *(entry.name for entry in entry_points(group=ENTRY_POINT_GROUP))]
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"one of {', '.join(known)}"
    raise ConfigurationError(f"schema backend {name!r} does not exist; {hint}")
