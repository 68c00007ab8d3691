"""The quick way through a schema: a function written as Python source, once for each pair of schemas.

It does what the functions of `avro_reading` and `avro_writing` do, for what messages usually are, without a call for
each field; whatever it does not know by itself it leaves to those functions. It never says what is wrong: at anything
unusual it gives up, and the caller goes the long way, which decides and explains. So both ways agree by construction on
what is refused, and a message that is refused costs both.

Names of a schema come from elsewhere: in the source they stand as literals only, and everything else by a name of ours.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from deimos_async.schemas.avro_reading import (
    BROKEN,
    Counted,
    ReaderFactory,
    logical_between,
    matches,
    read_block,
    read_int,
    read_long,
    record_plan,
)
from deimos_async.schemas.avro_types import Node
from deimos_async.schemas.avro_writing import WriterFactory, put_long
from deimos_async.schemas.coercion import Unfit

__all__ = ["read_source", "write_source"]

_MOST_LINES = 2_000
_MOST_CHARACTERS = 100_000
"""A larger function is not made: compiling it holds up everything else, and names may be long."""
_MOST_DEPTH = 8
"""Records and arrays deeper than that are left to a function of their own; Python bounds how deep blocks may nest."""


class _Missed(Exception):
    """Something that is left to the long way. Raised by its class: an instance would gather tracebacks."""


_MISSED = (_Missed, *BROKEN, Unfit, KeyError, TypeError, AttributeError, RecursionError)
"""What the source raises, or lets be raised, for all that it leaves to the long way."""


class _TooLarge(Exception):
    """The function would have more lines than pay."""


class _Source:
    """Lines of a function in the making, and the objects that they name."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"M": _Missed, "MISSED": _MISSED}
        self._count = 0
        self._room = _MOST_CHARACTERS

    def add(self, depth: int, *lines: str) -> None:
        """Lines inside of so many blocks; what a line is indented by itself is kept."""
        self._room -= sum(map(len, lines))
        if len(self.lines) + len(lines) > _MOST_LINES or self._room < 0:
            raise _TooLarge
        self.lines += ["    " * depth + line for line in lines]

    def fresh(self) -> str:
        """A name for a variable that is not used elsewhere."""
        self._count += 1
        return f"v{self._count}"

    def constant(self, value: Any) -> str:
        """A name for an object."""
        name = f"K{len(self.names)}"
        self.names[name] = value
        return name

    def function(self) -> Callable[..., Any]:
        namespace = dict(self.names)
        code = compile("\n".join(self.lines), "<avro schema>", "exec")
        exec(code, namespace)  # noqa: S102  # lines of this module; of the schema there are literals only
        made: Callable[..., Any] = namespace["made"]
        return made


# --- reading --------------------------------------------------------------------------------------------------------


def read_source(
    factory: ReaderFactory, writer: Node, reader: Node, otherwise: Callable[[bytes, int], Any]
) -> Callable[[bytes, int], Any] | None:
    """A function that reads whole messages which `writer` wrote as values of `reader`, or None if it would not pay.

    Args:
        factory: Has made the functions of the long way for the same pair of schemas.
        otherwise: The long way: (data, offset) -> value, up to the end of the data.
    """
    if reader.kind != "record":
        return None
    source = _Source()
    source.names |= {
        "otherwise": otherwise,
        "read_long": read_long,
        "read_int": read_int,
        "read_block": read_block,
        "double": struct.Struct("<d").unpack_from,
        "float_": struct.Struct("<f").unpack_from,
        "zigzag": tuple((byte >> 1) ^ -(byte & 1) for byte in range(128)),
    }
    source.add(0, "def made(d, p=0):")
    source.add(1, "start = p", "try:")
    source.add(2, "end = len(d)")
    if factory.has_counted:
        source.names["Counted"] = Counted
        source.add(2, "d = Counted(d)")
    try:
        value = _Reading(source, factory).expression(writer, reader, 2, ())
        source.add(2, "if p == end:", f"    return {value}")
        source.add(1, "except MISSED:", "    pass", "return otherwise(d, start)")
        return source.function()
    except (_TooLarge, RecursionError):
        return None


