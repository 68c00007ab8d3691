"""TCP ports on 127.0.0.1: choosing free ones, and asking whether somebody answers."""

import asyncio
import random
import socket
from collections.abc import Iterable
from urllib.parse import urlsplit

HOST = "127.0.0.1"

# Below the ranges from which Linux (32768) and macOS (49152) take the ports of outgoing connections. A client that
# keeps trying to reach a stopped server on a port of that range may be given this very port as its own and then
# connects to itself, and the server cannot come back to it.
_FIRST, _LAST = 20_000, 32_000

_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mariadb": 3306}

_given: set[int] = set()
"""Ports that this process has chosen already; their servers may not have opened them yet."""


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on, different at each call within one process.

    Raises:
        OSError: 1000 attempts found none.
    """
    for _ in range(1000):
        port = random.randint(_FIRST, _LAST)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        _given.add(port)
        return port
    raise OSError(f"no free port between {_FIRST} and {_LAST} on {HOST}")


def endpoints(address: str) -> Iterable[tuple[str, int]]:
    """(host, port) pairs of a bootstrap list (`host:port,host:port`) or of a URL, SQLAlchemy's included.

    Raises:
        ValueError: a part has no host or no port, and its scheme has no usual one.
    """
    for part in address.split(","):
        url = urlsplit(part.strip() if "://" in part else f"//{part.strip()}")
        port = url.port or _DEFAULT_PORTS.get(url.scheme.split("+")[0])
        if url.hostname is None or port is None:
            raise ValueError(f"{part!r} is neither host:port nor a URL with a host")
        yield url.hostname, port


async def answers(address: str, *, deadline: float = 5.0) -> bool:
    """Whether one of the address's hosts accepts a TCP connection within `deadline` seconds (for each host).

    Raises:
        ValueError: see `endpoints`.
    """
    for host, port in endpoints(address):
        if await exchange(host, port, b"", 0, deadline=deadline) is not None:
            return True
    return False


async def exchange(host: str, port: int, request: bytes, size: int, *, deadline: float = 2.0) -> bytes | None:
    """Connect, send `request` and read exactly `size` bytes.

    Returns:
        The bytes; None when the connection was refused, ended early, or took longer than `deadline` seconds.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(deadline):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(request)
            await writer.drain()
            return await reader.readexactly(size)
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return None
    finally:
        if writer is not None:
            writer.close()
