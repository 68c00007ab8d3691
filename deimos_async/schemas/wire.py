"""The Confluent wire format: which registered schema wrote these bytes.

Byte 0 is zero, bytes 1 to 4 are the schema's id in the registry (big-endian), the rest is the body.
Source: Confluent Schema Registry documentation, "Wire format".
"""

from __future__ import annotations

import struct

from deimos_async.errors import DecodeError

__all__ = ["FRAME_BYTES", "frame", "frame_prefix", "schema_id"]

FRAME_BYTES = 5
"""Length of what stands before the body."""

_MAGIC = 0
_LARGEST_ID = 2**31 - 1
_PREFIX = struct.Struct(">bi")


def frame_prefix(id: int) -> bytes:
    """The 5 bytes before each body written with that schema; made once and kept.

    Raises:
        ValueError: Not an id: registries count from 1, in 32 bits with a sign.
    """
    if not 0 < id <= _LARGEST_ID:
        raise ValueError(f"schema ids are between 1 and {_LARGEST_ID}, not {id}")
    return _PREFIX.pack(_MAGIC, id)


def frame(id: int, body: bytes) -> bytes:
    """A body in the wire format. Raises ValueError as `frame_prefix`."""
    return frame_prefix(id) + body


def schema_id(data: bytes) -> int:
    """Id of the schema that wrote these bytes.

    Raises:
        DecodeError: Too short, another first byte than zero (it is shown), or an id that no registry gives.
    """
    if len(data) < FRAME_BYTES:
        raise DecodeError(
            f"{len(data)} bytes are too short for the registry's wire format, which begins with {FRAME_BYTES} bytes"
        )
    magic, id = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise DecodeError(
            f"the first byte is 0x{data[0]:02x}, not 0x00: the bytes are not in the registry's wire format "
            "(were they written by another schema backend?)"
        )
    if id <= 0:
        raise DecodeError(f"schema id {id} in the bytes is not one of a registry, ids count from 1")
    return int(id)
