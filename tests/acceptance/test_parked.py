"""`parked` by command line, without Kafka: what the outbox could not send is found, shown, given back and deleted."""

from __future__ import annotations

import json
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest

from .conftest import Launch, Launched

APPLICATION = """
from deimos_async import Deimos, Key

app = Deimos({"database.url": "sqlite+aiosqlite:///shop.sqlite3", "producers.backend": "outbox"})
orders = app.topic("orders", key=Key.plain())
to_orders = app.producer(orders)
"""
SECRET = "s3cret\x1b[31m"
ROWS = [("a", "1"), ("a", SECRET), ("b", "3")]
SENDER = f"""
import asyncio
from shop import app, to_orders

async def main():
    async with app.running(only=["producers"]):
        for key, value in {ROWS!r}:
            await to_orders.produce(value.encode(), key=key, headers={{"trace": "hidden"}})

asyncio.run(main())
"""


class Shop:
    """The application in a folder, with messages that wait in its outbox, and its commands."""

    def __init__(self, launch: Launch, folder: Path) -> None:
        self._launch = launch
        self.folder = folder
        (folder / "shop.py").write_text(APPLICATION)
        (folder / "send.py").write_text(SENDER)

    async def start(self, *command: str, status: int = 0) -> Launched:
        ended = await self._launch(sys.executable, *command, folder=self.folder)
        assert await ended.ends() == status, ended.output + ended.errors
        return ended

    async def parked(self, name: str, *arguments: str, status: int = 0) -> Launched:
        return await self.start("-m", "deimos_async", "parked", name, "shop:app", *arguments, status=status)

    async def read(self, name: str, *arguments: str, status: int = 0) -> Any:
        return json.loads((await self.parked(name, *arguments, "--json", status=status)).output)

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.folder / "shop.sqlite3")
        try:
            found = connection.execute(statement).fetchall()
            connection.commit()
            return found
        finally:
            connection.close()


@pytest.fixture
async def shop(launch: Launch, tmp_path: Path) -> Shop:
    shop = Shop(launch, tmp_path)
    await shop.start("-m", "deimos_async", "migrate", "shop:app")
    await shop.start("send.py")
    return shop


def ids(found: list[dict[str, Any]]) -> list[int]:
    return [row["id"] for row in found]


async def test_message_that_blocks_its_key_is_found_released_and_given_back(shop: Shop) -> None:
    assert "nothing is parked" in (await shop.parked("list")).output
    found = await shop.read("list", "--waiting", "0")
    assert (found["counts"], found["rows"], ids(found["waiting"])) == ([], [], [1, 3])
    shop.rows("DELETE FROM kafka_messages WHERE id = 1")
    (kept,) = shop.rows("SELECT message_id, created_at FROM kafka_messages WHERE id = 2")

    told = await shop.read("release", "2", "--dry-run")
    assert told == {"released": [2], "missing": [], "dry_run": True}
    assert len(shop.rows("SELECT id FROM kafka_messages")) == 2
    released = await shop.parked("release", "2", "77", status=1)
    assert "1 messages put aside" in released.output
    assert "no message 77 waits" in released.errors
    assert shop.rows("SELECT id FROM kafka_messages") == [(3,)]

    listed = (await shop.parked("list")).output
    assert "orders: 1 parked, released" in listed
    found = await shop.read("list", "--topic", "orders", "--error", "released", "--since", "1h")
    assert found["counts"] == [{"topic": "orders", "error": "released", "count": 1}]
    (row,) = found["rows"]
    assert (row["id"], row["message_id"], row["attempts"]) == (2, kept[0], 0)
    assert (await shop.read("list", "--topic", "bills"))["rows"] == []

    assert "1 messages would be given back" in (await shop.parked("retry", "2", "--dry-run")).output
    assert shop.rows("SELECT id FROM kafka_messages") == [(3,)]
    assert "1 messages given back to the outbox" in (await shop.parked("retry", "--all")).output
    assert shop.rows("SELECT id, message_id, created_at FROM kafka_messages WHERE id <> 3") == [(4, *kept)]
    assert "no message 2 is parked" in (await shop.parked("retry", "2", status=1)).errors


async def test_what_a_message_says_is_hidden_unless_asked_for(shop: Shop) -> None:
    for state in ("waiting", "parked"):
        shown = (await shop.parked("show", "2", *(["--json"] if state == "parked" else []))).output
        assert state in shown
        assert "trace" in shown
        assert "s3cret" not in shown
        assert "hidden" not in shown
        revealed = await shop.read("show", "2", "--reveal")
        assert (revealed["state"], revealed["key"]["text"], revealed["payload"]["text"]) == (state, "a", SECRET)
        assert revealed["headers"][0]["text"] == "hidden"
        if state == "waiting":
            await shop.parked("release", "2")
    plain = (await shop.parked("show", "2", "--reveal")).output
    assert "s3cret" in plain
    assert "\x1b" not in plain
    assert "no message 9" in (await shop.parked("show", "9", status=1)).errors


async def test_parked_messages_are_dropped_only_when_that_is_confirmed(shop: Shop) -> None:
    await shop.parked("release", "1", "2", "3")
    assert (await shop.read("drop", "1", "--dry-run"))["dropped"] == 1
    await shop.parked("drop", "1", status=1)  # nobody is there to be asked
    assert len(shop.rows("SELECT id FROM kafka_parked_messages")) == 3
    told = await shop.read("drop", "1", "9", "--yes", status=1)
    assert (told["dropped"], ids(told["rows"]), told["missing"]) == (1, [1], [9])
    assert "2 messages deleted" in (await shop.parked("drop", "--topic", "orders", "--yes")).output
    assert not shop.rows("SELECT id FROM kafka_parked_messages")
    assert not shop.rows("SELECT id FROM kafka_messages")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("retry",), "say which messages"),
        (("drop", "1", "--all", "--yes"), "say which messages"),
        (("drop", "1", "--json"), "--json cannot ask"),
    ],
)
async def test_command_that_does_not_say_what_it_means_is_refused(
    shop: Shop, arguments: tuple[str, ...], problem: str
) -> None:
    ended = await shop.parked(*arguments, status=2)
    assert problem in ended.errors


async def test_database_without_the_tables_is_told(launch: Launch, tmp_path: Path) -> None:
    shop = Shop(launch, tmp_path)
    ended = await shop.parked("list", status=2)
    assert "make it with: python -m deimos_async migrate" in ended.errors
