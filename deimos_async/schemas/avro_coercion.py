"""Coercion of whole payloads to an Avro schema: a function for each type, made once for a schema.

Conversions of single values are in `coercion`; here they go down into records, arrays, maps and unions, defaults are
filled, unknown fields dropped or refused, and the errors of a payload collected with their paths.

Unions: null is null. A value that fits a branch as it stands goes to that branch; else the first branch in declared
order takes it that it can be coerced to. Inside a union nothing is dropped to make a value fit: unknown fields are
errors there at every depth. A list or a mapping becomes the text of a string branch only if the union has no branch of
its own kind.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

from deimos_async.errors import SchemaError
from deimos_async.schemas.avro_types import Field, Node
from deimos_async.schemas.avro_writing import Write, WriterFactory, exact_branches, exact_key
from deimos_async.schemas.coercion import (
    Unfit,
    as_list,
    as_mapping,
    key_step,
    kind_of,
    to_boolean,
    to_bytes,
    to_float,
    to_integer,
    to_symbol,
    to_text,
    unfit_at,
)
from deimos_async.schemas.protocol import NO_DEFAULT

__all__ = ["Coerce", "CoercionFactory", "default_value"]

Coerce = Callable[[Any], Any]
"""Value -> value that fits; raises `Unfit`. Containers are new, the argument stays as it is."""

_NANOS = frozenset({"timestamp-nanos", "local-timestamp-nanos"})
_CONTAINERS = frozenset({"array", "map", "record"})


def default_value(node: Node, default: Any) -> Any:
    """The Python value of a default as a schema writes it: bytes as text of code points, logical types as raw values.

    Raises:
        Unfit: The default does not fit its type. For a union any branch will do (specification 1.12).
    """
    if node.kind == "union":
        for branch in node.branches:
            try:
                return default_value(branch, default)
            except Unfit:
                pass
        raise Unfit("the default fits no branch of the union")
    if node.kind == "record":
        if not isinstance(default, dict):
            raise Unfit("the default of a record is an object")
        values = {}
        for entry in node.fields:
            given = default.get(entry.name, entry.default)
            if given is NO_DEFAULT:
                raise Unfit(f"the default lacks the field {entry.name}")
            values[entry.name] = default_value(entry.node, given)
        return values
    if node.kind == "array" and isinstance(default, list):
        return [default_value(node.items, item) for item in default]
    if node.kind == "map" and isinstance(default, dict):
        return {key: default_value(node.items, item) for key, item in default.items()}
    if node.kind in ("bytes", "fixed") and isinstance(default, str):
        try:
            default = default.encode("latin-1")
        except UnicodeEncodeError as error:
            raise Unfit("the default of bytes has code points above 255") from error
    if node.logical is not None:
        WriterFactory().make(Node(node.kind, size=node.size))(default, bytearray())
        try:
            return node.logical.from_raw(default)
        except (ValueError, OverflowError) as error:
            raise Unfit(f"the default is no {node.logical.name}") from error
    WriterFactory().make(node)(default, bytearray())
    return float(default) if node.kind in ("float", "double") else default


class CoercionFactory:
    """Makes the coercing function of every node of one schema, each once; recursive types meet themselves again.

    Args:
        writers: Those of the same schema: they know what fits exactly.
        refuse_unknown: Whether fields that the schema lacks are errors everywhere, not only inside unions.
    """

    def __init__(self, writers: WriterFactory, *, refuse_unknown: bool) -> None:
        self._writers = writers
        self._refuse_unknown = refuse_unknown
        self._made: dict[tuple[Node, bool], Coerce] = {}
        self._open: set[tuple[Node, bool]] = set()

    def make(self, node: Node) -> Coerce:
        """The coercing function of a node."""
        return self._make(node, self._refuse_unknown)

    def _make(self, node: Node, strict: bool) -> Coerce:
        key = (node, strict)
        if key in self._made:
            return self._made[key]
        if key in self._open:
            made = self._made
            return lambda value: made[key](value)
        self._open.add(key)
        coerce = self._build(node, strict)
        self._open.discard(key)
        self._made[key] = coerce
        return coerce

    def _build(self, node: Node, strict: bool) -> Coerce:
        if node.kind == "record":
            return self._record(node, strict)
        if node.kind == "array":
            return _array(self._make(node.items, strict))
        if node.kind == "map":
            return _map(self._make(node.items, strict))
        if node.kind == "union":
            return self._union(node)
        if node.logical is not None:
            return node.logical.coerce
        if node.kind in ("int", "long"):
            return _integer(node)
        if node.kind in ("float", "double"):
            bits = 32 if node.kind == "float" else 64
            return lambda value: to_float(value, bits)
        if node.kind == "fixed":
            size = node.size
            return lambda value: to_bytes(value, size)
        if node.kind == "enum":
            symbols = dict.fromkeys(node.symbols)
            return lambda value: to_symbol(value, symbols)
        return _SCALARS[node.kind]

    def _record(self, node: Node, strict: bool) -> Coerce:
        fields = tuple(
            (entry.name, _kept_type(entry.node), self._make(entry.node, strict), _field_default(node, entry))
            for entry in node.fields
        )
        names = frozenset(entry.name for entry in node.fields)
        label = node.name

        def coerce(value: Any) -> Any:
            if type(value) is not dict:
                mapping = as_mapping(value)
                if mapping is None:
                    raise Unfit(f"expected a mapping for {label}, got {kind_of(value)}")
                value = mapping
            fitted = {}
            errors = None
            given = 0
            for name, kept, convert, default in fields:
                if name in value:
                    given += 1
                    item = value[name]
                    if type(item) is kept:
                        fitted[name] = item
                        continue
                    try:
                        fitted[name] = convert(item)
                    except Unfit as error:
                        errors = unfit_at(name, error, errors)
                elif default is NO_DEFAULT:
                    errors = unfit_at(name, Unfit("missing, and the schema has no default"), errors)
                else:
                    # every payload gets its own list or dict: handlers may change them
                    fitted[name] = deepcopy(default) if type(default) in (dict, list) else default
            if strict and given != len(value):
                for name in value:
                    if name not in names:
                        errors = unfit_at(str(name), Unfit(f"{label} has no such field"), errors)
            if errors is not None:
                raise Unfit(errors)
            return fitted

        return coerce

    def _union(self, node: Node) -> Coerce:
        nullable = any(branch.kind == "null" for branch in node.branches)
        names = ", ".join(branch.label for branch in node.branches)
        branches = tuple(branch for branch in node.branches if branch.kind != "null")
        if len(branches) == 1:
            return _optional(self._make(branches[0], True), nullable, names)
        coerces = {index: self._make(branch, True) for index, branch in enumerate(node.branches)}
        writes = {index: self._writers.make(branch) for index, branch in enumerate(node.branches)}
        exact = {
            key: tuple((writes[index], coerces[index]) for index in indexes)
            for key, indexes in exact_branches(node).items()
        }
        kinds = {branch.kind for branch in branches}
        ordered = tuple(
            (coerces[index], branch.kind) for index, branch in enumerate(node.branches) if branch.kind != "null"
        )
        return _choice(exact, ordered, kinds, nullable, names)


def _choice(
    exact: dict[tuple[type, bool], tuple[tuple[Write, Coerce], ...]],
    ordered: tuple[tuple[Coerce, str], ...],
    kinds: set[str],
    nullable: bool,
    names: str,
) -> Coerce:
    takes_mappings = bool(kinds & {"record", "map"})
    takes_lists = "array" in kinds

    def coerce(value: Any) -> Any:
        if value is None:
            if nullable:
                return None
            raise Unfit(f"null, but the union has only {names}")
        if takes_mappings and type(value) is not dict and (mapping := as_mapping(value)) is not None:
            value = dict(mapping)
        key = exact_key(value)
        candidates = exact.get(key, ())
        failed: Unfit | None = None
        for write, convert in candidates:
            try:
                if len(candidates) > 1:
                    write(value, bytearray())
                return convert(value)
            except Unfit as error:
                failed = error
        own_kind = (takes_mappings and key[0] is dict) or (takes_lists and as_list(value) is not None)
        for convert, kind in ordered:
            if own_kind and kind not in _CONTAINERS:
                continue
            try:
                return convert(value)
            except Unfit as error:
                if own_kind and len(candidates) < 2:
                    failed = error if failed is None else failed
        errors = [("", f"{kind_of(value)} fits none of {names}")]
        if failed is not None and len(candidates) < 2:
            errors.extend(failed.errors)
        raise Unfit(errors)

    return coerce


def _optional(convert: Coerce, nullable: bool, names: str) -> Coerce:
    def coerce(value: Any) -> Any:
        if value is not None:
            return convert(value)
        if nullable:
            return None
        raise Unfit(f"null, but the union has only {names}")

    return coerce


def _integer(node: Node) -> Coerce:
    bits = 32 if node.kind == "int" else 64
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    nanos = node.kind == "long" and node.extra.get("logicalType") in _NANOS
    per_second = 1_000_000_000 if nanos else 1

    def coerce(value: Any) -> int:
        if type(value) is int and low <= value <= high:
            return value
        return to_integer(value, bits, per_second=per_second)

    return coerce


def _array(convert: Coerce) -> Coerce:
    def coerce(value: Any) -> list[Any]:
        items = as_list(value)
        if items is None:
            raise Unfit(f"expected a list, got {kind_of(value)}")
        try:
            return [convert(item) for item in items]
        except Unfit:
            # told again with all errors and their indexes; the usual way does not pay for counting
            errors = None
            for index, item in enumerate(items):
                try:
                    convert(item)
                except Unfit as error:
                    errors = unfit_at(index, error, errors)
            raise Unfit(errors or []) from None

    return coerce


def _map(convert: Coerce) -> Coerce:
    def coerce(value: Any) -> dict[str, Any]:
        mapping = as_mapping(value)
        if mapping is None:
            raise Unfit(f"expected a mapping, got {kind_of(value)}")
        fitted = {}
        errors = None
        for key, item in mapping.items():
            if not isinstance(key, str):
                errors = unfit_at(key_step(key), Unfit(f"keys of maps are text, not {kind_of(key)}"), errors)
                continue
            try:
                fitted[to_text(key)] = convert(item)
            except Unfit as error:
                errors = unfit_at(key_step(key), error, errors)
        if errors is not None:
            raise Unfit(errors)
        return fitted

    return coerce


def _null(value: Any) -> None:
    if value is not None:
        raise Unfit(f"expected null, got {kind_of(value)}")


_SCALARS: dict[str, Coerce] = {"null": _null, "boolean": to_boolean, "string": to_text, "bytes": to_bytes}
_KEPT = {"boolean": bool, "double": float, "bytes": bytes, "string": str}


def _kept_type(node: Node) -> type | None:
    """A type whose values need no look at all, so that most fields cost no call."""
    only = [branch for branch in node.branches if branch.kind != "null"] or [node]
    return _KEPT.get(only[0].kind) if len(only) == 1 and only[0].logical is None else None


def _field_default(record: Node, entry: Field) -> Any:
    if entry.default is NO_DEFAULT:
        return NO_DEFAULT
    try:
        return default_value(entry.node, entry.default)
    except Unfit as error:
        path, problem = error.errors[0]
        raise SchemaError(
            f"schema {record.name}: default of field {entry.name}{f' at {path}' if path else ''}: {problem}"
        ) from error
