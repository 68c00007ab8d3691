"""One server process: its folder, its start, the wait until it is ready, and its end."""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

from servers.programs import Account, Need

_POLL = 0.05
"""Seconds between looks at a process or a port."""


def say(text: str) -> None:
    """Tell whoever waits what is going on. Standard output is left to results."""
    print(text, file=sys.stderr, flush=True)


class ServerError(Exception):
    """A server or one of its preparations failed. The message ends with the tail of its log."""


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """What somebody else needs to know to end a server that was left running."""

    pid: int
    birth: str
    """When the process began, as the system tells it: a process id alone may belong to another program by now."""
    stop_signal: int
    directory: str


class Server(ABC):
    """A server on 127.0.0.1 that belongs to whoever created the object.

    It keeps its port and its folder from start to start, so `restart` and `kill` followed by `start` find the data
    again. The folder is a new one under the system's temporary folder; `remove` deletes it. `async with Server() as
    server` starts it, and stops and removes it at the end.

    Methods may be called from any event loop, one at a time. A `start` that fails or is cancelled leaves no process.
    """

    name: ClassVar[str]
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self) -> None:
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._is_created = False

    # What a kind of server says about itself

    @classmethod
    @abstractmethod
    def missing(cls) -> list[Need]:
        """What this machine lacks to start one; empty when nothing does."""

    @classmethod  # noqa: B027 - most servers need no downloads
    async def prepare(cls) -> None:
        """Download what is not in the cache yet. Raises ServerError."""

    @property
    @abstractmethod
    def address(self) -> str:
        """What clients are given: a bootstrap list or a URL."""

    @abstractmethod
    async def _create(self) -> None:
        """Fill the new folder (format, initdb). Called once, before the first start."""

    @abstractmethod
    def _command(self) -> list[str]: ...

    @abstractmethod
    async def _is_ready(self) -> bool:
        """Whether the running process serves requests. Takes two seconds at most."""

    def _environment(self) -> dict[str, str]:
        return dict(os.environ)

    def _account(self) -> Account | None:
        """Account that the server runs as; None: our own."""
        return None

    # What everybody may do with it

    @property
    def directory(self) -> Path:
        """The server's own folder, with its data and `server.log`."""
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix=f"deimos-{self.name}-"))
            account = self._account()
            if account is not None:
                os.chown(self._directory, account.uid, account.gid)
        return self._directory

    @property
    def log(self) -> Path:
        """Everything that the server and its preparations printed."""
        return self.directory / "server.log"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Process id. Raises RuntimeError when it was not started."""
        return self._started().pid

    async def start(self, *, deadline: float = 90.0) -> None:
        """Start it and wait until it serves requests.

        Args:
            deadline: Seconds for the server to become ready, downloads and the creation of its data not counted.

        Raises:
            ServerError: a program is missing, a preparation failed, the process ended, or the deadline passed.
            RuntimeError: it runs already.
        """
        if self._process is not None:
            raise RuntimeError(f"{self.name} runs already")
        needs = self.missing()
        if needs:
            raise ServerError(f"{self.name} needs " + ", ".join(str(need) for need in needs))
        await self.prepare()
        try:
            if not self._is_created:
                await self._create()
                self._is_created = True
            self._process = self._spawn(self._command())
            await self._wait_until_ready(time.monotonic() + deadline)
        except BaseException:
            await self.kill()
            raise

    async def stop(self, *, timeout: float = 30.0) -> None:
        """Ask it to end in order and wait; after `timeout` seconds, or when cancelled, it is killed. Idempotent."""
        if self._process is None:
            return
        try:
            if self._process.poll() is None:
                self._process.send_signal(self.stop_signal)
            async with asyncio.timeout(timeout):
                while self._process.poll() is None:
                    await asyncio.sleep(_POLL)
        except TimeoutError:
            pass
        finally:
            await self.kill()

    async def kill(self) -> None:
        """End it at once, with its children, as a crash would. Idempotent."""
        if self._process is not None:
            _kill_group(self._process)
            self._process = None

    async def restart(self, *, deadline: float = 90.0) -> None:
        """`stop` and `start`, on the same port with the same data."""
        await self.stop()
        await self.start(deadline=deadline)

    def remove(self) -> None:
        """Delete the folder and all data. Raises RuntimeError while the server runs."""
        if self._process is not None:
            raise RuntimeError(f"{self.name} still runs")
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None
            self._is_created = False

    def leave_running(self) -> ProcessRecord:
        """Give up the process: it runs on after us, and whoever has the record may end it with `end_recorded`."""
        process = self._started()
        birth = process_birth(process.pid)
        if birth is None:
            raise ServerError(f"{self.name} has ended\n{self._log_tail()}")
        # Popen would wait for the process, or warn, when it is collected.
        process.returncode = 0
        self._process = None
        return ProcessRecord(process.pid, birth, int(self.stop_signal), str(self.directory))

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            self.remove()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            await self.stop()
        finally:
            self.remove()

    # For subclasses

    async def _run(self, command: Sequence[str], *, given: bytes = b"", deadline: float = 120.0) -> None:
        """Run one of the server's own tools to its end, as the server's account.

        Args:
            given: Its standard input; small, as nobody reads its output meanwhile.
            deadline: Seconds.

        Raises:
            ServerError: it failed, or took longer.
        """
        await run_tool(
            command, log=self.log, given=given, deadline=deadline, account=self._account(), directory=self.directory
        )

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        return _spawn(command, self.log, self._environment(), self._account(), self.directory)

    async def _wait_until_ready(self, until: float) -> None:
        while True:
            if not self.is_running:
                raise ServerError(f"{self.name} ended while it started\n{self._log_tail()}")
            if await self._is_ready():
                return
            if time.monotonic() > until:
                raise ServerError(f"{self.name} was not ready in time\n{self._log_tail()}")
            await asyncio.sleep(_POLL)

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    def _log_tail(self) -> str:
        return tail(self.log)


async def run_tool(
    command: Sequence[str],
    *,
    log: Path,
    deadline: float,
    given: bytes = b"",
    account: Account | None = None,
    directory: Path | None = None,
) -> None:
    """Run a program to its end with its output appended to `log`; killed with its children when we are cancelled.

    Raises:
        ServerError: its status was not zero, or it took longer than `deadline` seconds.
    """
    process = _spawn(command, log, dict(os.environ), account, directory, with_input=bool(given))
    try:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(given)
        async with asyncio.timeout(deadline):
            while process.poll() is None:
                await asyncio.sleep(_POLL)
    except TimeoutError:
        raise ServerError(f"{command[0]} took longer than {deadline:.0f} s\n{tail(log)}") from None
    finally:
        status = process.poll()
        _kill_group(process)
    if status != 0:
        raise ServerError(f"{command[0]} failed with status {status}\n{tail(log)}")


def _spawn(
    command: Sequence[str],
    log: Path,
    environment: dict[str, str],
    account: Account | None,
    directory: Path | None,
    *,
    with_input: bool = False,
) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in the terminal reaches us, and we end the servers in order, after their clients.
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE if with_input else subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=directory,
            start_new_session=True,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else (),
        )


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        # The leader is not waited for yet, so the group's number is still ours.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def process_birth(pid: int) -> str | None:
    """When the process began, in the system's own words; None when there is no such process or only its remains."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
        answer = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return answer.stdout.strip() or None
    # The name in brackets may contain anything. After it: the state (field 3), and the start in clock ticks (field 22).
    fields = status.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


async def end_recorded(record: ProcessRecord, *, timeout: float = 30.0) -> bool:
    """End a server that was left running, and delete its folder.

    Args:
        timeout: Seconds before it is killed.

    Returns:
        False when the process had gone already, or its id belongs to another one by now (which is left alone).
    """

    def is_there() -> bool:
        return process_birth(record.pid) == record.birth

    was_there = is_there()
    if was_there:
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.pid, record.stop_signal)
        until = time.monotonic() + timeout
        while is_there():
            if time.monotonic() > until:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(record.pid, signal.SIGKILL)
            await asyncio.sleep(_POLL)
    shutil.rmtree(record.directory, ignore_errors=True)
    return was_there


def tail(log: Path, *, lines: int = 30) -> str:
    """Last lines of a log, indented; empty when there is no log."""
    try:
        text = log.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(f"  | {line}" for line in text.splitlines()[-lines:])
