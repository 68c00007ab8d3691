"""Codecs of topics: schemas, keys, the registry, and what comes back."""

import asyncio
import json
import pickle
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from deimos_async.errors import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    NotRunningError,
    RegistryUnavailableError,
    SchemaIncompatibleError,
    SchemaNotFoundError,
)
from deimos_async.schemas.backends import backend
from deimos_async.schemas.codec import TopicCodec, UnknownWriter, build_codec
from deimos_async.schemas.files import SchemaFiles
from deimos_async.schemas.memory_registry import MemorySchemaRegistry
from deimos_async.schemas.protocol import RegisteredSchema, SchemaReference
from deimos_async.schemas.wire import frame, frame_prefix, schema_id
from deimos_async.topics import UNSET, Key, TopicOptions

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


class CountingRegistry(MemorySchemaRegistry):
    """Counts questions; `away` lets them fail; while `gate` is not set, they wait."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: Counter[str] = Counter()
        self.subjects: list[str] = []
        self.away = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.waiting = asyncio.Event()

    async def _count(self, question: str) -> None:
        self.asked[question] += 1
        self.waiting.set()
        await self.gate.wait()
        if self.away:
            raise RegistryUnavailableError("nobody answers")

    async def register(self, subject: str, text: str, **more: Any) -> RegisteredSchema:
        await self._count("register")
        self.subjects.append(subject)
        return await super().register(subject, text, **more)

    async def lookup(self, subject: str, text: str, **more: Any) -> RegisteredSchema:
        await self._count("lookup")
        return await super().lookup(subject, text, **more)

    async def by_id(self, id: int) -> RegisteredSchema:
        await self._count("by_id")
        return await super().by_id(id)

    async def latest(self, subject: str) -> RegisteredSchema:
        await self._count("latest")
        return await super().latest(subject)

    async def version(self, subject: str, version: int) -> RegisteredSchema:
        await self._count("version")
        return await super().version(subject, version)


def record(full_name: str, *fields: Any) -> dict[str, Any]:
    """A record; fields are (name, type) or (name, type, default)."""
    namespace, _, name = full_name.rpartition(".")
    return {
        "type": "record",
        "name": name,
        "namespace": namespace,
        "fields": [
            {"name": entry[0], "type": entry[1]} | ({"default": entry[2]} if len(entry) > 2 else {}) for entry in fields
        ],
    }


CUSTOMER = record("com.acme.Customer", ("id", "string"))
ORDER = record("com.acme.Order", ("order_id", "long"), ("note", "string", ""), ("customer", ["null", CUSTOMER], None))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, Any]], None]:
    def put(schema: dict[str, Any]) -> None:
        path = tmp_path.joinpath(*schema["namespace"].split("."), schema["name"] + ".avsc")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(schema), "utf-8")

    put(ORDER)
    put(record("com.acme.OrderKey", ("region", "string"), ("id", "long")))
    return put


@pytest.fixture
def registry() -> CountingRegistry:
    return CountingRegistry()


@pytest.fixture
def build(tmp_path: Path, registry: CountingRegistry, write: Any) -> Callable[..., TopicCodec]:
    def made(
        *,
        name: str = "avro_schema_registry",
        topic: str = "orders",
        asks: Any = registry,
        clock: Any = None,
        **said: Any,
    ) -> TopicCodec:
        options = TopicOptions(**{"schema": "com.acme.Order", "key": Key.field("order_id"), **said})
        asked = asks if backend(name).uses_registry else None
        more = {} if clock is None else {"clock": clock}
        return build_codec(topic, options, SchemaFiles(tmp_path), asked, name, latest_ttl=300.0, **more)

    return made


Build = Callable[..., TopicCodec]
FULL = {"order_id": 1, "note": "", "customer": None}


# --- the wire -------------------------------------------------------------------------------------------------------


async def test_payload_and_key_are_framed_avro(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    value = await codec.encode_payload({"order_id": 1, "note": "hi"})
    key = await codec.encode_key(1)
    # long 1 is 0x02 (zig-zag), a string of two bytes 0x04 and the bytes, the null branch 0x00
    assert value == b"\x00\x00\x00\x00\x01" + b"\x02\x04hi\x00"
    assert key == b"\x00\x00\x00\x00\x02" + b"\x02"
    assert (await registry.by_id(1)).text == json.dumps(ORDER_TEXT, separators=(",", ":"))
    assert await codec.decode_payload(value) == {"order_id": 1, "note": "hi", "customer": None}
    assert await codec.decode_key(key) == 1


ORDER_TEXT = {
    "type": "record",
    "name": "Order",
    "namespace": "com.acme",
    "fields": [
        {"name": "order_id", "type": "long"},
        {"name": "note", "type": "string", "default": ""},
        {
            "name": "customer",
            "type": [
                "null",
                {"type": "record", "name": "Customer", "fields": [{"name": "id", "type": "string"}]},
            ],
            "default": None,
        },
    ],
}


async def test_none_is_a_tombstone_both_ways(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    assert await codec.encode_payload(None) is None
    assert await codec.decode_payload(None) is None
    assert await codec.decode_key(None) is None
    assert codec.encode_payload_now(None) is None
    assert codec.decode_payload_now(None) is None
    assert codec.decode_key_now(None) is None
    assert not registry.asked


@pytest.mark.parametrize(
    ("strategy", "subjects"),
    [
        (UNSET, ["dev.orders-value", "dev.orders-key"]),
        ("topic", ["dev.orders-value", "dev.orders-key"]),
        ("record", ["com.acme.Order", "com.acme.Order_key"]),
        ("topic_record", ["dev.orders-com.acme.Order", "dev.orders-com.acme.Order_key"]),
    ],
)
async def test_subjects_have_the_prefix_for_values_and_keys(
    build: Build, registry: CountingRegistry, strategy: Any, subjects: list[str]
) -> None:
    await build(topic="dev.orders", subject_strategy=strategy).prepare()
    assert registry.subjects == subjects


async def test_errors_name_topic_schema_and_path(build: Build) -> None:
    codec = build()
    with pytest.raises(EncodeError) as caught:
        await codec.encode_payload({"order_id": "x", "customer": {"id": None}})
    assert caught.value.topic == "orders"
    assert caught.value.schema == "com.acme.Order"
    assert caught.value.path == "order_id"
    assert len(caught.value.errors) == 2
    for call in (codec.coerce, codec.validate):
        with pytest.raises(EncodeError) as caught:
            call({"order_id": "x"})
        assert caught.value.topic == "orders"
    data = await codec.encode_payload({"order_id": 1})
    assert data is not None
    for broken in (data[:-1], data + b"!"):
        with pytest.raises(DecodeError) as refused:
            codec.decode_payload_now(broken)
        assert refused.value.topic == "orders"
        assert pickle.loads(pickle.dumps(refused.value)).topic == "orders"


@pytest.mark.parametrize("data", [b"", b"\x00\x00", b'{"order_id": 1}', b"\x00\x00\x00\x00\x00x"])
async def test_bytes_outside_the_wire_format_are_an_error_without_a_question(
    build: Build, registry: CountingRegistry, data: bytes
) -> None:
    codec = build()
    for call in (codec.decode_payload, codec.decode_key):
        with pytest.raises(DecodeError) as caught:
            await call(data)
        assert caught.value.topic == "orders"
    assert not registry.asked


def test_coercion_validation_and_fields_need_no_registry(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    assert codec.coerce({"order_id": "7", "unknown": 1}) == {"order_id": 7, "note": "", "customer": None}
    with pytest.raises(EncodeError):
        codec.validate({"order_id": "7"})
    assert [field.name for field in codec.schema_fields()] == ["order_id", "note", "customer"]
    assert not registry.asked


def test_unknown_fields_are_refused_where_that_is_wanted(build: Build) -> None:
    codec = build(unknown_fields="error")
    with pytest.raises(EncodeError, match="unknown"):
        codec.coerce({"order_id": 7, "unknown": 1})


# --- preparation ----------------------------------------------------------------------------------------------------


def test_encoding_before_preparation_tells_what_to_do(build: Build) -> None:
    codec = build()
    assert not codec.prepared
    with pytest.raises(NotRunningError, match=r"'orders'.*await prepare"):
        codec.encode_payload_now(codec.coerce({"order_id": 1}))
    with pytest.raises(NotRunningError):
        codec.encode_key_now(1)


async def test_prepared_codec_encodes_without_questions(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    await codec.prepare()
    assert codec.prepared
    assert registry.asked == {"register": 2}
    await codec.prepare()
    data = codec.encode_payload_now(codec.coerce({"order_id": 1}))
    assert codec.payload_decoder(data) == FULL
    assert codec.key_decoder(codec.encode_key_now(0)) == 0
    assert registry.asked == {"register": 2}


async def test_thousand_first_payloads_make_one_registration(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    registry.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(codec.encode_payload({"order_id": number})) for number in range(1000)]
        await registry.waiting.wait()
        registry.gate.set()
    assert registry.asked == {"register": 1}
    assert [codec.decode_payload_now(task.result())["order_id"] for task in tasks] == list(range(1000))


async def test_thousand_first_messages_of_a_writer_make_one_question(build: Build, registry: CountingRegistry) -> None:
    data = await build().encode_payload({"order_id": 1})
    codec = build()
    registry.asked.clear()
    registry.waiting.clear()
    registry.gate.clear()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(codec.decode_payload(data)) for _ in range(1000)]
        await registry.waiting.wait()
        registry.gate.set()
    assert registry.asked == {"by_id": 1}
    assert all(task.result() == FULL for task in tasks)


async def test_cancelled_first_asker_leaves_the_others_their_answer(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    registry.gate.clear()
    first = asyncio.ensure_future(codec.encode_payload({"order_id": 1}))
    await registry.waiting.wait()
    second = asyncio.ensure_future(codec.encode_payload({"order_id": 2}))
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    registry.gate.set()
    assert codec.decode_payload_now(await second)["order_id"] == 2
    assert registry.asked == {"register": 1}


async def test_registry_that_is_away_is_asked_again(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    registry.away = True
    with pytest.raises(RegistryUnavailableError):
        await codec.prepare()
    assert not codec.prepared
    registry.away = False
    await codec.prepare()
    assert codec.prepared


def test_codec_works_in_one_event_loop_after_another(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    data = asyncio.run(codec.encode_payload({"order_id": 1}))
    assert asyncio.run(build().decode_payload(data)) == FULL
    assert asyncio.run(codec.encode_key(1)) == frame(2, b"\x02")


async def test_schema_is_only_looked_up_where_it_may_not_be_registered(
    build: Build, registry: CountingRegistry
) -> None:
    careful = build(auto_register=False)
    with pytest.raises(SchemaNotFoundError, match=r"'orders'.*'orders-value'.*'schema\.auto_register'"):
        await careful.prepare()
    await build().prepare()
    registry.asked.clear()
    await careful.prepare()
    assert registry.asked == {"lookup": 2}
    assert schema_id(careful.encode_payload_now(careful.coerce({"order_id": 1})) or b"") == 1


async def test_refusal_of_the_registry_names_topic_and_schema(build: Build) -> None:
    class Strict(MemorySchemaRegistry):
        async def register(
            self, subject: str, text: str, *, schema_type: str = "AVRO", references: Sequence[SchemaReference] = ()
        ) -> RegisteredSchema:
            raise SchemaIncompatibleError("a field was removed")

    with pytest.raises(SchemaIncompatibleError, match=r"'orders': schema com\.acme\.Order: a field was removed"):
        await build(asks=Strict()).prepare()


# --- reading what others wrote --------------------------------------------------------------------------------------


async def test_consumer_never_registers(build: Build, registry: CountingRegistry) -> None:
    producer = build()
    data, key = await producer.encode_payload({"order_id": 1}), await producer.encode_key(1)
    registry.asked.clear()
    consumer = build()
    assert await consumer.decode_payload(data) == FULL
    assert await consumer.decode_key(key) == 1
    assert await consumer.decode_payload(data) == FULL
    assert registry.asked == {"by_id": 2}
    assert not consumer.prepared


async def test_plain_calls_ask_for_an_unknown_writer_once(build: Build, registry: CountingRegistry) -> None:
    producer = build()
    data, key = await producer.encode_payload({"order_id": 1}), await producer.encode_key(1)
    codec = build()
    with pytest.raises(UnknownWriter) as value:
        codec.payload_decoder(data)
    assert (value.value.id, value.value.is_key) == (1, False)
    with pytest.raises(UnknownWriter) as of_key:
        codec.key_decoder(key)
    assert (of_key.value.id, of_key.value.is_key) == (2, True)
    await codec.learn(value.value)
    await codec.learn(of_key.value)
    await codec.learn(value.value)
    assert codec.decode_payload_now(data) == FULL
    assert codec.decode_key_now(key) == 1
    assert registry.asked["by_id"] == 2


async def written(registry: MemorySchemaRegistry, schema: dict[str, Any], payload: Any, subject: str = "s") -> bytes:
    compiled = backend("avro_schema_registry").compile(json.dumps(schema))
    registered = await registry.register(subject, compiled.text)
    return frame(registered.id, compiled.encode(compiled.coerce(payload)))


async def test_writer_with_more_fields_is_read_without_them(build: Build, registry: CountingRegistry) -> None:
    newer = record("com.acme.Order", ("tags", {"type": "array", "items": "string"}), *fields(ORDER), ("extra", "int"))
    data = await written(registry, newer, {"order_id": 5, "note": "n", "tags": ["a"], "extra": 1})
    assert await build().decode_payload(data) == {"order_id": 5, "note": "n", "customer": None}


async def test_writer_with_fewer_fields_gets_defaults(build: Build, registry: CountingRegistry) -> None:
    older = record("com.acme.Order", ("order_id", "int"))
    assert await build().decode_payload(await written(registry, older, {"order_id": 5})) == FULL | {"order_id": 5}


def fields(schema: dict[str, Any]) -> list[Any]:
    return [
        (entry["name"], entry["type"], *([entry["default"]] if "default" in entry else []))
        for entry in schema["fields"]
    ]


async def test_writer_with_references_is_read(build: Build, registry: CountingRegistry) -> None:
    city = record("com.acme.City", ("name", "string"))
    customer = record("com.acme.Customer", ("id", "string"), ("city", "com.acme.City"))
    order = record("com.acme.Order", ("order_id", "long"), ("customer", "com.acme.Customer"))
    await registry.register("city", json.dumps(city))
    to_city = SchemaReference("com.acme.City", "city", 1)
    await registry.register("customer", json.dumps(customer), references=(to_city,))
    to_customer = SchemaReference("com.acme.Customer", "customer", 1)
    registered = await registry.register("order", json.dumps(order), references=(to_customer,))
    writer = backend("avro_schema_registry").compile(
        json.dumps(order), named={"com.acme.Customer": json.dumps(customer), "com.acme.City": json.dumps(city)}
    )
    data = frame(registered.id, writer.encode({"order_id": 1, "customer": {"id": "c", "city": {"name": "Bonn"}}}))
    assert await build().decode_payload(data) == {"order_id": 1, "note": "", "customer": {"id": "c"}}


async def test_writer_that_draws_in_too_much_is_refused(build: Build, registry: CountingRegistry) -> None:
    text = json.dumps(record("com.acme.Order", ("order_id", "long")))
    await registry.register("x", text)
    references = tuple(SchemaReference(f"com.acme.N{number}", "x", 1) for number in range(101))
    registered = await registry.register("order", text, references=references)
    with pytest.raises(DecodeError, match="more than 100"):
        await build().decode_payload(frame(registered.id, b"\x02"))


async def test_unknown_id_is_an_error_until_the_registry_knows_it(build: Build, registry: CountingRegistry) -> None:
    codec = build()
    data = frame(1, b"\x02\x00\x00")
    for _ in range(2):
        with pytest.raises(DecodeError, match="schema id 1") as caught:
            await codec.decode_payload(data)
        assert caught.value.topic == "orders"
    await build().prepare()
    assert await codec.decode_payload(data) == FULL


async def test_registry_that_is_away_is_not_the_messages_fault(build: Build, registry: CountingRegistry) -> None:
    data = await build().encode_payload({"order_id": 1})
    codec = build()
    registry.away = True
    with pytest.raises(RegistryUnavailableError):
        await codec.decode_payload(data)
    registry.away = False
    assert await codec.decode_payload(data) == FULL


@pytest.mark.parametrize(
    ("text", "schema_type", "problem"),
    [
        (json.dumps(record("com.acme.Invoice", ("order_id", "long"))), "AVRO", "com.acme.Invoice"),
        ('{"type": "record"}', "AVRO", "schema id 1"),
        ('{"type": "object"}', "JSON", "type JSON, not AVRO"),
        ('syntax = "proto3";', "PROTOBUF", "type PROTOBUF, not AVRO"),
    ],
)
async def test_unusable_writer_is_remembered(
    build: Build, registry: CountingRegistry, text: str, schema_type: str, problem: str
) -> None:
    await registry.register("x", text, schema_type=schema_type)
    codec = build()
    for _ in range(2):
        with pytest.raises(DecodeError, match=problem) as caught:
            await codec.decode_payload(frame(1, b"\x02"))
        assert caught.value.topic == "orders"
    assert registry.asked["by_id"] == 1


# --- the newest version ---------------------------------------------------------------------------------------------


async def test_newest_version_is_written_instead_of_the_files(build: Build, registry: CountingRegistry) -> None:
    newest = record("com.acme.Order", ("order_id", "long"), ("total", "double", 0.0), ("message_id", "string"))
    await registry.register("orders-value", json.dumps(newest))
    codec = build(use_latest_version=True)
    assert [field.name for field in codec.schema_fields()] == ["order_id", "note", "customer"]
    assert codec.complete({"order_id": 1}, NOW) == {"order_id": 1}
    await codec.prepare()
    assert [field.name for field in codec.schema_fields()] == ["order_id", "total", "message_id"]
    assert UUID(codec.complete({"order_id": 1}, NOW)["message_id"]).version == 4
    payload = codec.coerce({"order_id": "1", "total": "2.5", "message_id": "m", "note": "dropped"})
    assert payload == {"order_id": 1, "total": 2.5, "message_id": "m"}
    data = codec.encode_payload_now(payload)
    assert data is not None
    assert schema_id(data) == 1
    assert await codec.decode_payload(data) == FULL  # reading keeps to the file


async def test_subject_without_a_version_gets_the_files(build: Build, registry: CountingRegistry) -> None:
    codec = build(use_latest_version=True)
    await codec.prepare()
    assert registry.subjects == ["orders-value", "orders-key"]


async def test_newest_version_is_asked_for_again_after_its_time(build: Build, registry: CountingRegistry) -> None:
    now = [0.0]
    older = record("com.acme.Order", ("order_id", "long"))
    newer = record("com.acme.Order", ("order_id", "long"), ("total", "double", 0.0))
    await registry.register("orders-value", json.dumps(older))
    codec = build(use_latest_version=True, key=Key.plain(), clock=lambda: now[0])
    await codec.prepare()
    await registry.register("orders-value", json.dumps(newer))
    now[0] = 299.9
    assert codec.prepared
    now[0] = 300.0
    assert not codec.prepared
    payload = codec.coerce({"order_id": 1})
    assert schema_id(codec.encode_payload_now(payload) or b"") == 1  # what is known can still be written
    await codec.prepare()
    assert codec.prepared
    assert schema_id(codec.encode_payload_now(codec.coerce({"order_id": 1})) or b"") == 2


async def test_schema_without_a_file_comes_from_the_registry(build: Build, registry: CountingRegistry) -> None:
    said = {"schema": "com.acme.Remote", "use_latest_version": True, "key": Key.field("id")}
    codec = build(**said)
    with pytest.raises(NotRunningError, match=r"com\.acme\.Remote"):
        codec.coerce({"id": 1})
    with pytest.raises(SchemaNotFoundError, match=r"com\.acme\.Remote is neither below 'schema\.path' nor"):
        await codec.prepare()
    await registry.register("orders-value", json.dumps(record("com.acme.Remote", ("id", "long"), ("x", "int", 3))))
    await registry.register("orders-key", json.dumps(record("com.acme.Remote_key", ("id", "long"))))
    await codec.prepare()
    data = codec.encode_payload_now(codec.coerce({"id": 1}))
    assert codec.decode_payload_now(data) == {"id": 1, "x": 3}
    assert codec.decode_key_now(codec.encode_key_now(5)) == 5
    older = await written(registry, record("com.acme.Remote", ("id", "long")), {"id": 2})
    assert await build(**said).decode_payload(older) == {"id": 2}  # as its writer wrote it


# --- keys -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["avro_schema_registry", "avro_local", "avro_validation"])
@pytest.mark.parametrize("kind", ["long", "string", "boolean"])
async def test_falsy_field_keys_come_back_bare(build: Build, write: Any, name: str, kind: str) -> None:
    falsy = {"long": 0, "string": "", "boolean": False}[kind]
    write(record("com.acme.Thing", ("id", kind)))
    codec = build(name=name, schema="com.acme.Thing", key=Key.field("id"))
    _, key = codec.choose_key({"id": falsy}, None)
    assert key is falsy
    decoded = await codec.decode_key(await codec.encode_key(key))
    assert decoded == falsy
    assert type(decoded) is type(falsy)


@pytest.mark.parametrize("name", ["avro_schema_registry", "avro_validation", "avro_local"])
async def test_dotted_field_key_is_symmetric(build: Build, name: str) -> None:
    codec = build(name=name, key=Key.field("customer.id"))
    _, key = codec.choose_key({"order_id": 1, "customer": {"id": "c7"}}, None)
    assert key == "c7"
    assert await codec.decode_key(await codec.encode_key(key)) == "c7"
    assert await codec.decode_key(await codec.encode_key({"id": "c8"})) == "c8"


async def test_field_key_takes_a_mapping_as_the_key_payload(build: Build) -> None:
    codec = build()
    assert await codec.encode_key({"order_id": "5"}) == await codec.encode_key(5)
    assert await codec.encode_key("5") == await codec.encode_key(5)
    with pytest.raises(EncodeError) as caught:
        await codec.encode_key({"other": 5})
    assert caught.value.schema == "com.acme.Order_key"
    assert caught.value.topic == "orders"


async def test_generated_key_schema_is_that_of_deimos(build: Build, registry: CountingRegistry) -> None:
    await build().prepare()
    assert json.loads((await registry.latest("orders-key")).text) == {
        "type": "record",
        "name": "Order_key",
        "namespace": "com.acme",
        "doc": "Key for com.acme.Order - autogenerated by Deimos",
        "fields": [{"name": "order_id", "type": "long"}],
    }


async def test_key_schema_on_disk_wins_over_a_generated_one(
    build: Build, write: Any, registry: CountingRegistry
) -> None:
    write(record("com.acme.Order_key", ("order_id", "string"), ("version", "int", 1)))
    codec = build()
    key = await codec.encode_key(5)
    assert key == frame_prefix(1) + b"\x025\x02"
    assert await codec.decode_key(key) == "5"


@pytest.mark.parametrize(
    "key", [Key.schema("com.acme.OrderKey"), Key.schema("OrderKey"), Key.schema("OrderKey", "com.acme")]
)
async def test_schema_key_is_a_mapping_in_the_topics_namespace(build: Build, key: Any) -> None:
    codec = build(key=key)
    data = await codec.encode_key({"region": "eu", "id": 0})
    assert await codec.decode_key(data) == {"region": "eu", "id": 0}
    with pytest.raises(EncodeError, match=r"com\.acme\.OrderKey"):
        await codec.encode_key({"region": "eu"})
    with pytest.raises(EncodeError, match=r"com\.acme\.OrderKey"):
        await codec.encode_key(5)


async def test_schema_key_takes_the_namespace_option(build: Build) -> None:
    codec = build(schema="Order", namespace="com.acme", key=Key.schema("OrderKey"))
    assert await codec.decode_key(await codec.encode_key({"region": "", "id": 1})) == {"region": "", "id": 1}


@pytest.mark.parametrize("key", [Key.plain(), Key.field("order_id"), Key.schema("OrderKey")])
async def test_missing_key_is_an_error_with_the_topic(build: Build, key: Any) -> None:
    codec = build(key=key)
    await codec.prepare()
    with pytest.raises(EncodeError, match=r"'orders'.*a key is required"):
        codec.encode_key_now(None)
    with pytest.raises(EncodeError, match=r"'orders'.*a key is required"):
        await codec.encode_key(None)


async def test_topic_without_keys_refuses_one_and_gives_their_bytes(build: Build) -> None:
    codec = build(key=Key.none())
    assert await codec.encode_key(None) is None
    with pytest.raises(EncodeError, match="this topic has no keys") as caught:
        await codec.encode_key(0)
    assert caught.value.topic == "orders"
    assert codec.choose_key({"order_id": 1, "payload_key": 5}, None) == ({"order_id": 1}, 5)
    assert await codec.decode_key(b"\x00x") == b"\x00x"
    assert await codec.decode_key(None) is None


async def test_topic_declared_without_key_can_be_read_only(build: Build) -> None:
    codec = build(key=UNSET)
    assert await codec.decode_key(b"abc") == b"abc"
    with pytest.raises(EncodeError, match="declared without key="):
        await codec.encode_key(1)


async def test_plain_keys_are_text_unframed(build: Build) -> None:
    codec = build(key=Key.plain())
    assert await codec.encode_key(5) == b"5"
    assert await codec.decode_key(b"5") == "5"
    with pytest.raises(EncodeError) as caught:
        await codec.encode_key([1])
    assert caught.value.topic == "orders"


# --- backends without a registry ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["avro_local", "avro_validation"])
async def test_local_backend_is_prepared_and_needs_no_registry(build: Build, name: str) -> None:
    codec = build(name=name)
    assert codec.prepared
    await codec.prepare()
    data = codec.encode_payload_now(codec.coerce({"order_id": "3"}))
    assert codec.payload_decoder(data) == FULL | {"order_id": 3}
    assert codec.key_decoder(codec.encode_key_now(3)) == 3
    for call in (codec.decode_payload, codec.decode_key):
        with pytest.raises(DecodeError) as caught:
            await call(b"\xffgarbage")
        assert caught.value.topic == "orders"


async def test_plain_payloads_pass_as_bytes(build: Build) -> None:
    codec = build(name="plain", schema=None, key=Key.plain())
    assert codec.prepared
    assert await codec.encode_payload("hi") == b"hi"
    assert await codec.encode_payload("") == b""
    assert await codec.decode_payload(b"hi") == b"hi"
    with pytest.raises(EncodeError, match=r"'orders'.*json\.dumps"):
        await codec.encode_payload({"a": 1})
    assert codec.schema_fields() == ()
    assert codec.complete("hi", NOW) == "hi"


async def test_mock_keys_come_back(build: Build) -> None:
    codec = build(name="mock", key=Key.field("id"))
    assert await codec.encode_key(0) == b'{"id": 0}'
    assert await codec.decode_key(b'{"id": 0}') == 0
    assert await codec.encode_payload("text") == b"payload-encoded"


# --- automatic fields -----------------------------------------------------------------------------------------------


EVENT = record("com.acme.Event", ("id", "long"), ("message_id", "string"), ("timestamp", "string"))


@dataclass
class Event:
    id: int
    message_id: str | None = None
    timestamp: str = ""


@pytest.fixture
def events(build: Build, write: Any) -> TopicCodec:
    write(EVENT)
    return build(schema="com.acme.Event", key=Key.field("message_id"))


@pytest.mark.parametrize("given", [{"id": 1}, {"id": 1, "message_id": "", "timestamp": None}, Event(1)])
def test_missing_automatic_fields_are_filled(events: TopicCodec, given: Any) -> None:
    before = dict(given) if isinstance(given, dict) else Event(1)
    completed = events.complete(given, NOW)
    assert completed["id"] == 1
    assert UUID(completed["message_id"]).version == 4
    assert datetime.fromisoformat(completed["timestamp"]) == NOW
    assert given == before
    assert events.complete(given, NOW)["message_id"] != completed["message_id"]


def test_one_missing_field_is_filled_and_the_other_kept(events: TopicCodec) -> None:
    completed = events.complete({"id": 1, "message_id": "mine"}, NOW)
    assert completed["message_id"] == "mine"
    assert set(completed) == {"id", "message_id", "timestamp"}


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        {"payload_key": 1},
        {"payload_key": 1, "partition_key": 2},
        {"partition_key": 2},
        {"id": 1, "message_id": "a", "timestamp": "b"},
        Event(1, "a", "b"),
        "no mapping",
    ],
)
def test_tombstones_and_complete_payloads_are_left_alone(events: TopicCodec, given: Any) -> None:
    assert events.complete(given, NOW) is given


def test_automatic_timestamp_fits_its_type(build: Build, write: Any) -> None:
    millis = {"type": "long", "logicalType": "timestamp-millis"}
    write(record("com.acme.Event", ("id", "long"), ("timestamp", ["null", millis], None)))
    codec = build(schema="com.acme.Event", key=Key.field("id"))
    assert codec.complete({"id": 1}, NOW) == {"id": 1, "timestamp": NOW}
    codec.coerce(codec.complete({"id": 1}, NOW))


def test_schema_without_automatic_fields_gets_none(build: Build) -> None:
    given = {"order_id": 1}
    assert build().complete(given, NOW) is given


def test_automatic_message_id_can_be_the_key(events: TopicCodec) -> None:
    payload = events.complete({"id": 1}, NOW)
    assert events.choose_key(payload, None) == (payload, payload["message_id"])


# --- mistakes in declarations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said", "problem"),
    [
        ("avro_local", {"schema": "com.acme.Ordr"}, "did you mean com.acme.Order"),
        ("avro_local", {"schema": "../Order"}, "is not the full name of a schema"),
        ("avro_local", {"schema": None}, "'avro_local' needs schema="),
        ("avro_schema_registry", {"schema": None, "use_latest_version": True}, "needs schema="),
        ("avro_local", {"schema": UNSET}, "'avro_local' needs schema="),
        ("avro_local", {"schema": "Nope", "use_latest_version": True}, "schema Nope is not at"),
        ("avro_local", {"key": Key.field("ordr_id")}, "'ordr_id'.*com.acme.Order"),
        ("avro_local", {"key": Key.field("customer.nr")}, "'customer.nr'"),
        ("avro_local", {"key": Key.field("customer")}, "'customer'"),
        ("avro_local", {"key": Key.schema("OrdrKey")}, "com.acme.OrdrKey.*did you mean com.acme.OrderKey"),
        ("avro_local", {"key": "order_id"}, "key='order_id' is none of"),
        ("avro_local", {"unknown_fields": "keep"}, "unknown_fields='keep' is none of 'drop', 'error'"),
        ("avro_local", {"subject_strategy": "table"}, "subject_strategy='table' is none of"),
        ("plain", {"schema": None, "key": Key.field("id")}, "'plain' has no key schemas; use Key.plain"),
        ("plain", {"schema": None, "key": Key.schema("K")}, "'plain' has no key schemas; use Key.plain"),
        ("avro_schema_registry", {"asks": None}, "needs a registry; set 'schema.registry_url'"),
    ],
)
def test_mistake_names_the_topic_and_what_to_change(
    build: Build, name: str, said: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        build(name=name, **said)
    assert all(each.startswith("topic 'orders': ") for each in caught.value.problems)
    assert len(caught.value.problems) == 1


@pytest.mark.parametrize("name", ["proto_local", "avro_locl"])
def test_backend_that_is_not_there_names_the_topic(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^topic 'orders': schema backend '{name}'"):
        build_codec("orders", TopicOptions(schema="com.acme.Order"), SchemaFiles(tmp_path), None, name)


def test_several_mistakes_are_several_problems(build: Build) -> None:
    with pytest.raises(ConfigurationError) as caught:
        build(name="avro_local", schema="Nope", key=Key.schema("NopeKey"), unknown_fields="keep")
    assert len(caught.value.problems) == 3


def test_key_schema_on_disk_without_the_field_is_a_mistake(build: Build, write: Any) -> None:
    write(record("com.acme.Order_key", ("id", "long")))
    with pytest.raises(ConfigurationError, match=r"'order_id' .* is not in the key schema com\.acme\.Order_key.*id"):
        build()
    with pytest.raises(ConfigurationError, match=r"'id' .* is not in the schema com\.acme\.Order,"):
        build(key=Key.field("id"))
