"""The server of `run --web`: its address, and its life as a service."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys

import httpx2
import pytest

from deimos_async import ConfigurationError
from deimos_async.health import Health
from deimos_async.web.asgi import WebApp
from deimos_async.web.server import WebServer, bind, parse_address

DEADLINE = 20.0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", ("127.0.0.1", 8000)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8000", ("::1", 8000)),
        (":8000", ("0.0.0.0", 8000)),
        ("8000", ("127.0.0.1", 8000)),
    ],
)
def test_address_is_host_and_port(text: str, address: tuple[str, int]) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "::1:8000", "1:-1"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="give host:port"):
        parse_address(text)


def test_workers_of_one_host_have_ports_of_their_own() -> None:
    assert [parse_address("127.0.0.1:8000", worker)[1] for worker in range(3)] == [8000, 8001, 8002]
    assert parse_address("127.0.0.1:0", 3)[1] == 0


def test_port_in_use_is_told() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"127.0.0.1:{port}: cannot listen there .*in use"):
            bind("127.0.0.1", port)


def test_host_that_does_not_exist_is_told() -> None:
    with pytest.raises(ConfigurationError, match="cannot listen there"):
        bind("192.0.2.1", 0)


async def test_server_answers_from_started_to_stop_and_leaves_signals_alone() -> None:
    listening = bind("127.0.0.1", 0)
    port = listening.getsockname()[1]
    server = WebServer(WebApp(lambda: Health("running", True, True), None), listening)
    before = signal.getsignal(signal.SIGTERM)
    started = asyncio.Event()
    async with asyncio.timeout(DEADLINE), asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run(started))
        await started.wait()
        assert signal.getsignal(signal.SIGTERM) is before
        async with httpx2.AsyncClient() as http:
            answer = await http.get(f"http://127.0.0.1:{port}/livez")
        server.request_stop()
        server.request_stop()
    assert answer.status_code == 200
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pytest.fail("the socket is closed")


async def test_stop_before_run_is_not_lost() -> None:
    server = WebServer(WebApp(lambda: Health("running", True, True), None), bind("127.0.0.1", 0))
    server.request_stop()
    async with asyncio.timeout(DEADLINE):
        await server.run(asyncio.Event())


def test_missing_uvicorn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigurationError, match=r"deimos-async\[web\]"):
        WebServer(None, bind("127.0.0.1", 0))
