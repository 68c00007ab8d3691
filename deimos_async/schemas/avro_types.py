"""An Avro schema as a graph of nodes: parsed, names resolved, checked; and written back as one self-contained text.

Everything else about Avro (`avro_coercion`, `avro_writing`, `avro_reading`, `avro_json`) turns nodes into functions.
Source of the rules: Apache Avro specification 1.12, "Schema Declaration" and "Names".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from deimos_async.errors import SchemaError
from deimos_async.schemas.avro_logical import Logical, logical_type
from deimos_async.schemas.protocol import NO_DEFAULT

__all__ = ["PRIMITIVES", "Field", "Node", "parse_schema", "schema_text", "undefined_types", "unwrap_nullable"]

PRIMITIVES = frozenset({"null", "boolean", "int", "long", "float", "double", "bytes", "string"})
_NAMED = frozenset({"record", "enum", "fixed"})
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_STRUCTURE = frozenset({"type", "name", "namespace", "fields", "symbols", "size", "items", "values", "aliases"})


@dataclass(slots=True, eq=False)
class Field:
    """A field of a record. `default` is the JSON of the schema, or `NO_DEFAULT`; `extra` whatever else stands there."""

    name: str
    node: Node
    default: Any = NO_DEFAULT
    doc: str | None = None
    aliases: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Node:
    """A type. A named type is one node however often it is used, so a recursive schema is a graph with cycles.

    Nodes are filled in while a schema is parsed and never changed afterwards.

    Attributes:
        kind: A primitive's name, or `record`, `enum`, `fixed`, `array`, `map`, `union`.
        name: Full name of a named type, else empty.
        logical: The logical type, where it is known and valid; the specification wants others to be ignored.
        fields, symbols, size: Of a record, an enum, a fixed.
        branches: Of a union, in declared order. `item`: type of an array's items or a map's values.
        aliases: Full names.
        extra: The other attributes (`doc`, `logicalType`, an enum's `default`, own ones), kept for the text.
    """

    kind: str
    name: str = ""
    logical: Logical | None = None
    fields: tuple[Field, ...] = ()
    symbols: tuple[str, ...] = ()
    size: int = 0
    branches: tuple[Node, ...] = ()
    item: Node | None = None
    aliases: tuple[str, ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What to call the type in an error: its full name, its logical type, or its kind."""
        return self.name or (self.logical.name if self.logical else self.kind)

    @property
    def items(self) -> Node:
        """Type of the items of an array or of the values of a map."""
        assert self.item is not None
        return self.item


def parse_schema(text: str, named: Mapping[str, str] | None = None) -> Node:
    """The graph of a schema.

    Args:
        text: JSON of the schema.
        named: Texts of the types that it uses and does not define, by full name; they may use each other.

    Raises:
        SchemaError: Not JSON, or not a schema; names the place and the type.
    """
    return _Parser(named or {}).parse_text(text, "")


def undefined_types(text: str) -> tuple[str, ...]:
    """Full names that the text uses and does not define, in order of first use.

    Raises:
        SchemaError: As for `parse_schema`.
    """
    parser = _Parser({}, collect=True)
    parser.parse_text(text, "")
    return tuple(name for name in parser.undefined if name not in parser.nodes)


def schema_text(node: Node) -> str:
    """The schema as compact JSON that stands alone: each named type is defined where it is first used.

    Attributes keep their order and the unknown ones are kept; names are written so that they do not depend on the
    file they came from.
    """
    return json.dumps(_render(node, "", set()), separators=(",", ":"), ensure_ascii=False)


def unwrap_nullable(node: Node) -> Node:
    """The type that a union of it and null stands for; any other node as it is."""
    others = [branch for branch in node.branches if branch.kind != "null"]
    return others[0] if len(others) == 1 else node


class _Parser:
    """Walks one schema and the texts that it draws in. `collect`: note unknown names instead of refusing them."""

    def __init__(self, named: Mapping[str, str], *, collect: bool = False) -> None:
        self.named = named
        self.collect = collect
        self.nodes: dict[str, Node] = {}
        self.undefined: dict[str, None] = {}
        self._sources: dict[str, tuple[dict[str, Any], str]] = {}

    def parse_text(self, text: str, expected: str) -> Node:
        origin = f"schema {expected}" if expected else "schema"
        try:
            source = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SchemaError(f"{origin}: not JSON: {error}") from error
        try:
            node = self.parse(source, "", expected)
        except RecursionError as error:
            raise SchemaError(f"{origin}: nested too deeply") from error
        if expected and node.name != expected:
            raise SchemaError(f"{origin}: its text defines {node.label} instead")
        return node

    def parse(self, source: Any, namespace: str, where: str) -> Node:
        if isinstance(source, str):
            return Node(source) if source in PRIMITIVES else self._reference(source, namespace, where)
        if isinstance(source, list):
            return self._union(source, namespace, where)
        if not isinstance(source, dict):
            raise _wrong(where, f"a type is a name, an object or a list, not {json.dumps(source)}")
        kind = source.get("type")
        if isinstance(kind, dict | list):
            return self.parse(kind, namespace, where)
        if not isinstance(kind, str):
            raise _wrong(where, "the type has no 'type'")
        if kind == "error":
            kind = "record"
        if kind in _NAMED:
            return self._definition(kind, source, namespace, where)
        if kind == "array":
            item = self.parse(_required(source, "items", where), namespace, f"{where}[]")
            return Node("array", item=item, extra=_extra(source))
        if kind == "map":
            item = self.parse(_required(source, "values", where), namespace, f"{where}{{}}")
            return Node("map", item=item, extra=_extra(source))
        if kind in PRIMITIVES:
            return Node(kind, logical=logical_type(kind, source), extra=_extra(source))
        return self._reference(kind, namespace, where)

    def _reference(self, name: str, namespace: str, where: str) -> Node:
        full = _full_name(name, namespace)
        if full in self.nodes:
            return self.nodes[full]
        if self.collect:
            self.undefined.setdefault(full)
            return Node("record", name=full)
        if full not in self.named:
            raise _wrong(where, f"type {full} is not defined (types are defined before they are used)")
        return self.parse_text(self.named[full], full)

    def _union(self, source: list[Any], namespace: str, where: str) -> Node:
        branches = tuple(self.parse(branch, namespace, where) for branch in source)
        seen: set[str] = set()
        for branch in branches:
            if branch.kind == "union":
                raise _wrong(where, "a union may not hold a union directly")
            if (key := branch.name or branch.kind) in seen:
                raise _wrong(where, f"the union holds {key} twice")
            seen.add(key)
        if not branches:
            raise _wrong(where, "the union is empty")
        return Node("union", branches=branches)

    def _definition(self, kind: str, source: dict[str, Any], namespace: str, where: str) -> Node:
        name = source.get("name")
        if not isinstance(name, str):
            raise _wrong(where, f"a {kind} needs a name")
        own = source.get("namespace", namespace)
        full = _full_name(name, own if isinstance(own, str) else namespace)
        if not all(_IDENTIFIER.fullmatch(part) for part in full.split(".")):
            raise _wrong(where, f"{full!r} is not a name of letters, digits and underscores, parts joined by dots")
        space = full.rpartition(".")[0]
        if full in self.nodes:
            self._check_same(full, source, namespace, where)
            return self.nodes[full]
        where = where or full
        aliases = _strings(source, "aliases", where)
        node = Node(kind, name=full, aliases=tuple(_full_name(alias, space) for alias in aliases), extra=_extra(source))
        self.nodes[full] = node
        self._sources[full] = (source, namespace)
        if kind == "record":
            node.fields = self._fields(source, space, where)
        elif kind == "enum":
            node.symbols = _symbols(source, where)
        else:
            size = source.get("size")
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise _wrong(where, f"fixed {full} needs a size in bytes")
            node.size = size
            node.logical = logical_type("fixed", source)
        return node

    def _check_same(self, full: str, source: dict[str, Any], namespace: str, where: str) -> None:
        # Two files may define the same nested type; it is defined once in the text, so both must say the same.
        first, second = (
            schema_text(_Parser(self.named, collect=True).parse(definition, space, ""))
            for definition, space in (self._sources[full], (source, namespace))
        )
        if first != second:
            raise _wrong(where, f"type {full} is defined twice and differently")

    def _fields(self, source: dict[str, Any], namespace: str, where: str) -> tuple[Field, ...]:
        listed = source.get("fields")
        if not isinstance(listed, list):
            raise _wrong(where, "a record needs a list of fields")
        fields: dict[str, Field] = {}
        for entry in listed:
            name = entry.get("name") if isinstance(entry, dict) else None
            if not isinstance(name, str) or not _IDENTIFIER.fullmatch(name):
                raise _wrong(where, f"a field needs a name of letters, digits and underscores, not {json.dumps(name)}")
            if name in fields:
                raise _wrong(where, f"field {name!r} appears twice")
            place = f"{where}.{name}"
            node = self.parse(_required(entry, "type", place), namespace, place)
            known = {"name", "type", "default", "doc", "aliases"}
            fields[name] = Field(
                name,
                node,
                default=entry.get("default", NO_DEFAULT),
                doc=entry.get("doc"),
                aliases=_strings(entry, "aliases", place),
                extra={key: value for key, value in entry.items() if key not in known},
            )
        return tuple(fields.values())


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _extra(source: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in source.items() if key not in _STRUCTURE}


def _required(source: dict[str, Any], key: str, where: str) -> Any:
    if key not in source:
        raise _wrong(where, f"{key!r} is missing")
    return source[key]


def _strings(source: dict[str, Any], key: str, where: str) -> tuple[str, ...]:
    values = source.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise _wrong(where, f"{key!r} is a list of names")
    return tuple(values)


def _symbols(source: dict[str, Any], where: str) -> tuple[str, ...]:
    symbols = _strings(source, "symbols", where)
    for symbol in symbols:
        if not _IDENTIFIER.fullmatch(symbol):
            raise _wrong(where, f"{symbol!r} is not a symbol of letters, digits and underscores")
    if not symbols or len(set(symbols)) != len(symbols):
        raise _wrong(where, "an enum needs symbols, each of them once")
    if "default" in source and source["default"] not in symbols:
        raise _wrong(where, "the default of the enum is not one of its symbols")
    return symbols


def _wrong(where: str, problem: str) -> SchemaError:
    return SchemaError(f"schema {where}: {problem}" if where else f"schema: {problem}")


def _render(node: Node, namespace: str, seen: set[str]) -> Any:
    if node.kind == "union":
        return [_render(branch, namespace, seen) for branch in node.branches]
    if node.name in seen:
        if namespace and "." not in node.name:
            raise SchemaError(f"schema: type {node.name} has no namespace and cannot be named inside {namespace}")
        return node.name
    if not node.name:
        if node.item is not None:
            key = "items" if node.kind == "array" else "values"
            return {"type": node.kind, key: _render(node.item, namespace, seen), **node.extra}
        return {"type": node.kind, **node.extra} if node.extra else node.kind
    seen.add(node.name)
    space, _, name = node.name.rpartition(".")
    rendered: dict[str, Any] = {"type": node.kind, "name": name}
    if space != namespace:
        rendered["namespace"] = space
    rendered |= node.extra
    if node.aliases:
        rendered["aliases"] = list(node.aliases)
    if node.kind == "enum":
        rendered["symbols"] = list(node.symbols)
    elif node.kind == "fixed":
        rendered["size"] = node.size
    else:
        rendered["fields"] = [_render_field(entry, space, seen) for entry in node.fields]
    return rendered


def _render_field(entry: Field, namespace: str, seen: set[str]) -> dict[str, Any]:
    rendered: dict[str, Any] = {"name": entry.name, "type": _render(entry.node, namespace, seen)}
    if entry.doc is not None:
        rendered["doc"] = entry.doc
    if entry.default is not NO_DEFAULT:
        rendered["default"] = entry.default
    if entry.aliases:
        rendered["aliases"] = list(entry.aliases)
    return rendered | entry.extra
