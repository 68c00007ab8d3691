"""Avro's object container files as messages: each carries its schema."""

from __future__ import annotations

import zlib
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from deimos_async.errors import DecodeError, SchemaError
from deimos_async.schemas.avro_compiled import CompiledAvro, Decoder, compile_avro, unreadable
from deimos_async.schemas.avro_reading import BROKEN, ReaderFactory, Unreadable, read_bytes, read_long
from deimos_async.schemas.avro_types import Node, parse_schema
from deimos_async.schemas.avro_writing import WriterFactory, put_long
from deimos_async.schemas.protocol import CompiledSchema

__all__ = ["CompiledAvroContainer"]

_MAGIC = b"Obj\x01"
_HEADER = parse_schema('{"type": "map", "values": "bytes"}')
_SYNC_BYTES = 16
_MOST_INFLATED_BYTES = 64 * 1024 * 1024


class CompiledAvroContainer(CompiledAvro):
    """The same schema, in object container files of one record, written without compression.

    Files of other programs are read, too, also deflated ones; of several records the first is the message.
    Source: Apache Avro specification 1.12, "Object Container Files".
    """

    def __init__(self, node: Node, *, unknown_fields: str) -> None:
        super().__init__(node, unknown_fields=unknown_fields)
        header = bytearray(_MAGIC)
        metadata = {"avro.codec": b"null", "avro.schema": self.text.encode()}
        WriterFactory().make(_HEADER)(metadata, header)
        self._header = bytes(header)
        self._read_metadata = ReaderFactory().make(_HEADER, _HEADER)
        self._by_schema = lru_cache(maxsize=64)(self._decoders_of_text)

    def encode(self, payload: Any) -> bytes:
        """A container file with the payload as its only record. Raises EncodeError."""
        body = self._binary(payload)
        out = bytearray(self._header)
        # Any 16 bytes will do that the body is unlikely to hold; made from it, encoding is a function of its argument.
        sync = blake2b(body, digest_size=_SYNC_BYTES).digest()
        out += sync
        put_long(out, 1)
        put_long(out, len(body))
        out += body
        out += sync
        return bytes(out)

    def decoder(self, writer: CompiledSchema | None = None) -> Decoder:
        """`decode`; the writer's schema is the one in the file, and `writer` is not looked at."""
        return self._decode_file

    def _decoders_of_text(self, text: bytes) -> tuple[Decoder, Decoder]:
        try:
            source = compile_avro(CompiledAvro, text.decode(), {}, "drop")
        except (SchemaError, ValueError) as error:
            raise DecodeError(
                f"the schema in the file cannot be used: {error}", schema=self.full_name or None
            ) from error
        read = self._reading(source, ReaderFactory())
        return self._decoding(read), self._decoding(read, to_end=False)

    def _decode_file(self, data: bytes, offset: int) -> Any:
        full_name = self.full_name or None
        try:
            if data[offset : offset + 4] != _MAGIC:
                raise Unreadable("no object container file: it does not start with 'Obj' and 1")
            metadata, position = self._read_metadata(data, offset + 4)
            sync, position = data[position : position + _SYNC_BYTES], position + _SYNC_BYTES
            codec = metadata.get("avro.codec", b"null")
            if codec not in (b"null", b"deflate"):
                raise Unreadable(f"the file's codec {codec[:20]!r} is not supported, only null and deflate are")
            first: tuple[int, bytes] | None = None
            while position < len(data):
                count, position = read_long(data, position)
                block, position = read_bytes(data, position)
                if data[position : position + _SYNC_BYTES] != sync or count < 0:
                    raise Unreadable("a block of the file does not end with its mark")
                position += _SYNC_BYTES
                first = first or ((count, block) if count else None)
            if first is None:
                raise Unreadable("the file has no record")
        except BROKEN as error:
            raise unreadable(error, full_name) from error
        whole, beginning = self._by_schema(metadata.get("avro.schema", b""))
        count, block = first
        return (whole if count == 1 else beginning)(_inflated(block, full_name) if codec == b"deflate" else block, 0)


def _inflated(block: bytes, full_name: str | None) -> bytes:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        data = inflate.decompress(block, _MOST_INFLATED_BYTES)
    except zlib.error as error:
        raise DecodeError("a block of the file cannot be inflated", schema=full_name) from error
    if not inflate.eof:
        raise DecodeError(
            f"a block of the file ends too early, or has more than {_MOST_INFLATED_BYTES} bytes", schema=full_name
        )
    return data
