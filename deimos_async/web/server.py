"""The HTTP server of `run --web`: uvicorn as a service in the event loop of the application."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Iterator
from typing import Any

from deimos_async.errors import ConfigurationError

__all__ = ["WebServer", "bind", "parse_address"]

logger = logging.getLogger("deimos_async.web")

_GRACE_SECONDS = 2
"""Seconds that requests under way have at a stop. Answers are made at once; only slow readers need them."""


def parse_address(text: str, worker: int = 0) -> tuple[str, int]:
    """`"127.0.0.1:8000"` -> host and port. `"[::1]:8000"`, `":8000"` (every interface) and a port alone are understood.

    Args:
        worker: Index among processes of one host, added to the port: they cannot share one without hiding from each
            other which of them answers. Port 0, any free one, stays 0.

    Raises:
        ConfigurationError: It is no address.
    """
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        port = ""  # an IPv6 address without brackets: nobody can tell where the port begins
    if not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise ConfigurationError(f"--web {text}: give host:port, e.g. 127.0.0.1:8000")
    if text == port:
        host = "127.0.0.1"
    return host or "0.0.0.0", int(port) + worker if int(port) else 0  # noqa: S104  # asked for by leaving out the host


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes a free one.

    Raises:
        ConfigurationError: It cannot be had, as when another program has the port.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"--web {host}:{port}: cannot listen there ({reason}); choose another address or port"
        ) from error


class WebServer:
    """Serves an ASGI application on a bound socket. A service; it closes the socket at its end.

    Raises:
        ConfigurationError: uvicorn is not installed.
    """

    name = "web server"

    def __init__(self, application: Any, listening: socket.socket) -> None:
        try:
            import uvicorn  # optional library
        except ImportError:
            listening.close()
            raise ConfigurationError("--web: uvicorn is not installed; pip install 'deimos-async[web]'") from None

        class Server(uvicorn.Server):
            """Leaves signals to the command line, and says when it serves."""

            serving: asyncio.Event

            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                self.serving.set()

        self._listening = listening
        self._server = Server(
            uvicorn.Config(
                application,
                lifespan="off",
                ws="none",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )

    def request_stop(self) -> None:
        """Soft, any number of times, before or after `run`."""
        self._server.should_exit = True

    async def run(self, started: asyncio.Event) -> None:
        """Serve until stopped."""
        self._server.serving = started
        host, port = self._listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        logger.info("serving http://%s:%d with /livez, /readyz and /metrics", shown, port)
        if not ipaddress.ip_address(host).is_loopback:
            logger.info("%s can be reached from other machines; it has no authentication", shown)
        with self._listening:
            await self._server.serve([self._listening])
