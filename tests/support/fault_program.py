"""A program under test as a process: what it says, what it logs, signals, and its end."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from planted import SECRET

FAULTS = Path(__file__).parent.parent / "faults"
IS_CHAOS = os.environ.get("DEIMOS_CHAOS", "") == "1"
"""Long forms: more faults, several rounds with rates, saturated programs."""
DEADLINE = 120.0 if IS_CHAOS else 60.0
"""Generous: machines are shared. Nothing that passes depends on it."""


class Program:
    """One process, run in the folder of the fault trials.

    Args:
        changed: Called whenever it has said or logged something, or has ended.
        marks: Parts of log lines that are counted in `said`.
    """

    def __init__(self, name: str, *, changed: Callable[[], None], marks: Sequence[str] = ()) -> None:
        self.name = name
        self.said: Counter[str] = Counter()
        """How often its log has said each of the marks."""
        self.left: dict[str, Any] | None = None
        """What it said to have left open when it ended: tasks and sockets."""
        self.is_to_end = False
        self.telling: list[str] = []
        """Log lines that hold the planted secret: there must be none."""
        self._changed = changed
        self._marks = marks
        self._tail: deque[str] = deque(maxlen=1000)

    @property
    def log(self) -> str:
        """The last lines of its log."""
        return "".join(self._tail)

    def heard(self, text: bytes) -> None:
        """A line of its standard output; nothing is done with it here."""

    async def start(self, command: Sequence[str], environment: Mapping[str, str], *, is_told: bool = False) -> None:
        """Start it.

        Args:
            is_told: It listens to what `tell` writes; else it has no standard input.
        """
        self.process = await asyncio.create_subprocess_exec(
            *command,
            cwd=FAULTS,
            env={**os.environ, **environment},
            stdin=asyncio.subprocess.PIPE if is_told else asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        self._reading = asyncio.gather(self._read_lines(), self._read_log())

    @property
    def has_ended(self) -> bool:
        return self._reading.done()

    async def _read_lines(self) -> None:
        assert self.process.stdout is not None
        rest = b""
        # By chunks: thousands of lines come in a second, and the programs share the machine with us.
        while chunk := await self.process.stdout.read(65536):
            *texts, rest = (rest + chunk).split(b"\n")
            for text in texts:
                if text.startswith(b"="):
                    self.left = json.loads(text[1:])
                else:
                    self.heard(text)
            self._changed()

    async def _read_log(self) -> None:
        assert self.process.stderr is not None
        while text := await self.process.stderr.readline():
            line = text.decode(errors="replace")
            self._tail.append(line)
            if SECRET in line:
                self.telling.append(line)
            for mark in self._marks:
                self.said[mark] += mark in line
            self._changed()
        self._changed()

    def tell(self, line: str) -> None:
        """Write a line to its standard input."""
        assert self.process.stdin is not None
        if self.process.returncode is None:
            self.process.stdin.write(f"{line}\n".encode())

    def send(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            self.process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end, with all it said; its exit status."""
        async with asyncio.timeout(DEADLINE):
            await asyncio.shield(self._reading)
            return await self.process.wait()

    async def remove(self) -> None:
        self.send(signal.SIGKILL)
        await self._reading
        await self.process.wait()
