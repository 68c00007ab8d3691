"""The schema registry is away or talks nonsense: messages wait, none is put aside, and all goes on by itself."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from fastavro import parse_schema, schemaless_writer
from fault_kafka import Encode, ProxiedKafka
from fault_proxy import TcpProxy, fault_lasts
from fault_trial import IS_CHAOS, WAITS, Trial
from servers import free_port

pytestmark = [pytest.mark.services("own_kafka"), pytest.mark.usefixtures("proxy")]

SCHEMAS = Path(__file__).parent / "schemas"
KEY_SCHEMA = """{"type": "record", "name": "Event_key", "namespace": "faults",
                 "fields": [{"name": "key", "type": "string"}]}"""
UNAUTHORIZED = (
    b"HTTP/1.1 401 Unauthorized\r\nContent-Type: application/json\r\nContent-Length: 47\r\nConnection: close\r\n\r\n"
    b'{"error_code":401,"message":"401 Unauthorized"}'
)
GARBAGE = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\nConnection: close\r\n\r\n<html>what?>"
)
NOT_HTTP = b"\x16\x03\x01\x00\xff\x00garbage\x00\r\n\r\n"
DOWN_SECONDS = 30.0 if IS_CHAOS else 5.0

FAULTS: dict[str, Callable[[TcpProxy], None]] = {
    "down": TcpProxy.cut,
    "silent": lambda proxy: proxy.silence(new=True),
    "answering 401": lambda proxy: proxy.answer(UNAUTHORIZED),
    "answering garbage": lambda proxy: proxy.answer(GARBAGE),
    "answering something else than HTTP": lambda proxy: proxy.answer(NOT_HTTP),
    "slow": lambda proxy: proxy.delay(3.0),
}


def avro_of_another_client(registry_url: str, topic: str) -> Encode:
    """Registers the schemas at the registry itself, and writes Confluent's wire format by hand with fastavro."""
    value_text = (SCHEMAS / "faults/Event.avsc").read_text()
    with SchemaRegistryClient({"url": registry_url, "timeout": 5, "max.retries": 5}) as client:
        value_id = client.register_schema(f"{topic}-value", Schema(value_text, "AVRO"))
        key_id = client.register_schema(f"{topic}-key", Schema(KEY_SCHEMA, "AVRO"))
    value_schema, key_schema = (parse_schema(json.loads(text)) for text in (value_text, KEY_SCHEMA))

    def framed(schema_id: int, schema: Any, record: dict[str, object]) -> bytes:
        data = io.BytesIO()
        data.write(b"\0" + schema_id.to_bytes(4, "big"))
        schemaless_writer(data, schema, record)
        return data.getvalue()

    def encode(topic: str, key: str, number: int) -> tuple[bytes, bytes]:
        return framed(key_id, key_schema, {"key": key}), framed(value_id, value_schema, {"key": key, "number": number})

    return encode


async def test_registry_faults_put_nothing_aside_and_members_go_on_by_themselves(
    fault_kafka: ProxiedKafka, registry_url: str, unique_name: str
) -> None:
    async with asyncio.TaskGroup() as trials:  # side by side, as most of the time they wait
        for number, kind in enumerate(FAULTS):
            trials.create_task(registry_trial(kind, fault_kafka, registry_url, f"{unique_name}_{number}"))


async def registry_trial(kind: str, kafka: ProxiedKafka, registry_url: str, prefix: str) -> None:
    """A member starts while the registry is bad, and later loses it altogether."""
    url = urlsplit(registry_url)
    assert url.hostname is not None
    assert url.port is not None
    encode = await asyncio.to_thread(avro_of_another_client, registry_url, f"{prefix}.events")
    async with TcpProxy(free_port(), (url.hostname, url.port)) as registry:
        environment = {
            "DEIMOS_SCHEMA__REGISTRY_URL": f"{url.scheme}://127.0.0.1:{registry.port}{url.path}",
            "DEIMOS_SCHEMA__PATH": str(SCHEMAS),
            "DEIMOS_SCHEMA__REQUEST_TIMEOUT": "1",
            "DEIMOS_SCHEMA__DEADLINE": "2",
        }
        name, groups = f"the registry {kind}", ("key",)
        async with Trial(
            name, kafka, prefix, groups=groups, environment=environment, encode=encode, fails=False
        ) as trial:
            trial.writer.start()
            FAULTS[kind](registry)
            member = await trial.start_member()
            await trial.until(lambda: member.said[WAITS] > 0, "a message waits for the registry")
            await fault_lasts(DOWN_SECONDS)
            assert not trial.ledger.lines, "nothing could be decoded yet"
            registry.heal()
            await trial.recovered()
            # What is known by now needs nobody.
            registry.cut()
            await trial.recovered()
            await trial.finish()
