"""`run --web`: the application watched by real HTTP, from before its start until its end."""

from __future__ import annotations

import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

APPLICATION = """
import os
from deimos_async import Deimos, Key, Message, Prometheus

app = Deimos(metrics=Prometheus(prefix="shop_"))
orders = app.topic("orders", key=Key.plain())


@app.consumer(orders, group="billing")
async def bill(message: Message) -> None: ...
"""


class Watched:
    """A program with `--web` on a port that it chose."""

    def __init__(self, program: Any, address: str) -> None:
        self.program = program
        self.address = address

    async def get(self, path: str) -> httpx2.Response:
        async with httpx2.AsyncClient() as http:
            return await http.get(self.address + path)


@pytest.fixture
def watched(launch: Any, tmp_path: Path) -> Any:
    """`await watched("--embedded")` in a folder with `shop.py`."""
    (tmp_path / "shop.py").write_text(APPLICATION)

    async def started(*arguments: str, **environment: str) -> Watched:
        command = (sys.executable, "-m", "deimos_async", "run", "shop:app", "--web", "127.0.0.1:0", *arguments)
        program = await launch(*command, folder=tmp_path, environment=environment)
        await program.says("with /livez")
        match = re.search(r"serving (http://\S+)", program.errors)
        assert match is not None
        return Watched(program, match[1])

    return started


async def test_running_application_is_alive_ready_and_shows_its_metrics(watched: Any) -> None:
    shop = await watched("--embedded")
    await shop.program.says("running producers and consumers")
    live, ready, metrics = await shop.get("/livez"), await shop.get("/readyz"), await shop.get("/metrics")
    assert (live.status_code, ready.status_code, metrics.status_code) == (200, 200, 200)
    assert [consumer["name"] for consumer in live.json()["consumers"]] == ["bill"]
    assert metrics.headers["content-type"].startswith("text/plain")
    assert (await shop.get("/")).status_code == 404
    assert await shop.program.ends(signal.SIGTERM) == 0
    with pytest.raises(httpx2.ConnectError):
        await shop.get("/livez")


async def test_application_that_waits_for_its_brokers_is_alive_and_not_ready(watched: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        servers = f"127.0.0.1:{silent.getsockname()[1]}"
        shop = await watched(DEIMOS_KAFKA__BOOTSTRAP_SERVERS=servers, DEIMOS_KAFKA__CONNECT_TIMEOUT="300")
        live, ready = await shop.get("/livez"), await shop.get("/readyz")
        assert (live.status_code, ready.status_code) == (200, 503)
        assert live.json()["state"] == ready.json()["state"] == "starting"
        assert await shop.program.ends(signal.SIGTERM) == 0


async def test_port_in_use_is_told_in_one_line_and_exits_two(launch: Any, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        command = (sys.executable, "-m", "deimos_async", "run", "shop:app", "--embedded", "--web", address)
        program = await launch(*command, folder=tmp_path)
        assert await program.ends() == 2
    assert f"--web {address}: cannot listen there" in program.errors
    assert "Traceback" not in program.errors


async def test_address_that_is_none_is_told_before_anything_starts(launch: Any, tmp_path: Path) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    program = await launch(
        sys.executable, "-m", "deimos_async", "run", "shop:app", "--embedded", "--web", "here", folder=tmp_path
    )
    assert await program.ends() == 2
    assert "--web here: give host:port" in program.errors