class _Reading:
    """Writes the lines that read a value. `d` is the data, `p` the position, `end` the length of the data."""

    def __init__(self, source: _Source, factory: ReaderFactory) -> None:
        self._source = source
        self._factory = factory

    def expression(self, writer: Node, reader: Node, depth: int, open_: tuple[Node, ...]) -> str:
        """The name of a variable that holds the value after the lines that this adds."""
        source = self._source
        if writer.kind == "union":
            return self._union(writer, reader, depth, open_)
        if writer.kind == reader.kind and depth < _MOST_DEPTH and matches(writer, reader):
            if writer.kind == "record" and writer not in open_:
                return self._record(writer, reader, depth, (*open_, writer))
            if writer.kind == "array" and not self._factory.takes_no_bytes(writer.items):
                return self._array(writer, reader, depth, open_)
            if writer.kind == "enum" and len(writer.symbols) <= 64:
                return self._enum(writer, reader, depth)
            if writer.kind in _READ:
                value = source.fresh()
                source.add(depth, *(line.format(v=value) for line in _READ[writer.kind]))
                if logical := logical_between(writer, reader):
                    source.add(depth, f"{value} = {source.constant(logical.from_raw)}({value})")
                return value
        value = source.fresh()
        source.add(depth, f"{value}, p = {source.constant(self._factory.make(writer, reader))}(d, p)")
        return value

    def _union(self, writer: Node, reader: Node, depth: int, open_: tuple[Node, ...]) -> str:
        source, value = self._source, self._source.fresh()
        kinds = [branch.kind for branch in writer.branches]
        if len(kinds) != 2 or "null" not in kinds or writer is not reader or depth >= _MOST_DEPTH:
            source.add(depth, f"{value}, p = {source.constant(self._factory.make(writer, reader))}(d, p)")
            return value
        null = kinds.index("null")
        branch = writer.branches[1 - null]
        source.add(depth, "b = d[p]", "p += 1", f"if b == {2 - 2 * null}:")
        source.add(depth + 1, f"{value} = {self.expression(branch, branch, depth + 1, open_)}")
        source.add(depth, f"elif b == {2 * null}:", f"    {value} = None", "else:", "    raise M")
        return value

    def _record(self, writer: Node, reader: Node, depth: int, open_: tuple[Node, ...]) -> str:
        source = self._source
        plan = record_plan(writer, reader)
        value = source.fresh()
        if isinstance(plan, str) or any(type(default) in (dict, list) for _, default in plan.defaults):
            source.add(depth, f"{value}, p = {source.constant(self._factory.make(writer, reader))}(d, p)")
            return value
        found = {name: source.constant(default) for name, default in plan.defaults}
        for step in plan.steps:
            read = self.expression(step.writer, step.reader or step.writer, depth, open_)
            if step.reader is not None:
                found[step.name] = read
        fields = ", ".join(f"{name!r}: {found[name]}" for name in plan.order)
        source.add(depth, f"{value} = {{{fields}}}")
        return value

    def _array(self, writer: Node, reader: Node, depth: int, open_: tuple[Node, ...]) -> str:
        source = self._source
        value, add, count = source.fresh(), source.fresh(), source.fresh()
        source.add(depth, f"{value} = []", f"{add} = {value}.append", "while True:")
        source.add(
            depth + 1,
            f"{count} = d[p]",
            f"if {count} == 0:",
            "    p += 1",
            "    break",
            f"{count}, p = read_block(d, p)",
            f"if {count} > end - p:",
            "    raise M",
        )
        if weight := self._factory.item_weight(writer, reader):
            source.add(depth + 1, f"d.take({count} * {weight})")
        source.add(depth + 1, f"for _ in range({count}):")
        source.add(depth + 2, f"{add}({self.expression(writer.items, reader.items, depth + 2, open_)})")
        return value

    def _enum(self, writer: Node, reader: Node, depth: int) -> str:
        source, value = self._source, self._source.fresh()
        known, default = frozenset(reader.symbols), reader.extra.get("default")
        # by the byte: odd ones are negative
        by_byte: list[str | None] = []
        for symbol in writer.symbols:
            by_byte += [symbol if symbol in known else default, None]
        source.add(depth, f"{value} = {source.constant(tuple(by_byte))}[d[p]]", "p += 1")
        source.add(depth, f"if {value} is None:", "    raise M")
        return value


_SIZE = (
    "{v} = d[p]",
    "p += 1",
    "if {v} & 129:",
    "    {v}, p = read_long(d, p - 1)",
    "    if {v} < 0:",
    "        raise M",
    "    e = p + {v}",
    "else:",
    "    e = p + ({v} >> 1)",
    "if e > end:",
    "    raise M",
)
_READ = {
    "null": ("{v} = None",),
    "boolean": ("{v} = d[p]", "p += 1", "if {v} > 1:", "    raise M", "{v} = {v} == 1"),
    "int": ("{v} = d[p]", "if {v} < 128:", "    {v} = zigzag[{v}]; p += 1", "else:", "    {v}, p = read_int(d, p)"),
    "long": ("{v} = d[p]", "if {v} < 128:", "    {v} = zigzag[{v}]; p += 1", "else:", "    {v}, p = read_long(d, p)"),
    "float": ("{v}, = float_(d, p)", "p += 4"),
    "double": ("{v}, = double(d, p)", "p += 8"),
    "bytes": (*_SIZE, "{v} = d[p:e]", "p = e"),
    "string": (*_SIZE, "{v} = d[p:e].decode()", "p = e"),
}


# --- writing --------------------------------------------------------------------------------------------------------


