"""Ends the programs that a test started."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from planted import check_hidden

sys.path.insert(0, str(Path(__file__).parent))
from harness import HERE, Program  # the folder is on the path from here on, also for the applications

Start = Callable[..., Awaitable[Program]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    """`await start("ledger:app", environment, ...)` runs a program that ends with the test."""
    programs: list[Program] = []

    async def started(target: str, environment: dict[str, str], *arguments: str) -> Program:
        program = await Program(target, environment, *arguments).start()
        programs.append(program)
        return program

    yield started
    for program in programs:
        await program.remove()
    for program in programs:
        check_hidden(program.errors, "the log of a program")


@pytest.fixture
def schemas() -> str:
    return str(HERE / "schemas")
