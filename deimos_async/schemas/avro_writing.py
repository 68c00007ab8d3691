"""Avro's binary encoding: a function for each type that appends a value to a buffer, and checks it on the way.

What is written must fit exactly: nothing is converted but the forms that the encoding itself knows (an integer where a
float stands, the raw number of a timestamp, text of a UUID). So the same functions validate.
Source: Apache Avro specification 1.12, "Binary Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

from deimos_async.schemas.avro_types import Node
from deimos_async.schemas.coercion import Unfit, as_mapping, key_step, kind_of, unfit_at

__all__ = ["Write", "WriterFactory", "exact_branches", "exact_key", "put_long"]

Write = Callable[[Any, bytearray], None]
"""Appends the value; raises `Unfit`, and then has appended something or nothing."""

_FLOAT = struct.Struct("<f").pack
_DOUBLE = struct.Struct("<d").pack

_PYTHON: Mapping[str, type] = {
    "boolean": bool,
    "int": int,
    "long": int,
    "float": float,
    "double": float,
    "bytes": bytes,
    "string": str,
    "enum": str,
    "fixed": bytes,
    "array": list,
    "map": dict,
    "record": dict,
}
# Of two branches for one Python type the one that keeps more comes first: a float is a double, a datetime has micros.
_CLOSER = {"double": 0, "timestamp-micros": 0, "local-timestamp-micros": 0, "time-micros": 0}


def put_long(out: bytearray, number: int) -> None:
    """Append a 64-bit integer as a zig-zag varint."""
    number = (number << 1) ^ (number >> 63)
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)


def exact_branches(union: Node) -> dict[tuple[type, bool], tuple[int, ...]]:
    """Indexes of the branches that a value of a Python type may fit as it is, in the order to try them.

    Keys are (type, whether it is a datetime with a timezone).
    """
    found: dict[tuple[type, bool], list[int]] = {}
    for index, branch in enumerate(union.branches):
        if branch.kind != "null":
            cls, local = branch.logical.group if branch.logical else (_PYTHON[branch.kind], False)
            found.setdefault((cls, cls is datetime and not local), []).append(index)
    return {
        key: tuple(sorted(indexes, key=lambda index: _CLOSER.get(union.branches[index].label, 1)))
        for key, indexes in found.items()
    }


_KINDS = (bool, int, float, str, bytes, datetime, date, time, Decimal, UUID)


def exact_key(value: Any) -> tuple[type, bool]:
    """Key of `exact_branches` for a value: the plain type that it is, or is a subclass of."""
    cls = type(value)
    if cls is dict or cls is list:
        return cls, False
    for kind in _KINDS:
        if isinstance(value, kind):
            return kind, isinstance(value, datetime) and value.tzinfo is not None
    if isinstance(value, Mapping):
        return dict, False
    return (list, False) if isinstance(value, list | tuple) else (cls, False)


class WriterFactory:
    """Makes the writing function of every node of one schema, each once; recursive types meet themselves again."""

    def __init__(self) -> None:
        self._made: dict[Node, Write] = {}
        self._open: set[Node] = set()

    def make(self, node: Node) -> Write:
        """The writing function of a node."""
        if node in self._made:
            return self._made[node]
        if node in self._open:
            made = self._made
            return lambda value, out: made[node](value, out)
        self._open.add(node)
        write = self._build(node)
        self._open.discard(node)
        self._made[node] = write
        return write

    def _build(self, node: Node) -> Write:
        if node.kind == "record":
            return _record(node, tuple((entry.name, self.make(entry.node)) for entry in node.fields))
        if node.kind == "array":
            return _array(self.make(node.items))
        if node.kind == "map":
            return _map(self.make(node.items))
        if node.kind == "union":
            return _union(node, tuple(self.make(branch) for branch in node.branches))
        if node.kind == "enum":
            return _enum(node)
        raw = _fixed(node.size) if node.kind == "fixed" else _SCALARS[node.kind]
        return _logical(node.logical.to_raw, raw) if node.logical else raw


def _required(wanted: str, value: Any) -> Unfit:
    """The error for a value of the wrong type."""
    return Unfit(f"expected {wanted}, got {kind_of(value)}")


def _write_null(value: Any, out: bytearray) -> None:
    if value is not None:
        raise _required("null", value)


def _write_boolean(value: Any, out: bytearray) -> None:
    if value is True:
        out.append(1)
    elif value is False:
        out.append(0)
    else:
        raise _required("boolean", value)


def _write_int(value: Any, out: bytearray) -> None:
    if type(value) is not int and (not isinstance(value, int) or isinstance(value, bool)):
        raise _required("int", value)
    if not -0x8000_0000 <= value <= 0x7FFF_FFFF:
        raise Unfit("out of range: more than 32 bits")
    if -64 <= value < 64:
        out.append((value << 1) ^ (value >> 63))
    else:
        put_long(out, value)


def _write_long(value: Any, out: bytearray) -> None:
    if type(value) is not int and (not isinstance(value, int) or isinstance(value, bool)):
        raise _required("long", value)
    if not -0x8000_0000_0000_0000 <= value <= 0x7FFF_FFFF_FFFF_FFFF:
        raise Unfit("out of range: more than 64 bits")
    put_long(out, value)


def _write_float(value: Any, out: bytearray) -> None:
    if type(value) is not float and (not isinstance(value, float | int) or isinstance(value, bool)):
        raise _required("float", value)
    try:
        out += _FLOAT(value)
    except (OverflowError, struct.error) as error:
        raise Unfit("out of range: more than 32 bits") from error


def _write_double(value: Any, out: bytearray) -> None:
    if type(value) is not float and (not isinstance(value, float | int) or isinstance(value, bool)):
        raise _required("double", value)
    try:
        out += _DOUBLE(value)
    except (OverflowError, struct.error) as error:
        raise Unfit("out of range: more than 64 bits") from error


def _write_bytes(value: Any, out: bytearray) -> None:
    if not isinstance(value, bytes | bytearray):
        raise _required("bytes", value)
    put_long(out, len(value))
    out += value


def _write_string(value: Any, out: bytearray) -> None:
    if not isinstance(value, str):
        raise _required("string", value)
    try:
        data = value.encode()
    except UnicodeEncodeError as error:
        raise Unfit("the text has half of a surrogate pair and no UTF-8 form") from error
    size = len(data)
    if size < 64:
        out.append(size << 1)
    else:
        put_long(out, size)
    out += data


_SCALARS: Mapping[str, Write] = {
    "null": _write_null,
    "boolean": _write_boolean,
    "int": _write_int,
    "long": _write_long,
    "float": _write_float,
    "double": _write_double,
    "bytes": _write_bytes,
    "string": _write_string,
}


def _logical(to_raw: Callable[[Any], Any], raw: Write) -> Write:
    def write(value: Any, out: bytearray) -> None:
        raw(to_raw(value), out)

    return write


def _fixed(size: int) -> Write:
    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, bytes | bytearray):
            raise _required("bytes", value)
        if len(value) != size:
            raise Unfit(f"expected {size} bytes, got {len(value)}")
        out += value

    return write


def _enum(node: Node) -> Write:
    indexes = {symbol: index for index, symbol in enumerate(node.symbols)}

    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, str):
            raise _required(f"a symbol of {node.name}", value)
        index = indexes.get(value)
        if index is None:
            raise Unfit(f"not a symbol of {node.name}")
        put_long(out, index)

    return write


def _array(write_item: Write) -> Write:
    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, list | tuple):
            raise _required("a list", value)
        if value:
            put_long(out, len(value))
            errors = None
            for index, item in enumerate(value):
                try:
                    write_item(item, out)
                except Unfit as error:
                    errors = unfit_at(index, error, errors)
            if errors is not None:
                raise Unfit(errors)
        out.append(0)

    return write


def _map(write_value: Write) -> Write:
    def write(value: Any, out: bytearray) -> None:
        if not isinstance(value, Mapping):
            raise _required("a mapping", value)
        if value:
            put_long(out, len(value))
            errors = None
            for key, item in value.items():
                try:
                    _write_string(key, out)
                    write_value(item, out)
                except Unfit as error:
                    errors = unfit_at(key_step(key), error, errors)
            if errors is not None:
                raise Unfit(errors)
        out.append(0)

    return write


def _record(node: Node, fields: tuple[tuple[str, Write], ...]) -> Write:
    names = frozenset(name for name, _ in fields)
    count = len(fields)

    def write(value: Any, out: bytearray) -> None:
        if type(value) is not dict:
            mapping = as_mapping(value)
            if mapping is None:
                raise _required(f"a mapping for {node.name}", value)
            value = mapping
        errors = None
        for name, write_field in fields:
            if name in value:
                try:
                    write_field(value[name], out)
                except Unfit as error:
                    errors = unfit_at(name, error, errors)
            else:
                errors = unfit_at(name, Unfit("missing"), errors)
        if errors is not None or len(value) != count:
            for name in value:
                if name not in names:
                    errors = unfit_at(str(name), Unfit(f"{node.name} has no such field"), errors)
            assert errors is not None
            raise Unfit(errors)

    return write


def _union(node: Node, writes: tuple[Write, ...]) -> Write:
    heads = []
    for index in range(len(writes)):
        head = bytearray()
        put_long(head, index)
        heads.append(bytes(head))
    null = next((heads[index] for index, branch in enumerate(node.branches) if branch.kind == "null"), None)
    every = tuple(index for index, branch in enumerate(node.branches) if branch.kind != "null")
    names = ", ".join(branch.label for branch in node.branches)
    if len(every) == 1:
        return _optional(null, heads[every[0]], writes[every[0]], names)

    # Values that fit a branch as they are go there; the other branches follow for what only the encoding would take.
    orders = {
        key: (len(first), tuple((heads[i], writes[i]) for i in (*first, *(i for i in every if i not in first))))
        for key, first in exact_branches(node).items()
    }
    by_class = {cls: order for (cls, _), order in orders.items() if cls is not datetime}
    unknown = (0, tuple((heads[i], writes[i]) for i in every))

    def write(value: Any, out: bytearray) -> None:
        if value is None:
            if null is None:
                raise Unfit(f"null, but the union has only {names}")
            out += null
            return
        exact, order = by_class.get(type(value)) or orders.get(exact_key(value), unknown)
        mark = len(out)
        first: Unfit | None = None
        for head, write_branch in order:
            out += head
            try:
                write_branch(value, out)
            except Unfit as error:
                first = first or error
                del out[mark:]
            else:
                return
        if exact == 1 and first is not None:
            raise first
        raise Unfit(f"{kind_of(value)} fits none of {names}")

    return write


def _optional(null: bytes | None, head: bytes, write_branch: Write, names: str) -> Write:
    def write(value: Any, out: bytearray) -> None:
        if value is not None:
            out += head
            write_branch(value, out)
        elif null is not None:
            out += null
        else:
            raise Unfit(f"null, but the union has only {names}")

    return write
