"""What every schema registry does: the one in memory, and the HTTP client on a small registry and on a real one."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import unquote

import httpx2
import pytest

from deimos_async.errors import RegistryError, SchemaNotFoundError
from deimos_async.schemas.memory_registry import MemorySchemaRegistry
from deimos_async.schemas.protocol import RegisteredSchema, SchemaReference
from deimos_async.schemas.registry import HttpSchemaRegistry, RegistryOptions, SchemaRegistry


class SmallRegistry:
    """Confluent's API over a registry in memory, as far as its documentation tells, without a socket."""

    def __init__(self) -> None:
        self._schemas = MemorySchemaRegistry()

    async def __call__(self, request: httpx2.Request) -> httpx2.Response:
        parts = [unquote(part) for part in request.url.raw_path.decode().split("/")[1:]]
        status = 200
        try:
            data = await self._answer(request.method, parts, request.content)
        except SchemaNotFoundError as error:
            status, data = 404, {"error_code": 40403, "message": str(error)}
        except RegistryError as error:
            status, data = 422, {"error_code": error.code, "message": str(error)}

        async def content() -> AsyncIterator[bytes]:
            yield json.dumps(data).encode()

        return httpx2.Response(status, content=content())

    async def _answer(self, method: str, parts: list[str], content: bytes) -> Any:
        schemas = self._schemas
        match method, parts:
            case "GET", ["schemas", "types"]:
                return ["AVRO"]
            case "GET", ["schemas", "ids", id]:
                return self._shown(await schemas.by_id(int(id)))
            case "GET", ["subjects", subject, "versions", "latest"]:
                return self._shown(await schemas.latest(subject))
            case "GET", ["subjects", subject, "versions", version]:
                return self._shown(await schemas.version(subject, int(version)))
            case "POST", ["subjects", subject, "versions"]:
                return {"id": (await schemas.register(subject, **self._posted(content))).id}
            case "POST", ["subjects", subject]:
                return self._shown(await schemas.lookup(subject, **self._posted(content)))
        raise AssertionError(parts)

    def _posted(self, content: bytes) -> dict[str, Any]:
        data = json.loads(content)
        references = [SchemaReference(**reference) for reference in data.get("references", [])]
        return {"text": data["schema"], "schema_type": data.get("schemaType", "AVRO"), "references": references}

    def _shown(self, schema: RegisteredSchema) -> dict[str, Any]:
        shown: dict[str, Any] = {"schema": schema.text}
        if schema.subject is not None:
            shown |= {"subject": schema.subject, "version": schema.version, "id": schema.id}
        if schema.schema_type != "AVRO":
            shown["schemaType"] = schema.schema_type
        if schema.references:
            shown["references"] = [
                {"name": one.name, "subject": one.subject, "version": one.version} for one in schema.references
            ]
        return shown


@pytest.fixture(params=["memory", "small", pytest.param("real", marks=pytest.mark.services("registry"))])
async def clients(request: pytest.FixtureRequest) -> AsyncIterator[Callable[[], SchemaRegistry]]:
    """Makes clients of one registry, each with a memory of its own."""
    made: list[SchemaRegistry] = []
    memory, small = MemorySchemaRegistry(), SmallRegistry()

    def make() -> SchemaRegistry:
        match request.param:
            case "memory":
                client: SchemaRegistry = memory
            case "small":
                options = RegistryOptions(urls=("http://small",))
                client = HttpSchemaRegistry(options, transport=httpx2.MockTransport(small))
            case _:
                client = HttpSchemaRegistry(RegistryOptions(urls=(request.getfixturevalue("registry_url"),)))
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()


def record(name: str, *fields: str, of: str = "long") -> str:
    listed = [
        {"name": field, "type": of, "default": None} if of == "null" else {"name": field, "type": of}
        for field in fields
    ]
    return json.dumps({"type": "record", "name": name, "namespace": "com.acme", "fields": listed})


async def test_registered_schema_is_found_by_id_version_and_text(
    clients: Callable[[], SchemaRegistry], unique_name: str
) -> None:
    text = record(unique_name, "id")
    registered = await clients().register(f"{unique_name}-value", text)
    assert registered.id > 0
    assert (registered.text, registered.schema_type, registered.references) == (text, "AVRO", ())
    assert registered.subject == f"{unique_name}-value"
    other = clients()
    found = await other.by_id(registered.id)
    assert (found.id, json.loads(found.text), found.schema_type, found.subject, found.version) == (
        registered.id,
        json.loads(text),
        "AVRO",
        None,
        None,
    )
    for again in (
        await clients().lookup(f"{unique_name}-value", text),
        await clients().latest(f"{unique_name}-value"),
        await clients().version(f"{unique_name}-value", 1),
    ):
        assert (again.id, again.subject, again.version) == (registered.id, f"{unique_name}-value", 1)
        assert json.loads(again.text) == json.loads(text)


async def test_same_text_has_one_id_under_all_subjects_and_one_version_in_each(
    clients: Callable[[], SchemaRegistry], unique_name: str
) -> None:
    text = record(unique_name, "id")
    first = await clients().register(f"{unique_name}-a", text)
    again = await clients().register(f"{unique_name}-a", text)
    elsewhere = await clients().register(f"{unique_name}-b", text)
    assert first.id == again.id == elsewhere.id
    assert (await clients().latest(f"{unique_name}-a")).version == 1
    assert (await clients().latest(f"{unique_name}-b")).version == 1


