"""The examples run as their pages say, and their own tests pass."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
import sqlite3
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import pytest
from fresh_database import fresh_database
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from .conftest import Launch, Launched

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("example", ["shop", "fastapi_app", "tables"])
async def test_own_tests_of_an_example_pass(launch, example):
    tests = await launch(
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"{example}/tests", folder=EXAMPLES
    )
    assert await tests.ends() == 0, tests.output + tests.errors
    assert re.search(r"\d+ passed", tests.output)


async def test_shop_runs_embedded_and_drains_at_sigterm(launch):
    shop = await launch(sys.executable, "-m", "deimos_async", "run", "shop.events:app", "--embedded", folder=EXAMPLES)
    await shop.says("running producers and consumers")
    assert await shop.ends(signal.SIGTERM) == 0, shop.errors
    assert "Error" not in shop.errors


ORDERS = """
import asyncio
from shop.demo import POISON, order
from shop.events import app, to_orders

async def main():
    async with app.running(only=["producers"]):
        await to_orders.produce_many([{"payload": order(number)} for number in (1, 2, POISON)])

asyncio.run(main())
"""


async def test_shop_on_kafka_books_each_order_and_collects_the_one_to_nowhere(
    launch, tmp_path, kafka_bootstrap, registry_url, unique_name
):
    environment = {
        "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": kafka_bootstrap,
        "DEIMOS_SCHEMA__REGISTRY_URL": registry_url,
        "DEIMOS_PRODUCERS__TOPIC_PREFIX": f"{unique_name}.",
        "DEIMOS_DATABASE__URL": f"sqlite+aiosqlite:///{tmp_path}/shop.sqlite3",
    }
    ours = (sys.executable, "-m", "deimos_async")
    creating = await launch(*ours, "topics", "create", "shop.events:app", folder=EXAMPLES, environment=environment)
    assert await creating.ends() == 0, creating.errors
    run = (*ours, "run", "shop.events:app", "--log-messages")
    shop = await launch(*run, folder=EXAMPLES, environment=environment)
    await shop.says("running producers and consumers")
    customers = await launch(sys.executable, "-c", ORDERS, folder=EXAMPLES, environment=environment)
    assert await customers.ends() == 0, customers.errors
    await shop.says(" by complain: ")
    async with asyncio.timeout(120):
        while shop.errors.count("by bill: ") < 3 or len(booked(tmp_path / "shop.sqlite3")) < 3:
            await shop.says_more()
    assert await shop.ends(signal.SIGTERM) == 0, shop.errors
    assert booked(tmp_path / "shop.sqlite3") == [1, 2, 1234]


def booked(path: Path) -> list[int]:
    """Order numbers of the invoices in the shop's books; none before it has made its table."""
    with contextlib.closing(sqlite3.connect(path)) as books:
        if not books.execute("select 1 from sqlite_master where name = 'invoices'").fetchone():
            return []
        return [number for (number,) in books.execute("select order_id from invoices order by order_id")]


class WebApplication:
    """The example under uvicorn."""

    def __init__(self, server: Launched, address: str) -> None:
        self.server = server
        self._address = address

    async def ask(self, path: str, body: object = None, method: str | None = None) -> object:
        """JSON of the answer; an HTTPError where it is none."""

        def asked() -> object:
            data = None if body is None else json.dumps(body).encode()
            headers = {"Content-Type": "application/json"}
            request = urllib.request.Request(self._address + path, data, headers, method=method)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer) if answer.status != 204 else None

        return await asyncio.to_thread(asked)

    async def place(self) -> int:
        placed = await self.ask("/orders", {"item": "lamp", "total": "19.99", "country": "CA"})
        assert isinstance(placed, dict)
        assert placed["state"] == "placed"
        return int(placed["order_id"])

    async def until_packed(self, number: int) -> None:
        async with asyncio.timeout(120):
            state = "placed"
            while state != "packed":
                answer = await self.ask(f"/orders/{number}")
                assert isinstance(answer, dict)
                state = answer["state"]

    async def stop(self) -> None:
        # Uvicorn shuts down in order and then lets the signal take its usual way.
        assert await self.server.ends(signal.SIGTERM) in (0, -signal.SIGTERM), self.server.errors
        assert "Application shutdown complete" in self.server.errors


async def web_application(launch: Launch, environment: Mapping[str, str]) -> WebApplication:
    server = await launch(
        *(sys.executable, "-m", "uvicorn", "fastapi_app.main:api", "--port", "0", "--host", "127.0.0.1"),
        folder=EXAMPLES,
        environment=environment,
    )
    await server.says("Uvicorn running on")
    found = re.search(r"http://127\.0\.0\.1:\d+", server.errors)
    assert found
    return WebApplication(server, found[0])


async def test_web_application_takes_an_order_and_packs_it(launch):
    shop = await web_application(launch, {"DEIMOS_EMBEDDED": "true"})
    await shop.until_packed(await shop.place())
    await shop.stop()


async def test_web_application_on_kafka_sends_what_one_that_was_killed_has_committed(
    launch, kafka_bootstrap, registry_url, postgres_url, unique_name
):
    async with fresh_database(postgres_url, unique_name[:60]) as url:
        environment = {
            "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": kafka_bootstrap,
            "DEIMOS_SCHEMA__REGISTRY_URL": registry_url,
            "DEIMOS_PRODUCERS__TOPIC_PREFIX": f"{unique_name}.",
            "DEIMOS_DATABASE__URL": url,
            # The group waits no longer for the member that is killed.
            "DEIMOS_CONSUMERS__SESSION_TIMEOUT": "6",
            "DEIMOS_CONSUMERS__HEARTBEAT_INTERVAL": "1",
        }
        page = (EXAMPLES / "fastapi_app" / "main.py").read_text()
        for line in (
            "alembic -c ../alembic.ini upgrade heads",
            "python -m deimos_async topics create fastapi_app.main:app",
        ):
            assert f"    {line}" in page
            command = line.removeprefix("python -m ").split()
            made = await launch(sys.executable, "-m", *command, folder=EXAMPLES, environment=environment)
            assert await made.ends() == 0, made.errors
        first = await web_application(launch, environment)
        await first.until_packed(await first.place())
        numbers = [await first.place() for _ in range(20)]
        await first.ask(f"/orders/{numbers.pop()}", method="DELETE")
        # Some of these were sent by now, some were packed, some are only rows: all were committed.
        await first.server.ends(signal.SIGKILL)
        second = await web_application(launch, environment)
        for number in numbers:
            await second.until_packed(number)
        async with asyncio.timeout(120):  # the invoices, too
            while await answer(url, "SELECT count(*) FROM kafka_messages"):
                pass
        await second.stop()
        assert await answer(url, "SELECT count(*) FROM orders WHERE state = 'packed'") == 20


async def answer(url: str, query: str) -> object:
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        found: object = await connection.scalar(text(query))
    await engine.dispose()
    return found
