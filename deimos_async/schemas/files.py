"""Schema files: `com.acme.Order` is `<schema.path>/com/acme/Order.avsc`.

Files are read when an application is put together, and kept; never while messages pass.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deimos_async.errors import SchemaError, SchemaNotFoundError
from deimos_async.schemas.protocol import SchemaBackend

__all__ = ["SchemaFiles"]

_SUFFIX = ".avsc"
_FULL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")


class SchemaFiles:
    """The schema files below one folder, by full name.

    Args:
        root: The folder; setting `schema.path`. It need not exist as long as nothing is looked for.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self._texts: dict[str, str] = {}

    def path(self, full_name: str) -> Path:
        """Where the schema of that name would be.

        Raises:
            SchemaNotFoundError: The name could not be any schema's, so it may not become a path.
        """
        if not _FULL_NAME.fullmatch(full_name):
            raise SchemaNotFoundError(
                f"{full_name!r} is not the full name of a schema: names of letters, digits and underscores, "
                "joined by dots"
            )
        return self.root.joinpath(*full_name.split(".")).with_suffix(_SUFFIX)

    def has(self, full_name: str) -> bool:
        """Whether there is a file for that name, sound or not."""
        return full_name in self._texts or self.path(full_name).is_file()

    def find(self, full_name: str) -> str:
        """The schema's text; read once, then kept.

        Raises:
            SchemaNotFoundError: No such file; names the path, the setting and close names.
            SchemaError: The file cannot be read, is not JSON, or declares another name than its path says.
        """
        text = self._texts.get(full_name)
        if text is None:
            text = self._texts[full_name] = self._read(full_name)
        return text

    def with_dependencies(self, backend: SchemaBackend, full_name: str) -> tuple[str, dict[str, str]]:
        """The schema's text, and the texts of the types that it uses from other files, theirs included.

        A type that has no file of its own is also found inside the files that are drawn in. Files may use each other
        in a circle, and several may define the same nested type.

        Returns:
            The text, and texts by full name: the arguments `text` and `named` of `SchemaBackend.compile`.

        Raises:
            SchemaNotFoundError: The schema, or a type that it uses (its user is named), is nowhere.
            SchemaError: As for `find`, or one of the texts is not a schema.
        """
        text = self.find(full_name)
        named: dict[str, str] = {}
        nested: dict[str, str] = {}
        absent: dict[str, SchemaNotFoundError] = {}
        waiting = [(full_name, text)]
        while waiting:
            user, its_text = waiting.pop()
            nested |= _definitions(json.loads(its_text))
            for name in backend.missing_types(its_text):
                if name == full_name or name in named or name in absent:
                    continue
                try:
                    named[name] = self.find(name)
                except SchemaNotFoundError as error:
                    absent[name] = SchemaNotFoundError(f"{error} (it is used by {user})")
                    continue
                waiting.append((name, named[name]))
        for name, not_found in absent.items():
            if name not in nested:
                raise not_found
            named[name] = nested[name]
        return text, named

    def _read(self, full_name: str) -> str:
        path = self.path(full_name)
        try:
            text = path.read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            raise SchemaNotFoundError(self._not_found(full_name, path)) from None
        except (OSError, UnicodeDecodeError) as error:
            raise SchemaError(f"schema file {path} cannot be read: {error}") from error
        try:
            source = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"schema file {path} is not JSON: {error}") from error
        declared = _full_name(source, "") if isinstance(source, dict) else None
        if declared != full_name:
            found = f"declares {declared}" if declared else "declares no name"
            raise SchemaError(
                f"schema file {path} {found}, but by its path it should declare {full_name}; "
                "move the file, or change its name and namespace"
            )
        return text

    def _not_found(self, full_name: str, path: Path) -> str:
        message = f"schema {full_name} is not at {path} (setting 'schema.path' is {str(self.root)!r}"
        if not self.root.is_dir():
            return f"{message}, which is no folder)"
        close = self._close_names(full_name)
        return f"{message}); did you mean {' or '.join(close)}?" if close else f"{message})"

    def _close_names(self, full_name: str) -> list[str]:
        known = sorted(
            ".".join(found.relative_to(self.root).with_suffix("").parts) for found in self.root.rglob(f"*{_SUFFIX}")
        )
        short = full_name.rpartition(".")[2].lower()
        elsewhere = [name for name in known if name.rpartition(".")[2].lower() == short]
        similar = difflib.get_close_matches(full_name, known, n=3, cutoff=0.8)
        return list(dict.fromkeys(elsewhere + similar))[:3]


def _full_name(source: Mapping[str, Any], namespace: str) -> str | None:
    # Avro specification, "Names": a dotted name is a full one, else the nearest namespace around it counts.
    name = source.get("name")
    if not isinstance(name, str) or not name:
        return None
    own = source.get("namespace", namespace)
    return name if "." in name or not isinstance(own, str) or not own else f"{own}.{name}"


def _definitions(source: Any) -> dict[str, str]:
    """Texts of all named types that are defined anywhere in a schema, each able to stand outside of it."""
    return {
        name: json.dumps(definition | {"name": name, "namespace": name.rpartition(".")[0]})
        for name, definition in _walk(source, "")
    }


def _walk(source: Any, namespace: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(source, list):
        for branch in source:
            yield from _walk(branch, namespace)
    if not isinstance(source, dict):
        return
    if source.get("type") in ("record", "error", "enum", "fixed") and (name := _full_name(source, namespace)):
        yield name, source
        namespace = name.rpartition(".")[0]
        fields = source.get("fields")
        for entry in fields if isinstance(fields, list) else ():
            if isinstance(entry, dict):
                yield from _walk(entry.get("type"), namespace)
        return
    for part in ("type", "items", "values"):
        yield from _walk(source.get(part), namespace)
