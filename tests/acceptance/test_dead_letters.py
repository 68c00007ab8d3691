"""`dead-letters` by command line, on Kafka: what a consumer put aside is found, shown, sent back and deleted."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.protocol import ProducerOptions
from deimos_async.message import OutboundRecord, TopicPartition

from .conftest import Launch, Launched

SCHEMA = {
    "type": "record",
    "name": "Order",
    "namespace": "com.acme",
    "fields": [{"name": "order_id", "type": "long"}, {"name": "country", "type": "string"}],
}
APPLICATION = """
import os
from deimos_async import Deimos, Key, Message, OnError

app = Deimos()
orders = app.topic("orders", schema="com.acme.Order", key=Key.field("order_id"), partitions=2)
to_orders = app.producer(orders)


@app.consumer(orders, group="billing", on_error=OnError(attempts=1))
async def bill(message: Message) -> None:
    handle("billing", message)


@app.consumer(orders, group="audit", on_error=OnError(attempts=1))
async def audit(message: Message) -> None:
    handle("audit", message)


def handle(group, message):
    replayed = message.headers.get("deimos-replayed-from")
    os.write(1, f"{group} {message.key} {message.payload['country']} {bool(replayed)}\\n".encode())
    if f"{group}:{message.payload['country']}" in os.environ.get("BROKEN", "").split():
        raise ValueError("cannot")
"""
SENDER = """
import asyncio, sys
from shop import app, to_orders

async def main():
    async with app.running(only=["producers"]):
        for number, country in enumerate(sys.argv[1:]):
            await to_orders.produce({"order_id": number, "country": country}, headers={"trace": "x"})

