"""Floods of headers and a compression bomb through a consumer on Kafka, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).with_name("hostile_records.py")
DEADLINE = 240.0
IS_CHAOS = bool(os.environ.get("DEIMOS_CHAOS"))
MEGABYTE = 1 << 20

pytestmark = pytest.mark.services("kafka")


async def run(*arguments: str) -> Any:
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(PROGRAM), *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DEADLINE):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-3000:]
    return json.loads(out)


@pytest.mark.parametrize(
    ("kind", "added"),
    [("ten thousand", 9), ("megabyte in one", 0), ("megabyte of many", 0), ("half a million", 0)],
)
async def test_flood_of_headers_becomes_a_dead_letter_with_all_of_them(
    kind: str, added: int, kafka_bootstrap: str, unique_name: str
) -> None:
    await run("write", kafka_bootstrap, f"{unique_name}.", kind)
    seen = await run("read", kafka_bootstrap, f"{unique_name}.", kind)
    # As large as the topic takes: then without headers of ours, and still not too large.
    assert seen["letters"] == [[True, added]] * seen["expected"]
    assert seen["committed"] == seen["expected"] == seen["seen"]
    assert seen["grown"] < 384 * MEGABYTE, "memory is not bounded"
    if kind == "half a million":
        assert seen["held"] < 10, "of headers with neither name nor value, a megabyte takes its time"
    else:
        assert seen["held"] < (0.1 if IS_CHAOS else 1.0), "a message held the loop too long"


async def test_compression_bomb_is_read_whole_and_ends(kafka_bootstrap: str, unique_name: str) -> None:
    await run("write", kafka_bootstrap, f"{unique_name}.", "bomb")
    seen = await run("read", kafka_bootstrap, f"{unique_name}.", "bomb")
    assert seen["committed"] == seen["expected"] == seen["seen"]
    # 64 megabytes out of 64 kilobytes: the batch, and its records.
    assert seen["grown"] < 4 * 64 * MEGABYTE, "more than the batch with its copies is held"
