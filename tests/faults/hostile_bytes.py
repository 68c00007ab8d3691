"""Decodes hostile bytes with one backend and prints what came of it. Run by `test_hostile_bytes.py`."""

from __future__ import annotations

import asyncio
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deimos_async import DecodeError, Deimos, EncodeError, Key

SCHEMAS: dict[str, Any] = {
    "Order": {
        "fields": [
            {"name": "id", "type": "long"},
            {"name": "name", "type": ["null", "string"], "default": None},
            {"name": "data", "type": "bytes", "default": ""},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 8, "scale": 2}},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "uid", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "tags", "type": {"type": "array", "items": "string"}},
            {"name": "labels", "type": {"type": "map", "values": "double"}},
            {"name": "state", "type": {"type": "enum", "name": "State", "symbols": ["A", "B"]}},
            {"name": "raw", "type": {"type": "fixed", "name": "Raw", "size": 4}},
        ],
    },
    "Tree": {
        "fields": [
            {"name": "value", "type": "int"},
            {"name": "children", "type": {"type": "array", "items": "com.acme.Tree"}},
            {"name": "next", "type": ["null", "com.acme.Tree"]},
        ],
    },
    "Nothings": {"fields": [{"name": "items", "type": {"type": "array", "items": "null"}}]},
}


def payload(name: str, draw: random.Random, depth: int = 0) -> Any:
    match name:
        case "Order":
            return {
                "id": draw.getrandbits(63),
                "name": draw.choice([None, "x" * draw.randint(0, 40)]),
                "data": draw.randbytes(draw.randint(0, 30)),
                "price": str(draw.randint(0, 10**6) / 100),
                "at": draw.randint(0, 2**50),
                "day": draw.randint(0, 30_000),
                "uid": "12345678-1234-5678-1234-567812345678",
                "tags": ["t" * draw.randint(0, 9) for _ in range(draw.randint(0, 5))],
                "labels": {str(n): draw.random() for n in range(draw.randint(0, 4))},
                "state": draw.choice("AB"),
                "raw": draw.randbytes(4),
            }
        case "Tree":
            children = [] if depth > 3 else [payload(name, draw, depth + 1) for _ in range(draw.randint(0, 2))]
            return {"value": draw.randint(-5, 5), "children": children, "next": None}
        case _:
            return {"items": [None] * draw.randint(0, 9)}


def hostile(good: list[bytes], draw: random.Random, count: int) -> Iterator[bytes]:
    """Endless variations, and the bombs that are known by name."""
    yield b""
    yield b"\x00" * 5
    frame = good[0][:5]
    for body in (
        b"\xff" * 9 + b"\x01",  # the largest varint
        b"\x80" * 100_000,  # one that never ends
        b"\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01" * 2,
        b"\x80\x89\x7a",  # an array of a million items in a few bytes
        b"\x01\x80\x89\x7a",  # a block with a negative count
        b"\x02\x02" * 5_000,  # a tree of five thousand levels
        b"\x00\x02" * 50_000,
        b"\x00\x00\x02" * 5_000,
    ):
        yield body
        yield frame + body
    for _ in range(count):
        data = bytearray(draw.choice(good))
        match draw.randrange(6):
            case 0:
                yield draw.randbytes(draw.randint(0, 200))
            case 1:
                yield frame + draw.randbytes(draw.randint(0, 200))
            case 2:
                yield bytes(data[: draw.randint(0, len(data))])
            case 3:
                for _ in range(draw.randint(1, 8)):
                    if data:
                        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
                yield bytes(data)
            case 4:
                yield bytes(data) + draw.randbytes(draw.randint(1, 20))
            case _:
                if len(data) > 6:
                    at = draw.randrange(5, len(data))
                    data[at:at] = b"\xff" * draw.randint(1, 10)
                yield bytes(data)


async def main(backend: str, count: int) -> None:
    draw = random.Random(20261124)
    folder = Path(tempfile.mkdtemp())
    (folder / "com/acme").mkdir(parents=True)
    for name, body in SCHEMAS.items():
        schema = {"type": "record", "name": name, "namespace": "com.acme", **body}
        (folder / f"com/acme/{name}.avsc").write_text(json.dumps(schema))
    app = Deimos({"embedded": True, "schema.path": str(folder), "schema.backend": backend}, metrics=None, tracing=None)
    uses_files = backend.startswith("avro")
    codecs = {}
    good: dict[str, list[bytes]] = {}
    for name in SCHEMAS:
        options: dict[str, Any] = {"schema": f"com.acme.{name}"} if uses_files else {"schema_backend": backend}
        codec = codecs[name] = app.codec(app.topic(name.lower(), key=Key.none(), **options))
        good[name] = []
        for _ in range(50):
            value = payload(name, draw) if uses_files else str(draw.random())
            data = await codec.encode_payload(value)
            assert data is not None
            good[name].append(data)
    counts = {"messages": 0, "decoded": 0, "refused": 0}
    slowest = 0.0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for name, codec in codecs.items():
        decode = codec.decode_payload
        for data in hostile(good[name], draw, count // len(codecs) + 1):
            began = time.thread_time()
            try:
                await decode(data)
                counts["decoded"] += 1
            except (DecodeError, EncodeError):
                counts["refused"] += 1
            slowest = max(slowest, time.thread_time() - began)
            counts["messages"] += 1
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    print(json.dumps(counts | {"slowest": slowest, "grown": grown}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
