"""Avro's binary decoding: a function for each pair of writer's and reader's type, made once for a pair of schemas.

Schema resolution is decided when the functions are made; a message pays only for what is in it. What cannot be resolved
becomes a function that fails when it is reached, so a union or an optional part that never occurs does no harm.
Input may be hostile: lengths are checked against the bytes that are left, indexes and ranges are checked, and nesting
is bounded by the interpreter's own limit.
Source: Apache Avro specification 1.12, "Binary Encoding" and "Schema Resolution"; of several matching branches of a
reader's union the one of the same type is preferred to one that needs a promotion, as Java's implementation does.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from deimos_async.schemas.avro_coercion import default_value
from deimos_async.schemas.avro_logical import Logical
from deimos_async.schemas.avro_types import Field, Node
from deimos_async.schemas.coercion import Unfit, key_step
from deimos_async.schemas.protocol import NO_DEFAULT

__all__ = [
    "BROKEN",
    "Counted",
    "Read",
    "ReaderFactory",
    "RecordPlan",
    "Unreadable",
    "logical_between",
    "matches",
    "problem_of",
    "read_block",
    "read_bytes",
    "read_int",
    "read_long",
    "record_plan",
    "resolves",
]

Read = Callable[[bytes, int], tuple[Any, int]]
"""(data, position) -> (value, position behind it). Raises `Unreadable`, or IndexError at the end of the data."""

MOST_ITEMS = 500_000
"""Most of what one message may have in arrays and maps of items that become much more than they were: records, with the
values that they get by default, and items that take no bytes at all. A few bytes could else ask for any amount of
memory, and hold the event loop. Records cost most, and count twice.
"""
_RECORD = 2

_FLOAT = struct.Struct("<f").unpack_from
_DOUBLE = struct.Struct("<d").unpack_from
_ZIGZAG = tuple((byte >> 1) ^ -(byte & 1) for byte in range(128))
_PROMOTIONS: Mapping[str, frozenset[str]] = {
    "int": frozenset({"long", "float", "double"}),
    "long": frozenset({"float", "double"}),
    "float": frozenset({"double"}),
    "string": frozenset({"bytes"}),
    "bytes": frozenset({"string"}),
}


class Unreadable(Exception):
    """Bytes that are not what the writer's schema says, or do not resolve to the reader's. `path` grows going up."""

    def __init__(self, problem: str, path: str = "") -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = path


BROKEN = (Unreadable, IndexError, ValueError, OverflowError, struct.error)
"""What a reading function may raise for bytes that it cannot read."""


def _at(step: str, error: Exception) -> Unreadable:
    if isinstance(error, Unreadable):
        path = error.path
        return Unreadable(error.problem, step + (path if not path or path[0] == "[" else f".{path}"))
    return Unreadable(problem_of(error), step)


def problem_of(error: Exception) -> str:
    """What went wrong while a value was read, in words."""
    if isinstance(error, Unreadable):
        return error.problem
    if isinstance(error, UnicodeDecodeError):
        return "text that is not UTF-8"
    if isinstance(error, IndexError | struct.error):
        return "the data ends too early"
    return f"no value of its logical type: {error}"


class Counted(bytes):
    """A message of a schema with items that are counted: it knows how many of them it may still have."""

    left = MOST_ITEMS

    def take(self, items: int) -> None:
        """Raises `Unreadable` if these are too many."""
        self.left -= items
        if self.left < 0:
            raise Unreadable(f"more than {MOST_ITEMS} records, defaults and items without bytes in arrays and maps")


class ReaderFactory:
    """Makes reading functions, each once; recursive types meet themselves again."""

    def __init__(self) -> None:
        self._made: dict[tuple[Node, Node], Read] = {}
        self._open: set[tuple[Node, Node]] = set()
        self._weights: dict[tuple[Node, Node], int] = {}
        self._empty: dict[Node, bool] = {}
        self.has_counted = False
        """Whether there are items that must be counted: the functions want the data as `Counted`."""

    def make_whole(self, writer: Node, reader: Node) -> Read:
        """`make` for whole messages: what each may ask for is counted anew."""
        read = self.make(writer, reader)
        if not self.has_counted:
            return read
        return lambda data, position: read(Counted(data), position)

    def make(self, writer: Node, reader: Node) -> Read:
        """Reads what `writer` wrote as a value of `reader`; the same node twice reads without resolution."""
        key = (writer, reader)
        if key in self._made:
            return self._made[key]
        if key in self._open:
            made = self._made
            return lambda data, position: made[key](data, position)
        self._open.add(key)
        read = self._build(writer, reader)
        self._open.discard(key)
        self._made[key] = read
        return read

    def _build(self, writer: Node, reader: Node) -> Read:
        if writer.kind == "union":
            return self._union(writer, reader)
        if reader.kind == "union":
            branch = _branch_for(writer, reader)
            return self.make(writer, branch) if branch is not None else _mismatch(writer, reader)
        if not matches(writer, reader):
            return _mismatch(writer, reader)
        if writer.kind == "record":
            return self._record(writer, reader)
        if writer.kind == "array":
            read_item, weight = self.make(writer.items, reader.items), self.item_weight(writer, reader)
            self.has_counted |= weight > 0
            if self.takes_no_bytes(writer.items):
                return _array_of_nothing(read_item, weight)
            return _array(read_item, weight)
        if writer.kind == "map":
            weight = self.item_weight(writer, reader)
            self.has_counted |= weight > 0
            return _map(self.make(writer.items, reader.items), weight)
        if writer.kind == "enum":
            return _enum(writer, reader)
        return _scalar(writer, reader)

    def takes_no_bytes(self, node: Node) -> bool:
        """Whether every value of a type is written as nothing."""
        if node.kind != "record":
            return node.kind == "null" or (node.kind == "fixed" and node.size == 0)
        if node not in self._empty:
            self._empty[node] = True  # what it holds of itself decides nothing
            self._empty[node] = all(self.takes_no_bytes(entry.node) for entry in node.fields)
        return self._empty[node]

    def item_weight(self, writer: Node, reader: Node) -> int:
        """For how many an item of an array or map counts (see `MOST_ITEMS`); 0: it is not counted."""
        weight = self._weight(writer.items, reader.items)
        return weight or int(writer.kind == "array" and self.takes_no_bytes(writer.items))

    def _weight(self, writer: Node, reader: Node) -> int:
        if writer.kind == "union":
            weights = (self._weight(branch, branch if writer is reader else reader) for branch in writer.branches)
            return max(weights, default=0)
        if reader.kind == "union":
            branch = _branch_for(writer, reader)
            return 0 if branch is None else self._weight(writer, branch)
        if writer.kind != "record" or reader.kind != "record":
            return 0
        key = (writer, reader)
        if key not in self._weights:
            self._weights[key] = 0  # what it holds of itself takes bytes of its own
            plan = record_plan(writer, reader)
            if not isinstance(plan, str):
                self._weights[key] = (
                    _RECORD
                    + sum(_size(default) for _, default in plan.defaults)
                    + sum(self._weight(step.writer, step.reader or step.writer) for step in plan.steps)
                )
        return self._weights[key]

    def _union(self, writer: Node, reader: Node) -> Read:
        # Without resolution a branch stays what it is, even if another branch would match, too.
        reads = tuple(self.make(branch, branch if writer is reader else reader) for branch in writer.branches)
        heads = {index << 1: read for index, read in enumerate(reads[:64])}
        if len(reads) > 64:
            return _wide_union(reads)
        if len(reads) == 2 and writer.branches[0].kind == "null" and reader.kind == "union":
            nullable = any(branch.kind == "null" for branch in reader.branches)
            if nullable:
                return _optional(reads[1])

        def read(data: bytes, position: int) -> tuple[Any, int]:
            branch = heads.get(data[position])
            if branch is None:
                raise Unreadable(f"no such branch: the writer's union has {len(reads)}")
            return branch(data, position + 1)

        return read

    def _record(self, writer: Node, reader: Node) -> Read:
        if writer is reader:
            return _plain_record(tuple((entry.name, self.make(entry.node, entry.node)) for entry in writer.fields))
        plan = record_plan(writer, reader)
        if isinstance(plan, str):
            return _failing(plan)
        steps = tuple(
            (step.name, self.make(step.writer, step.reader or step.writer), step.reader is not None)
            for step in plan.steps
        )
        if not plan.defaults and all(kept for *_, kept in steps) and tuple(name for name, *_ in steps) == plan.order:
            return _plain_record(tuple((name, read) for name, read, _ in steps))
        return _resolved_record(steps, plan.defaults, plan.order)


class RecordStep(NamedTuple):
    """A field as it was written: what it is called in the result, and its types; `reader` None: it is passed over."""

    name: str
    writer: Node
    reader: Node | None


class RecordPlan(NamedTuple):
    """How a writer's record becomes a reader's: fields as they were written, defaults, and the order of the result."""

    steps: tuple[RecordStep, ...]
    defaults: tuple[tuple[str, Any], ...]
    order: tuple[str, ...]


def record_plan(writer: Node, reader: Node) -> RecordPlan | str:
    """How to resolve one record to another (or to itself); text: why it cannot be done."""
    order = tuple(entry.name for entry in reader.fields)
    if writer is reader:
        return RecordPlan(tuple(RecordStep(entry.name, entry.node, entry.node) for entry in writer.fields), (), order)
    wanted = {entry.name: entry for entry in reader.fields}
    sources: dict[str, Field] = {}
    for entry in writer.fields:
        if entry.name in wanted:
            sources[entry.name] = wanted[entry.name]
    for entry in reader.fields:
        if entry.name not in sources:
            for alias in entry.aliases:
                if any(written.name == alias for written in writer.fields) and alias not in sources:
                    sources[alias] = entry
                    break
    found = {entry.name for entry in sources.values()}
    defaults = []
    for entry in reader.fields:
        if entry.name not in found:
            try:
                if entry.default is NO_DEFAULT:
                    raise Unfit("no default")
                defaults.append((entry.name, default_value(entry.node, entry.default)))
            except Unfit:
                return f"the writer's {writer.name} has no field {entry.name}, and the reader's has no default for it"
    steps = []
    for entry in writer.fields:
        target = sources.get(entry.name)
        if target is None:
            steps.append(RecordStep(entry.name, entry.node, None))
        else:
            steps.append(RecordStep(target.name, entry.node, target.node))
    return RecordPlan(tuple(steps), tuple(defaults), order)


def resolves(writer: Node, reader: Node) -> bool:
    """Whether top-level types can be resolved at all; names are compared in full or by the reader's aliases."""
    if "union" in (writer.kind, reader.kind):
        return True
    if writer.name and reader.name and writer.name != reader.name and writer.name not in reader.aliases:
        return False
    return matches(writer, reader)