def write_source(
    factory: WriterFactory, node: Node, otherwise: Callable[[Any], bytes]
) -> Callable[[Any], bytes] | None:
    """A function that encodes a value, or None if it would not pay.

    Args:
        factory: Has made the functions of the long way for the same schema.
        otherwise: The long way.
    """
    if node.kind != "record":
        return None
    source = _Source()
    source.names |= {
        "otherwise": otherwise,
        "put_long": put_long,
        "double": struct.Struct("<d").pack,
        "float_": struct.Struct("<f").pack,
    }
    source.add(0, "def made(whole):")
    source.add(1, "out = bytearray()", "put = out.append", "try:")
    try:
        _Writing(source, factory).lines(node, "whole", 2, ())
        source.add(2, "return bytes(out)")
        source.add(1, "except MISSED:", "    pass", "return otherwise(whole)")
        return source.function()
    except (_TooLarge, RecursionError):
        return None


class _Writing:
    """Writes the lines that append a value to `out`; `put` appends one byte."""

    def __init__(self, source: _Source, factory: WriterFactory) -> None:
        self._source = source
        self._factory = factory

    def lines(self, node: Node, value: str, depth: int, open_: tuple[Node, ...]) -> None:
        """Add the lines that write the value of that name."""
        source = self._source
        if depth < _MOST_DEPTH:
            if node.kind == "record" and node not in open_:
                return self._record(node, value, depth, (*open_, node))
            if node.kind == "array":
                return self._array(node, value, depth, open_)
            if node.kind == "union" and len(node.branches) == 2 and "null" in [each.kind for each in node.branches]:
                return self._optional(node, value, depth, open_)
            if node.kind == "enum" and len(node.symbols) <= 64:
                indexes = source.constant({symbol: index << 1 for index, symbol in enumerate(node.symbols)})
                return source.add(depth, f"if not isinstance({value}, str):", "    raise M", f"put({indexes}[{value}])")
            if node.kind in _WRITE:
                raw = value
                if node.logical is not None:
                    raw = source.fresh()
                    source.add(depth, f"{raw} = {source.constant(node.logical.to_raw)}({value})")
                return source.add(depth, *(line.format(v=raw) for line in _WRITE[node.kind]))
        return source.add(depth, f"{source.constant(self._factory.make(node))}({value}, out)")

    def _record(self, node: Node, value: str, depth: int, open_: tuple[Node, ...]) -> None:
        source = self._source
        source.add(depth, f"if type({value}) is not dict or len({value}) != {len(node.fields)}:", "    raise M")
        for entry in node.fields:
            part = source.fresh()
            source.add(depth, f"{part} = {value}[{entry.name!r}]")
            self.lines(entry.node, part, depth, open_)

    def _array(self, node: Node, value: str, depth: int, open_: tuple[Node, ...]) -> None:
        source, item = self._source, self._source.fresh()
        source.add(
            depth,
            f"if type({value}) is not list:",
            "    raise M",
            f"if {value}:",
            f"    e = len({value})",
            "    if e < 64:",
            "        put(e << 1)",
            "    else:",
            "        put_long(out, e)",
            f"    for {item} in {value}:",
        )
        self.lines(node.items, item, depth + 2, open_)
        source.add(depth, "put(0)")

    def _optional(self, node: Node, value: str, depth: int, open_: tuple[Node, ...]) -> None:
        source = self._source
        null = [branch.kind for branch in node.branches].index("null")
        source.add(depth, f"if {value} is None:", f"    put({2 * null})", "else:", f"    put({2 - 2 * null})")
        self.lines(node.branches[1 - null], value, depth + 1, open_)


_NUMBER = (
    "if type({v}) is not int:",
    "    raise M",
    "e = ({v} << 1) ^ ({v} >> 63)",
    "if e < 128:",
    "    put(e)",
)
_LONGER = ("    while e > 127:", "        put(e & 127 | 128)", "        e >>= 7", "    put(e)")
_NEXT = (
    "e = len({v})",
    "if e < 64:",
    "    put(e << 1)",
    "else:",
    "    put_long(out, e)",
    "out += {v}",
)
_WRITE = {
    "null": ("if {v} is not None:", "    raise M"),
    "boolean": ("if type({v}) is not bool:", "    raise M", "put({v})"),
    "int": (*_NUMBER, "elif -0x8000_0000 <= {v} <= 0x7FFF_FFFF:", *_LONGER, "else:", "    raise M"),
    "long": (
        *_NUMBER,
        "elif -0x8000_0000_0000_0000 <= {v} <= 0x7FFF_FFFF_FFFF_FFFF:",
        *_LONGER,
        "else:",
        "    raise M",
    ),
    "float": ("if type({v}) is not float and type({v}) is not int:", "    raise M", "out += float_({v})"),
    "double": ("if type({v}) is not float and type({v}) is not int:", "    raise M", "out += double({v})"),
    "bytes": ("if type({v}) is not bytes:", "    raise M", *_NEXT),
    "string": ("if type({v}) is not str:", "    raise M", "{v} = {v}.encode()", *_NEXT),
}