async def test_next_schema_of_a_subject_is_its_newest_version(
    clients: Callable[[], SchemaRegistry], unique_name: str
) -> None:
    old, new = record(unique_name, "id"), record(unique_name, "id", "age", of="null")
    first = await clients().register(unique_name, old)
    client = clients()
    assert (await client.latest(unique_name)).id == first.id
    second = await client.register(unique_name, new)
    assert second.id != first.id
    newest = await client.latest(unique_name)
    assert (newest.id, newest.version) == (second.id, 2)
    assert (await clients().version(unique_name, 1)).id == first.id
    assert (await clients().lookup(unique_name, old)).version == 1


async def test_references_come_back_with_the_schema(clients: Callable[[], SchemaRegistry], unique_name: str) -> None:
    await clients().register(f"{unique_name}-line", record(f"{unique_name}_line", "id"))
    reference = SchemaReference(f"com.acme.{unique_name}_line", f"{unique_name}-line", 1)
    text = record(unique_name, "line", of=reference.name)
    registered = await clients().register(unique_name, text, references=[reference])
    for found in (
        registered,
        await clients().by_id(registered.id),
        await clients().latest(unique_name),
        await clients().lookup(unique_name, text, references=[reference]),
    ):
        assert (found.id, found.references) == (registered.id, (reference,))


async def test_reference_to_something_unknown_is_refused(
    clients: Callable[[], SchemaRegistry], unique_name: str
) -> None:
    reference = SchemaReference("com.acme.Nothing", f"{unique_name}-nothing", 1)
    with pytest.raises(RegistryError) as caught:
        await clients().register(unique_name, record(unique_name, "x", of=reference.name), references=[reference])
    assert (caught.value.status, caught.value.retriable) == (422, False)
    with pytest.raises(SchemaNotFoundError):
        await clients().latest(unique_name)


async def test_text_that_is_no_schema_is_refused(clients: Callable[[], SchemaRegistry], unique_name: str) -> None:
    with pytest.raises(RegistryError) as caught:
        await clients().register(unique_name, "{no schema")
    assert (caught.value.status, caught.value.code) == (422, 42201)


async def test_other_schema_type_comes_back(clients: Callable[[], SchemaRegistry], unique_name: str) -> None:
    text = json.dumps({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "title": unique_name})
    registered = await clients().register(unique_name, text, schema_type="JSON")
    assert registered.schema_type == "JSON"
    assert (await clients().by_id(registered.id)).schema_type == "JSON"
    assert (await clients().latest(unique_name)).schema_type == "JSON"


@pytest.mark.parametrize("id", [-1, 0, 2**31 - 1, 2**31])
async def test_unknown_id_is_not_found(clients: Callable[[], SchemaRegistry], id: int) -> None:
    with pytest.raises(SchemaNotFoundError, match=str(id)):
        await clients().by_id(id)


async def test_unknown_subject_version_and_text_are_not_found(
    clients: Callable[[], SchemaRegistry], unique_name: str
) -> None:
    text = record(unique_name, "id")
    client = clients()
    with pytest.raises(SchemaNotFoundError, match=unique_name):
        await client.latest(unique_name)
    with pytest.raises(SchemaNotFoundError, match=unique_name):
        await client.version(unique_name, 1)
    with pytest.raises(SchemaNotFoundError, match=unique_name):
        await client.lookup(unique_name, text)
    await client.register(unique_name, text)
    with pytest.raises(SchemaNotFoundError, match=unique_name):
        await client.version(unique_name, 2)
    with pytest.raises(SchemaNotFoundError, match=unique_name):
        await client.version(unique_name, 0)
    with pytest.raises(SchemaNotFoundError, match=unique_name):
        await client.lookup(unique_name, record(unique_name, "other"))
    with pytest.raises(SchemaNotFoundError, match=unique_name):
        await client.lookup(f"{unique_name}-elsewhere", text)


async def test_registration_ends_what_was_not_found_before(
    clients: Callable[[], SchemaRegistry], unique_name: str
) -> None:
    text, client = record(unique_name, "id"), clients()
    with pytest.raises(SchemaNotFoundError):
        await client.lookup(unique_name, text)
    with pytest.raises(SchemaNotFoundError):
        await client.latest(unique_name)
    registered = await client.register(unique_name, text)
    assert (await client.lookup(unique_name, text)).id == registered.id
    assert (await client.latest(unique_name)).id == registered.id


async def test_subject_with_any_characters_is_found_again(
    clients: Callable[[], SchemaRegistry], unique_name: str
) -> None:
    subject = f"{unique_name}/a b%41?#&ü:value"
    registered = await clients().register(subject, record(unique_name, "id"))
    found = await clients().latest(subject)
    assert (found.id, found.subject) == (registered.id, subject)


async def test_closed_client_works_again(clients: Callable[[], SchemaRegistry], unique_name: str) -> None:
    client = clients()
    await client.ping()
    await client.close()
    await client.close()
    await client.ping()
    assert (await client.register(unique_name, record(unique_name, "id"))).id > 0