def matches(writer: Node, reader: Node) -> bool:
    """Whether types other than unions can be resolved: by kind, promotion, size, and name below the top."""
    if writer.kind != reader.kind:
        return reader.kind in _PROMOTIONS.get(writer.kind, ())
    if not writer.name:
        return True
    if writer.kind == "fixed" and writer.size != reader.size:
        return False
    # below the top, names match without their namespace
    unqualified = writer.name.rpartition(".")[2]
    return unqualified == reader.name.rpartition(".")[2] or writer.name in reader.aliases


def _branch_for(writer: Node, reader: Node) -> Node | None:
    def distance(branch: Node) -> int:
        if branch.kind != writer.kind:
            return 3
        if branch.name == writer.name or writer.name in branch.aliases:
            return 0
        return 1

    fitting = [branch for branch in reader.branches if matches(writer, branch)]
    return min(fitting, key=distance) if fitting else None


def _failing(problem: str) -> Read:
    def read(data: bytes, position: int) -> tuple[Any, int]:
        raise Unreadable(problem)

    return read


def _mismatch(writer: Node, reader: Node) -> Read:
    wanted = ", ".join(branch.label for branch in reader.branches) or reader.label
    return _failing(f"the writer's {writer.label} cannot be read as {wanted}")


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(map(_size, value.values()))
    return 1 + sum(map(_size, value)) if isinstance(value, list) else 1


