"""Programs as users start them: what they print as it comes, signals, exit status. They end with the test."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import pytest
from planted import SECRET, VARIABLE, check_hidden

DEADLINE = 120.0
"""Generous: machines are shared. Nothing here is about speed."""


class Launched:
    """A running program; standard output and standard error are read as they come."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.output = ""
        self.errors = ""
        self._said = asyncio.Event()
        self._reading = asyncio.gather(self._read_output(), self._read_errors())

    async def _read_output(self) -> None:
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.output += line.decode()
            self._said.set()

    async def _read_errors(self) -> None:
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.errors += line.decode()
            self._said.set()

    async def says(self, text: str) -> None:
        """Wait until it has printed this text."""
        async with asyncio.timeout(DEADLINE):
            while text not in self.output + self.errors:
                await self.says_more(f"without saying {text!r}")

    async def says_more(self, without: str = "too early") -> None:
        """Wait until it has printed something or has ended; fail if it had ended before."""
        assert not self._reading.done(), f"it ended {without}:\n{self.output}\n{self.errors}"
        self._said.clear()
        waits = [asyncio.ensure_future(self._said.wait()), self._reading]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        waits[0].cancel()

    async def ends(self, number: signal.Signals | None = None) -> int:
        """Send a signal, if one is given, and wait for the end; returns the exit status."""
        if number is not None:
            self.process.send_signal(number)
        async with asyncio.timeout(DEADLINE):
            await self._reading
            return await self.process.wait()

    async def remove(self) -> None:
        """At the end of a test, whatever happened."""
        if self.process.returncode is None:
            self.process.kill()
        await self._reading
        await self.process.wait()


Launch = Callable[..., Awaitable[Launched]]


@pytest.fixture
async def launch() -> AsyncIterator[Launch]:
    """`await launch(sys.executable, "-m", ..., folder=path, environment={...})` starts a program."""
    programs: list[Launched] = []
    # What the surrounding test run was told is not for them.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("DEIMOS_", "PYTEST_"))}

    async def launched(*command: str, folder: Path, environment: Mapping[str, str] | None = None) -> Launched:
        process = await asyncio.create_subprocess_exec(
            *command,
            cwd=folder,
            env={**inherited, "PYTHONUNBUFFERED": "1", VARIABLE: SECRET, **(environment or {})},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        programs.append(Launched(process))
        return programs[-1]

    yield launched
    for program in programs:
        await program.remove()
    for program in programs:
        check_hidden(program.output + program.errors, "what a program of this test has printed")
