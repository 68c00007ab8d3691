"""Random, truncated and bit-flipped messages through every codec, in a process of its own: a crash would be seen.

Short here; `DEIMOS_CHAOS=1` gives each codec a hundred thousand.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("hostile_bytes.py")
COUNT = 100_000 if os.environ.get("DEIMOS_CHAOS") else 12_000
DEADLINE = 600.0


@pytest.mark.parametrize("backend", ["avro_schema_registry", "avro_local", "avro_validation", "plain", "mock"])
async def test_hostile_messages_end_in_a_decode_error_at_worst(backend: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(PROGRAM),
        backend,
        str(COUNT),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(DEADLINE):
        out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()[-2000:]
    seen = json.loads(out)
    assert seen["messages"] >= COUNT
    assert seen["decoded"] + seen["refused"] == seen["messages"]
    limit = 0.1 if os.environ.get("DEIMOS_CHAOS") else 1.0  # machines that run tests are shared
    assert seen["slowest"] < limit, "a message held the process too long"
    assert seen["grown"] < 128 * 1024 * 1024, "memory is not bounded"
