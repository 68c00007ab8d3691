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
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.mark.parametrize("example", ["shop", "fastapi_app"])
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


async def test_web_application_takes_an_order_and_packs_it(launch, tmp_path):
    server = await launch(
        *(sys.executable, "-m", "uvicorn", "fastapi_app.main:api", "--port", "0", "--host", "127.0.0.1"),
        folder=EXAMPLES,
        environment={
            "DEIMOS_EMBEDDED": "true",
            "ORDERS_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path}/orders.sqlite3",
        },
    )
    await server.says("Uvicorn running on")
    found = re.search(r"http://127\.0\.0\.1:\d+", server.errors)
    assert found

    def ask(path: str, body: object = None) -> dict[str, object]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(found[0] + path, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return dict(json.load(answer))

    async with asyncio.timeout(120):
        placed = await asyncio.to_thread(ask, "/orders", {"item": "lamp", "total": "19.99", "country": "CA"})
        state = placed["state"]
        while state != "packed":
            state = (await asyncio.to_thread(ask, f"/orders/{placed['id']}"))["state"]
    # Uvicorn shuts down in order and then lets the signal take its usual way.
    assert await server.ends(signal.SIGTERM) in (0, -signal.SIGTERM), server.errors
    assert "Application shutdown complete" in server.errors
