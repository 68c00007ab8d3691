"""What the registry in memory promises beyond the port's contract."""

import asyncio

import pytest

from deimos_async.errors import RegistryError
from deimos_async.schemas.memory_registry import MemorySchemaRegistry

TEXT = '{"type":"string"}'


async def test_ids_and_versions_count_from_one() -> None:
    registry = MemorySchemaRegistry()
    first = await registry.register("a", TEXT)
    second = await registry.register("a", '"long"')
    third = await registry.register("b", '"long"')
    assert [(one.id, one.version) for one in (first, second, third)] == [(1, 1), (2, 2), (2, 1)]


async def test_same_text_of_another_type_has_another_id() -> None:
    registry = MemorySchemaRegistry()
    avro = await registry.register("a", TEXT)
    other = await registry.register("a", TEXT, schema_type="JSON")
    assert (avro.id, other.id) == (1, 2)
    assert (await registry.lookup("a", TEXT)).version == 1


async def test_protobuf_text_need_not_be_json_and_others_must() -> None:
    registry = MemorySchemaRegistry()
    text = 'syntax = "proto3"; message Order {}'
    assert (await registry.register("a", text, schema_type="PROTOBUF")).id == 1
    for schema_type in ("AVRO", "JSON"):
        with pytest.raises(RegistryError, match="not JSON"):
            await registry.register("b", text, schema_type=schema_type)
    assert (await registry.register("b", TEXT)).id == 2


def test_it_keeps_what_it_knows_from_one_loop_to_the_next() -> None:
    registry = MemorySchemaRegistry()

    async def register_and_close() -> int:
        found = await registry.register("a", TEXT)
        await registry.close()
        return found.id

    assert [asyncio.run(register_and_close()), asyncio.run(register_and_close())] == [1, 1]