# --- numbers, text, bytes -------------------------------------------------------------------------------------------


def read_long(data: bytes, position: int) -> tuple[int, int]:
    """A zig-zag varint of at most 64 bits."""
    byte = data[position]
    position += 1
    if byte < 128:
        return _ZIGZAG[byte], position
    number = byte & 127
    shift = 7
    while True:
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            break
        shift += 7
        if shift > 63:
            raise Unreadable("a number of more than 64 bits")
    if number >> 64:
        raise Unreadable("a number of more than 64 bits")
    return (number >> 1) ^ -(number & 1), position


def read_int(data: bytes, position: int) -> tuple[int, int]:
    """A zig-zag varint of at most 32 bits."""
    byte = data[position]
    if byte < 128:
        return _ZIGZAG[byte], position + 1
    number, position = read_long(data, position)
    if not -0x8000_0000 <= number <= 0x7FFF_FFFF:
        raise Unreadable("an int of more than 32 bits")
    return number, position


def _read_null(data: bytes, position: int) -> tuple[None, int]:
    return None, position


def _read_boolean(data: bytes, position: int) -> tuple[bool, int]:
    byte = data[position]
    if byte > 1:
        raise Unreadable("a boolean that is neither 0 nor 1")
    return byte == 1, position + 1


def _read_float(data: bytes, position: int) -> tuple[float, int]:
    return _FLOAT(data, position)[0], position + 4