asyncio.run(main())
"""


class Shop:
    """The application in a folder, with topics of its own, and its commands."""

    def __init__(self, launch: Launch, folder: Path, bootstrap: str, registry: str, prefix: str) -> None:
        self._launch = launch
        self.folder = folder
        self.prefix = prefix
        self.broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=bootstrap))
        self.environment = {
            "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": bootstrap,
            "DEIMOS_SCHEMA__REGISTRY_URL": registry,
            "DEIMOS_PRODUCERS__TOPIC_PREFIX": prefix,
        }
        (folder / "shop.py").write_text(APPLICATION)
        (folder / "send.py").write_text(SENDER)
        schemas = folder / "schemas" / "com" / "acme"
        schemas.mkdir(parents=True)
        (schemas / "Order.avsc").write_text(json.dumps(SCHEMA))

    async def start(self, *command: str, broken: str = "") -> Launched:
        environment = self.environment | {"BROKEN": broken}
        return await self._launch(sys.executable, *command, folder=self.folder, environment=environment)

    async def command(self, *arguments: str, status: int = 0) -> Launched:
        ended = await self.start("-m", "deimos_async", *arguments)
        assert await ended.ends() == status, ended.output + ended.errors
        assert "Traceback" not in ended.errors
        return ended

    async def json(self, *arguments: str) -> Any:
        return json.loads((await self.command(*arguments, "--json")).output)

    async def send(self, *countries: str) -> None:
        sender = await self.start("send.py", *countries)
        assert await sender.ends() == 0, sender.errors

    async def letters(self, *arguments: str) -> Any:
        return await self.json("dead-letters", "list", "shop:app", *arguments)

    @asynccontextmanager
    async def running(self, *, broken: str = "") -> AsyncIterator[Launched]:
        run = await self.start("-m", "deimos_async", "run", "shop:app", broken=broken)
        yield run
        assert await run.ends(signal.SIGTERM) == 0, run.errors

    async def bury(self, *countries: str, broken: str) -> None:
        """Order, and let it fail."""
        await self.send(*countries)
        failures = sum(f":{country} " in f"{broken} " for country in countries)
        async with self.running(broken=broken) as run:
            while run.errors.count("sent to") < failures or run.output.count("\n") < 2 * len(countries):
                await run.says_more()


@pytest.fixture
async def shop(
    launch: Launch, tmp_path: Path, kafka_bootstrap: str, registry_url: str, unique_name: str
) -> AsyncIterator[Shop]:
    shop = Shop(launch, tmp_path, kafka_bootstrap, registry_url, f"{unique_name}.")
    await shop.broker.start()
    await shop.command("topics", "create", "shop:app")
    yield shop
    await shop.broker.stop()


def lines(run: Launched) -> Sequence[str]:
    return sorted(run.output.splitlines())


async def test_letters_are_listed_and_shown_without_what_they_say(shop: Shop) -> None:
    assert (await shop.letters())["letters"] == []
    await shop.bury("fr", "secretland", broken="billing:secretland")
    found = await shop.letters()
    (topic,) = found["topics"]
    assert (topic["topic"], topic["source"]) == (f"{shop.prefix}orders-dlt", f"{shop.prefix}orders")
    assert (topic["count"], topic["replayed"]) == (1, 0)
    assert topic["by_error"] == {"builtins.ValueError": 1}
    assert topic["by_group"] == {f"{shop.prefix}billing": 1}
    (letter,) = found["letters"]
    for arguments, count in {
        ("--group", "billing", "--error", "ValueError", "--key", "1", "--since", "1h"): 1,
        ("--key", "0"): 0,
        ("--group", "audit"): 0,
        ("--until", "1h"): 0,
    }.items():
        assert len((await shop.letters(*arguments))["letters"]) == count, arguments
    plain = (await shop.command("dead-letters", "list", "shop:app")).output
    assert letter["letter"] in plain
    hidden = await shop.command("dead-letters", "show", "shop:app", letter["letter"])
    assert "secretland" not in hidden.output
    assert "deimos-dlq-group" in hidden.output
    assert "sha256" in hidden.output
    shown = await shop.json("dead-letters", "show", "shop:app", letter["letter"], "--reveal")
    assert (shown["key"]["value"], shown["payload"]["value"]) == (1, {"order_id": 1, "country": "secretland"})
    assert (shown["error"], shown["error_message"], shown["attempts"]) == ("builtins.ValueError", "cannot", 1)
    nothing = await shop.command("dead-letters", "show", "shop:app", f"{shop.prefix}orders-dlt/0/99", status=1)
    assert "there is no letter" in nothing.errors


async def test_letter_that_cannot_be_decoded_is_shown_in_hexadecimal_and_goes_back_unchanged(shop: Shop) -> None:
    producer = shop.broker.producer(ProducerOptions())
    await producer.start()
    orders = f"{shop.prefix}orders"
    sent = OutboundRecord(orders, key=b"\x00\x00\x00\x00", value=b"\xde\xad", headers=[("h", b"\xff")], partition=1)
    await producer.send([sent])
    await producer.stop()
    async with shop.running() as run:
        while run.errors.count("sent to") < 2:
            await run.says_more()
    letters = (await shop.letters())["letters"]
    shown = await shop.json("dead-letters", "show", "shop:app", letters[0]["letter"], "--reveal")
    assert shown["payload"]["hex"] == "dead"
    assert shown["payload"]["problem"]
    replayed = await shop.json("dead-letters", "replay", "shop:app", "--group", "audit")
    assert replayed["replayed"] == {orders: 1}
    records = [record async for records in shop.broker.read({TopicPartition(orders, 1): (1, 2)}) for record in records]
    ((key, value, headers),) = [(record.key, record.value, dict(record.headers)) for record in records]
    assert (key, value, headers["h"]) == (b"\x00\x00\x00\x00", b"\xde\xad", b"\xff")
    assert headers["deimos-replays"] == b"1"
    assert headers["deimos-replay-group"] == f"{shop.prefix}audit".encode()
    assert not any(name.startswith("deimos-dlq-") for name in headers)


async def test_letters_are_replayed_once_and_for_the_group_that_gave_them_up(shop: Shop) -> None:
    await shop.bury("fr", "it", "it", broken="billing:it audit:fr")
    dry = await shop.json("dead-letters", "replay", "shop:app", "--group", "billing", "--dry-run")
    assert dry["replayed"] == {f"{shop.prefix}orders": 2}
    sent = await shop.command("dead-letters", "replay", "shop:app", "--group", "billing", "--rate", "1000")
    assert f"2 letters replayed to {shop.prefix}orders" in sent.output
    assert "1 letters left: not asked for" in sent.output
    again = await shop.command("dead-letters", "replay", "shop:app", "--group", "billing")
    assert "no letters replayed" in again.output
    all_groups = await shop.json("dead-letters", "replay", "shop:app")
    assert all_groups["replayed"] == {f"{shop.prefix}orders": 1}
    async with shop.running() as run:
        while run.output.count("\n") < 4:
            await run.says_more()
    # What was for billing alone, and the letter of audit for both groups.
    assert lines(run) == ["audit 0 fr True", "billing 0 fr True", "billing 1 it True", "billing 2 it True"]
    (topic,) = (await shop.letters())["topics"]
    assert (topic["count"], topic["replayed"]) == (3, 3)
    assert {row["messages"] for row in await shop.json("lag", "shop:app")} == {0}


async def test_letters_are_deleted_after_asking(shop: Shop) -> None:
    await shop.bury("it", "it", "it", broken="billing:it")
    refused = await shop.command("dead-letters", "drop", "shop:app", "--all", "--error", "ValueError", status=2)
    assert "up to an offset" in refused.errors
    told = await shop.command("dead-letters", "drop", "--help")
    assert "--replayed" in told.output
    assert not [name for name in ("--group", "--error", "--since", "--until", "--key") if name in told.output]
    vague = await shop.command("dead-letters", "drop", "shop:app", status=2)
    assert "--before" in vague.errors
    unasked = await shop.command("dead-letters", "drop", "shop:app", "--all", status=1)
    assert "Delete them?" in unasked.output + unasked.errors
    dry = await shop.json("dead-letters", "drop", "shop:app", "--all", "--dry-run")
    assert sum(one["letters"] for one in dry["drops"]) == 3
    await shop.command("dead-letters", "replay", "shop:app", "--limit", "1")
    await shop.command("dead-letters", "drop", "shop:app", "--replayed", "--yes")
    assert (await shop.letters())["topics"][0]["count"] == 2
    await shop.command("dead-letters", "drop", "shop:app", "--all", "--yes")
    assert (await shop.letters())["topics"][0]["count"] == 0
    nothing = await shop.command("dead-letters", "drop", "shop:app", "--all", "--yes")
    assert "nothing to delete" in nothing.output
