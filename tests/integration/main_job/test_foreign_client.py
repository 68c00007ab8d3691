"""Bytes of another client are handled, and another client reads ours; in memory the same application does the same."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from datetime import UTC
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from harness import DEADLINE, ForeignClient, order

KEY_SCHEMA = """{"type": "record", "name": "Order_key", "namespace": "com.acme",
                 "fields": [{"name": "order_id", "type": "long"}]}"""
COUNT = 300


async def until(billing: Any, condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not condition():
            billing.progress.clear()
            await billing.progress.wait()


@pytest.fixture
def billing() -> Any:
    """The application, freshly imported: its lists are empty."""
    import billing

    return importlib.reload(billing)


def kafka_settings(bootstrap: str, registry: str, prefix: str, schemas: str) -> dict[str, Any]:
    return {
        "kafka.bootstrap_servers": bootstrap,
        "kafka.create_topics": True,
        "schema.registry_url": registry,
        "schema.path": schemas,
        "producers.topic_prefix": prefix,
    }


@pytest.mark.services("kafka", "registry")
async def test_avro_of_another_client_is_handled_and_another_client_reads_ours(
    kafka_bootstrap: str, registry_url: str, unique_name: str, schemas: str, billing: Any
) -> None:
    prefix = f"{unique_name}."
    foreign = ForeignClient(kafka_bootstrap, registry_url, prefix)
    value_schema = (Path(schemas) / "com/acme/Order.avsc").read_text()
    messages = [({"order_id": number}, order(number)) for number in range(COUNT)]
    app = billing.app
    with app.with_settings(kafka_settings(kafka_bootstrap, registry_url, prefix, schemas)):
        async with app.running():
            await asyncio.to_thread(foreign.write, "orders", value_schema, KEY_SCHEMA, messages)
            await until(billing, lambda: len(billing.seen) >= COUNT and sum(map(len, billing.counted)) >= COUNT)
            await until(billing, lambda: len(billing.invoiced) >= COUNT)
    by_number = {message.payload["order_id"]: message for message in billing.seen}
    assert sorted(by_number) == list(range(COUNT))
    assert len(billing.seen) == COUNT
    for number, message in by_number.items():
        assert message.payload == order(number)
        assert message.key == number
        assert message.headers["source"] == b"foreign"
        assert message.timestamp is not None
        assert message.timestamp.tzinfo is UTC
    for batch in billing.counted:
        assert 1 <= len(batch) <= 50
        assert len({message.partition for message in batch}) == 1
    read = await asyncio.to_thread(foreign.read, "invoices", COUNT)
    assert {key["order_id"] for key, _, _, _ in read} == set(range(COUNT))
    for key, value, headers, _ in read:
        assert value["order_id"] == key["order_id"]
        assert value["amount"] == Decimal(key["order_id"]).scaleb(-2)
        assert len(value["message_id"]) == 36
        assert headers["origin"] == b"billing"


async def outcome(billing: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """What the application did with the same input: everything that does not depend on the clock."""
    app = billing.app
    with app.with_settings(settings):
        async with app.running():
            await billing.to_orders.produce_many([{"payload": order(number)} for number in range(COUNT)])
            await billing.to_orders.produce_many(
                [
                    {"payload": order(number, tags=["again"]), "headers": [("n", str(number))]}
                    for number in range(0, COUNT, 3)
                ]
            )
            total = COUNT + len(range(0, COUNT, 3))
            await until(billing, lambda: len(billing.seen) >= total and sum(map(len, billing.counted)) >= total)
            await until(billing, lambda: len(billing.invoiced) >= total)

    # The partition is chosen by the key's bytes, which hold the id that each registry gave: compared is each key's own
    # sequence, and which key it was.
    handled: dict[int, list[Any]] = {}
    for message in billing.seen:
        handled.setdefault(message.key, []).append((message.payload, list(message.headers), message.raw_key[5:]))
    batched: dict[int, list[Any]] = {}
    for message in (message for batch in billing.counted for message in batch):
        batched.setdefault(message.key, []).append(message.payload)
    invoiced: dict[int, list[Any]] = {}
    for message in billing.invoiced:
        invoiced.setdefault(message.key["order_id"], []).append((message.payload["amount"], list(message.headers)))
    return {"handled": handled, "batched": batched, "invoiced": invoiced}


@pytest.mark.services("kafka", "registry")
async def test_same_application_gives_equal_results_in_memory_and_on_kafka(
    kafka_bootstrap: str, registry_url: str, unique_name: str, schemas: str
) -> None:
    import billing

    memory = await outcome(
        importlib.reload(billing), {"embedded": True, "schema.path": schemas, "producers.topic_prefix": ""}
    )
    kafka = await outcome(
        importlib.reload(billing), kafka_settings(kafka_bootstrap, registry_url, f"{unique_name}.", schemas)
    )

    assert len(memory["handled"]) == COUNT
    assert memory == kafka
