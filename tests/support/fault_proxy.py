"""A TCP proxy on 127.0.0.1 whose network can be made bad: cut, silent, late, slow, or answered by somebody else."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Self

from servers.ports import HOST

_CHUNK = 65536


async def fault_lasts(seconds: float) -> None:
    """The one place where time passes by itself: a fault is a duration, and so is the window of a measurement."""
    await asyncio.sleep(seconds)


class TcpProxy:
    """Forwards connections from `port` to `target` (host, port) until it is told otherwise. `async with` runs it.

    Several faults may be on at once; `heal` ends all that concern new data and new connections. A connection that was
    made silent stays silent: its bytes are gone, as with a router that has forgotten it.
    """

    def __init__(self, port: int, target: tuple[str, int]) -> None:
        self.port = port
        self._target = target
        self._links: set[_Link] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._is_cut = False
        self._is_silent = False
        self._delay = 0.0
        self._bytes_per_second: float | None = None
        self._answer: bytes | None = None
        self._trap: _Trap | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, HOST, self.port)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        assert self._server is not None
        self._server.close()
        for link in list(self._links):
            link.abort()
        handlers = list(self._handlers)
        for handler in handlers:
            handler.cancel()
        if handlers:
            await asyncio.wait(handlers)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Reset all connections, and every new one, until `heal`."""
        self._is_cut = True
        for link in list(self._links):
            link.abort()

    def cut_at_answer(self) -> None:
        """What is asked still arrives; the next answer resets its connection instead. New connections work."""
        for link in self._links:
            link.is_cut_at_answer = True

    async def cut_at(self, text: bytes, *, is_forwarded: bool) -> None:
        """Wait until a client sends this text, and reset its connection; the others work.

        Args:
            is_forwarded: It arrives, and its answer is lost; else it never arrives.
        """
        trap = self._trap = _Trap(text, is_forwarded)
        await trap.is_sprung.wait()

    def silence(self, *, new: bool) -> None:
        """Forward nothing more on the connections there are, without closing them: half-open.

        Args:
            new: New connections are accepted and silent too, until `heal`; else they work.
        """
        self._is_silent = new
        for link in list(self._links):
            link.is_silent = True

    def delay(self, seconds: float) -> None:
        """Every piece of data comes so much later, in both directions."""
        self._delay = seconds

    def slow(self, bytes_per_second: float) -> None:
        """Each direction of each connection carries no more."""
        self._bytes_per_second = bytes_per_second

    def answer(self, response: bytes) -> None:
        """Requests (HTTP heads) on new connections get this, and the connection ends. Connections there are end."""
        self._answer = response
        for link in list(self._links):
            link.abort()

    def heal(self) -> None:
        """From now on all is well."""
        self._is_cut = self._is_silent = False
        self._delay, self._bytes_per_second, self._answer = 0.0, None, None

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            await self._serve(reader, writer)
        except asyncio.CancelledError:
            # Only `__aexit__` cancels, and waits for the end; asyncio's server would report a cancelled handler.
            pass
        finally:
            writer.transport.abort()
            self._handlers.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut:
            return
        if self._answer is not None:
            await self._lie(reader, writer, self._answer)
            return
        try:
            behind_reader, behind_writer = await asyncio.open_connection(*self._target)
        except OSError:
            return  # nobody is there: the client's connection ends
        link = _Link(writer, behind_writer, is_silent=self._is_silent)
        self._links.add(link)
        pumps = [
            asyncio.create_task(self._forward(link, reader, behind_writer, is_answer=False)),
            asyncio.create_task(self._forward(link, behind_reader, writer, is_answer=True)),
        ]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._links.discard(link)
            link.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)

    async def _forward(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_answer: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                if is_answer and link.is_cut_at_answer:
                    return
                if not is_answer and (trap := self._trap) is not None and trap.text in data:
                    self._trap = None
                    trap.is_sprung.set()
                    if not trap.is_forwarded:
                        return
                    link.is_cut_at_answer = True
                if self._delay:
                    await fault_lasts(self._delay)
                if self._bytes_per_second is not None:
                    await fault_lasts(len(data) / self._bytes_per_second)
                if link.is_silent:
                    # What the sender goes on to send fills the buffers; nothing tells it.
                    await asyncio.get_running_loop().create_future()
                writer.write(data)
                await writer.drain()

    @staticmethod
    async def _lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()


class _Trap:
    """What a client must send for its connection to be reset."""

    def __init__(self, text: bytes, is_forwarded: bool) -> None:
        self.text = text
        self.is_forwarded = is_forwarded
        self.is_sprung = asyncio.Event()


class _Link:
    """One client's connection and the one behind it."""

    def __init__(self, front: asyncio.StreamWriter, behind: asyncio.StreamWriter, *, is_silent: bool) -> None:
        self._writers = (front, behind)
        self.is_silent = is_silent
        self.is_cut_at_answer = False

    def abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
