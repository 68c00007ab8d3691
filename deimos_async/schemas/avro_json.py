"""Avro values as JSON that a reader can follow, and back to the same Python values.

The backend `avro_validation` carries payloads in this form. Records are objects, and what JSON has itself is itself.
Bytes and fixed are text of code points below 256, as in Avro's own JSON encoding; logical types are text: ISO dates and
times, decimals in digits, UUIDs. Floats that JSON lacks are `"NaN"`, `"Infinity"`, `"-Infinity"`. A union with one
branch besides null is written bare, another one as `{"branch": value}`, since JSON alone would not tell its branches
apart.
"""

from __future__ import annotations

import json
import math
from typing import Any

from deimos_async.errors import DecodeError
from deimos_async.schemas.avro_coercion import default_value
from deimos_async.schemas.avro_compiled import TOO_DEEP, CompiledAvro, Decoder
from deimos_async.schemas.avro_reading import read_long
from deimos_async.schemas.avro_types import Node
from deimos_async.schemas.avro_writing import WriterFactory
from deimos_async.schemas.coercion import Unfit, as_mapping, key_step, kind_of, unfit_at
from deimos_async.schemas.protocol import NO_DEFAULT, CompiledSchema

__all__ = ["CompiledAvroJson"]

_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class _JsonForm:
    """The mapping of one schema. Both functions walk the schema: this is for tests, not for the path of a message.

    Args:
        writers: The same schema's; they tell which branch of a union a value fits.
    """

    def __init__(self, writers: WriterFactory) -> None:
        self._writers = writers

    def dump(self, node: Node, value: Any) -> Any:
        """JSON form of a value that was written without error, so that nothing is checked again."""
        if value is None:
            return None
        if node.kind == "union":
            return self._dump_union(node, value)
        if node.kind == "record":
            mapping = as_mapping(value) or {}
            return {entry.name: self.dump(entry.node, mapping[entry.name]) for entry in node.fields}
        if node.kind == "array":
            return [self.dump(node.items, item) for item in value]
        if node.kind == "map":
            return {str.__str__(key): self.dump(node.items, item) for key, item in value.items()}
        if node.logical is not None:
            return node.logical.to_json(node.logical.coerce(value))
        if node.kind in ("bytes", "fixed"):
            return value.decode("latin-1")
        if node.kind in ("float", "double"):
            number = float(value)
            return number if math.isfinite(number) else str(number).replace("inf", "Infinity").replace("nan", "NaN")
        if node.kind in ("int", "long"):
            return int(value)
        return str.__str__(value) if isinstance(value, str) else value

    def _dump_union(self, node: Node, value: Any) -> Any:
        branches = [branch for branch in node.branches if branch.kind != "null"]
        if len(branches) == 1:
            return self.dump(branches[0], value)
        written = bytearray()
        self._writers.make(node)(value, written)
        branch = node.branches[read_long(bytes(written), 0)[0]]
        return {branch.name or branch.kind: self.dump(branch, value)}

    def load(self, node: Node, form: Any) -> Any:
        """The value of a JSON form. Fields that the schema lacks are ignored, absent ones take their defaults.

        Raises:
            Unfit: The form is not one of this schema's.
        """
        if node.kind == "union":
            return self._load_union(node, form)
        if node.kind == "record":
            if not isinstance(form, dict):
                raise Unfit(f"expected an object for {node.name}, got {kind_of(form)}")
            return self._load_fields(node, form)
        if node.kind == "array" and isinstance(form, list):
            return self._load_all(node.items, list(enumerate(form)))
        if node.kind == "map" and isinstance(form, dict):
            values = self._load_all(node.items, [(key_step(key), item) for key, item in form.items()])
            return dict(zip(form, values, strict=True))
        if node.logical is not None:
            if not isinstance(form, str):
                raise Unfit(f"expected text of a {node.logical.name}, got {kind_of(form)}")
            return node.logical.coerce(form)
        if node.kind in ("float", "double") and isinstance(form, str) and form in _NOT_FINITE:
            return _NOT_FINITE[form]
        if node.kind in ("bytes", "fixed") and isinstance(form, str):
            try:
                form = form.encode("latin-1")
            except UnicodeEncodeError as error:
                raise Unfit("bytes are text of code points below 256") from error
        self._writers.make(node)(form, bytearray())
        return float(form) if node.kind in ("float", "double") else form

    def _load_union(self, node: Node, form: Any) -> Any:
        branches = {branch.name or branch.kind: branch for branch in node.branches if branch.kind != "null"}
        if form is None and len(branches) < len(node.branches):
            return None
        if len(branches) == 1:
            return self.load(next(iter(branches.values())), form)
        if isinstance(form, dict) and len(form) == 1:
            ((name, value),) = form.items()
            if name in branches:
                return self.load(branches[name], value)
        raise Unfit(f'expected {{"branch": value}} with a branch of {", ".join(branches)}')

    def _load_fields(self, node: Node, form: dict[str, Any]) -> dict[str, Any]:
        values = {}
        errors = None
        for entry in node.fields:
            try:
                if entry.name in form:
                    values[entry.name] = self.load(entry.node, form[entry.name])
                elif entry.default is NO_DEFAULT:
                    raise Unfit("missing, and the schema has no default")
                else:
                    values[entry.name] = default_value(entry.node, entry.default)
            except Unfit as error:
                errors = unfit_at(entry.name, error, errors)
        if errors is not None:
            raise Unfit(errors)
        return values

    def _load_all(self, node: Node, steps: list[tuple[str, Any]] | list[tuple[int, Any]]) -> list[Any]:
        values = []
        errors = None
        for step, form in steps:
            try:
                values.append(self.load(node, form))
            except Unfit as error:
                errors = unfit_at(step, error, errors)
        if errors is not None:
            raise Unfit(errors)
        return values


class CompiledAvroJson(CompiledAvro):
    """The same schema, carried as JSON text in the form that this module describes; no writer's schema is needed."""

    def __init__(self, node: Node, *, unknown_fields: str) -> None:
        super().__init__(node, unknown_fields=unknown_fields)
        self._form = _JsonForm(self._writers)

    def encode(self, payload: Any) -> bytes:
        """Compact JSON of a payload, which is validated first. Raises EncodeError."""
        self._binary(payload)
        form = self._form.dump(self.node, payload)
        return json.dumps(form, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()

    def decoder(self, writer: CompiledSchema | None = None) -> Decoder:
        """`decode`; absent fields take their defaults, unknown ones are ignored, and `writer` is not looked at."""
        return self._decode_json

    def _decode_json(self, data: bytes, offset: int) -> Any:
        full_name = self.full_name or None
        try:
            return self._form.load(self.node, json.loads(data[offset:]))
        except Unfit as error:
            raise DecodeError(error.field_errors(), schema=full_name) from None
        except ValueError as error:
            raise DecodeError(f"not JSON: {type(error).__name__}", schema=full_name) from error
        except RecursionError as error:
            raise DecodeError(TOO_DEEP, schema=full_name) from error