def _read_double(data: bytes, position: int) -> tuple[float, int]:
    return _DOUBLE(data, position)[0], position + 8


def read_bytes(data: bytes, position: int) -> tuple[bytes, int]:
    """A length and so many bytes."""
    size, position = read_long(data, position)
    end = position + size
    value = data[position:end]
    if size < 0 or len(value) != size:
        raise Unreadable("a length that is negative or beyond the end of the data")
    return value, end


def _read_string(data: bytes, position: int) -> tuple[str, int]:
    size = data[position]
    position += 1
    if size < 128:
        size = _ZIGZAG[size]
    else:
        size, position = read_long(data, position - 1)
    end = position + size
    value = data[position:end]
    if size < 0 or len(value) != size:
        raise Unreadable("a length that is negative or beyond the end of the data")
    return value.decode(), end


_SCALARS: Mapping[str, Read] = {
    "null": _read_null,
    "boolean": _read_boolean,
    "int": read_int,
    "long": read_long,
    "float": _read_float,
    "double": _read_double,
    "bytes": read_bytes,
    "string": _read_string,
}


def _fixed(size: int) -> Read:
    def read(data: bytes, position: int) -> tuple[bytes, int]:
        end = position + size
        value = data[position:end]
        if len(value) != size:
            raise Unreadable("the data ends too early")
        return value, end

    return read


def _scalar(writer: Node, reader: Node) -> Read:
    read = _fixed(writer.size) if writer.kind == "fixed" else _SCALARS[writer.kind]
    if writer.kind != reader.kind and reader.kind in _PROMOTED:
        read = _converted(read, _PROMOTED[reader.kind])
    logical = logical_between(writer, reader)
    return read if logical is None else _converted(read, logical.from_raw)


def logical_between(writer: Node, reader: Node) -> Logical | None:
    """The logical type by which a raw value is read: the reader's kind of value, in the writer's unit or scale."""
    logical = reader.logical
    if logical is not None and writer.logical is not None and writer.logical.group == logical.group:
        return writer.logical
    return logical


_PROMOTED: Mapping[str, Callable[[Any], Any]] = {
    "float": float,
    "double": float,
    "bytes": str.encode,
    "string": bytes.decode,
}


def _converted(raw: Read, convert: Callable[[Any], Any]) -> Read:
    def read(data: bytes, position: int) -> tuple[Any, int]:
        value, position = raw(data, position)
        return convert(value), position

    return read


def _enum(writer: Node, reader: Node) -> Read:
    fallback = reader.extra.get("default")
    known = frozenset(reader.symbols)
    symbols = tuple(symbol if symbol in known else fallback for symbol in writer.symbols)

    def read(data: bytes, position: int) -> tuple[str, int]:
        index, position = read_long(data, position)
        if not 0 <= index < len(symbols):
            raise Unreadable(f"no symbol of {writer.name} has that index")
        symbol = symbols[index]
        if symbol is None:
            raise Unreadable(f"the reader's {reader.name} has no symbol {writer.symbols[index]} and no default")
        return symbol, position

    return read


# --- containers -----------------------------------------------------------------------------------------------------


def read_block(data: bytes, position: int) -> tuple[int, int]:
    """The count of items in a block of an array or map; the size in bytes that may follow is passed over."""
    count, position = read_long(data, position)
    if count < 0:
        count = -count
        size, position = read_long(data, position)
        if size < 0:
            raise Unreadable("a block with a negative size")
    return count, position


def _array(read_item: Read, weight: int) -> Read:
    def read(data: bytes, position: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        append = items.append
        try:
            while True:
                count = data[position]
                if count == 0:
                    return items, position + 1
                count, position = read_block(data, position)
                if count > len(data) - position:
                    raise Unreadable("more items than the data can hold")
                if weight:
                    data.take(count * weight)  # type: ignore[attr-defined]  # make_whole has made it Counted
                for _ in range(count):
                    item, position = read_item(data, position)
                    append(item)
        except BROKEN as error:
            raise _at(f"[{len(items)}]", error) from error

    return read


def _array_of_nothing(read_item: Read, weight: int) -> Read:
    def read(data: bytes, position: int) -> tuple[list[Any], int]:
        items: list[Any] = []
        while True:
            count, position = read_block(data, position)
            if count == 0:
                return items, position
            data.take(count * weight)  # type: ignore[attr-defined]  # make_whole has made it Counted
            item, _ = read_item(data, position)
            if isinstance(item, dict):  # each is to be one of its own
                items.append(item)
                items += [read_item(data, position)[0] for _ in range(count - 1)]
            else:
                items += [item] * count

    return read


def _map(read_value: Read, weight: int) -> Read:
    def read(data: bytes, position: int) -> tuple[dict[str, Any], int]:
        values: dict[str, Any] = {}
        key = ""
        try:
            while True:
                count, position = read_block(data, position)
                if count == 0:
                    return values, position
                if count > len(data) - position:
                    raise Unreadable("more entries than the data can hold")
                if weight:
                    data.take(count * weight)  # type: ignore[attr-defined]  # make_whole has made it Counted
                for _ in range(count):
                    key, position = _read_string(data, position)
                    values[key], position = read_value(data, position)
        except BROKEN as error:
            raise _at(key_step(key), error) from error

    return read


def _plain_record(fields: tuple[tuple[str, Read], ...]) -> Read:
    def read(data: bytes, position: int) -> tuple[dict[str, Any], int]:
        record = {}
        name = ""
        try:
            for name, read_field in fields:
                record[name], position = read_field(data, position)
        except BROKEN as error:
            raise _at(name, error) from error
        return record, position

    return read


def _resolved_record(
    steps: tuple[tuple[str, Read, bool], ...], defaults: tuple[tuple[str, Any], ...], order: tuple[str, ...]
) -> Read:
    def read(data: bytes, position: int) -> tuple[dict[str, Any], int]:
        found = {}
        name = ""
        try:
            for name, read_field, kept in steps:
                value, position = read_field(data, position)
                if kept:
                    found[name] = value
        except BROKEN as error:
            raise _at(name, error) from error
        for name, default in defaults:
            found[name] = deepcopy(default) if type(default) in (dict, list) else default
        return {name: found[name] for name in order}, position

    return read


def _optional(read_value: Read) -> Read:
    def read(data: bytes, position: int) -> tuple[Any, int]:
        head = data[position]
        if head == 2:
            return read_value(data, position + 1)
        if head == 0:
            return None, position + 1
        raise Unreadable("no such branch: the writer's union has 2")

    return read


def _wide_union(reads: tuple[Read, ...]) -> Read:
    def read(data: bytes, position: int) -> tuple[Any, int]:
        index, position = read_long(data, position)
        if not 0 <= index < len(reads):
            raise Unreadable(f"no such branch: the writer's union has {len(reads)}")
        return reads[index](data, position)

    return read
