"""The client of the schema registry, over scripted answers and simulated time."""

import asyncio
import inspect
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest

from deimos_async.errors import (
    ConfigurationError,
    RegistryError,
    RegistryUnavailableError,
    SchemaIncompatibleError,
    SchemaNotFoundError,
)
from deimos_async.schemas import registry as registry_module
from deimos_async.schemas.protocol import RegisteredSchema, SchemaReference
from deimos_async.schemas.registry import HttpSchemaRegistry, RegistryOptions

TEXT = '{"type":"string"}'
OTHER = '{"type":"long"}'

Script = Callable[[httpx2.Request], httpx2.Response | Awaitable[httpx2.Response]]


def answer(data: Any = None, status: int = 200, **headers: str) -> httpx2.Response:
    """An answer that is streamed, as answers from the network are."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, headers=named, content=_pieces(json.dumps(data).encode()))


def raw(content: bytes, status: int = 200, **headers: str) -> httpx2.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx2.Response(status, headers=named, content=_pieces(content))


async def _pieces(content: bytes) -> AsyncIterator[bytes]:
    yield content


def refusal(status: int, code: int | None, message: str = "no") -> httpx2.Response:
    return answer({"error_code": code, "message": message} if code else {"message": message}, status)


class World:
    """The other side and the time: a script of answers, the requests that came, a clock that only `sleep` moves."""

    def __init__(self) -> None:
        self.requests: list[httpx2.Request] = []
        self.script: Script = lambda request: answer({"schema": TEXT})
        self.now = 1000.0
        self.slept: list[float] = []
        self.closed = 0

    def client(self, **options: Any) -> HttpSchemaRegistry:
        return HttpSchemaRegistry(
            RegistryOptions(**{"urls": ("http://one",)} | options),
            clock=lambda: self.now,
            sleep=self._sleep,
            random=lambda: 1.0,
            transport=_Transport(self),
        )

    def answers(self, *answers: httpx2.Response | Exception) -> None:
        """These in turn."""
        left = list(answers)

        def script(request: httpx2.Request) -> httpx2.Response:
            found = left.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        self.script = script

    @property
    def asked(self) -> list[str]:
        return [f"{request.method} {request.url.raw_path.decode()}" for request in self.requests]

    @property
    def hosts(self) -> list[str]:
        return [request.url.host for request in self.requests]

    async def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class _Transport(httpx2.AsyncBaseTransport):
    def __init__(self, world: World) -> None:
        self._world = world

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self._world.requests.append(request)
        found = self._world.script(request)
        return await found if inspect.isawaitable(found) else found

    async def aclose(self) -> None:
        self._world.closed += 1


@pytest.fixture
def world() -> World:
    return World()


# What is asked and how


async def test_registration_posts_only_the_text_for_avro_without_references(world: World) -> None:
    world.answers(answer({"id": 7}))
    found = await world.client().register("orders-value", TEXT)
    assert found == RegisteredSchema(7, TEXT, "AVRO", (), "orders-value", None)
    [request] = world.requests
    assert world.asked == ["POST /subjects/orders-value/versions"]
    assert json.loads(request.content) == {"schema": TEXT}
    assert request.headers["Content-Type"] == "application/vnd.schemaregistry.v1+json"


async def test_registration_posts_type_and_references_where_there_are_some(world: World) -> None:
    world.answers(answer({"id": 7, "version": 3}))
    reference = SchemaReference("com.acme.Line", "line", 2)
    found = await world.client().register("s", TEXT, schema_type="JSON", references=[reference])
    assert (found.version, found.references) == (3, (reference,))
    assert json.loads(world.requests[0].content) == {
        "schema": TEXT,
        "schemaType": "JSON",
        "references": [{"name": "com.acme.Line", "subject": "line", "version": 2}],
    }


async def test_by_id_gives_type_and_references(world: World) -> None:
    world.answers(
        answer(
            {"schema": TEXT, "schemaType": "JSON", "references": [{"name": "n", "subject": "s", "version": 4}], "x": 1}
        )
    )
    assert await world.client().by_id(9) == RegisteredSchema(9, TEXT, "JSON", (SchemaReference("n", "s", 4),))
    assert world.asked == ["GET /schemas/ids/9"]


async def test_null_type_and_references_mean_avro_without_any(world: World) -> None:
    world.answers(answer({"schema": TEXT, "schemaType": None, "references": None}))
    assert await world.client().by_id(9) == RegisteredSchema(9, TEXT)


async def test_subject_is_escaped_as_one_part_of_the_path(world: World) -> None:
    world.answers(answer({"id": 1}))
    await world.client(urls=("http://one/base/",)).register("a/b ü%41?#&+-value", TEXT)
    assert world.asked == ["POST /base/subjects/a%2Fb%20%C3%BC%2541%3F%23%26%2B-value/versions"]


@pytest.mark.parametrize("subject", ["", ".", ".."])
async def test_subject_that_a_url_cannot_carry_is_refused_unasked(world: World, subject: str) -> None:
    with pytest.raises(ConfigurationError, match="subject"):
        await world.client().latest(subject)
    assert world.requests == []


@pytest.mark.parametrize("id", [0, -1, 2**31])
async def test_id_that_no_schema_has_is_not_asked_for(world: World, id: int) -> None:
    with pytest.raises(SchemaNotFoundError, match=str(id)):
        await world.client().by_id(id)
    assert world.requests == []


async def test_version_that_cannot_be_is_not_asked_for(world: World) -> None:
    with pytest.raises(SchemaNotFoundError, match="subject 's'"):
        await world.client().version("s", -1)
    assert world.requests == []


async def test_credentials_go_with_every_request(world: World) -> None:
    await world.client(user="ann", password="pw").by_id(1)
    await world.client(token="abc").by_id(1)
    await world.client().by_id(1)
    assert [request.headers.get("Authorization") for request in world.requests] == [
        "Basic YW5uOnB3",
        "Bearer abc",
        None,
    ]


async def test_environment_of_http_clients_is_not_used(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert (await world.client().by_id(1)).text == TEXT


# What is kept


async def test_id_is_asked_for_once_for_ever(world: World) -> None:
    client = world.client()
    first = await client.by_id(1)
    world.now += 1e9
    assert await client.by_id(1) == first
    assert len(world.requests) == 1


async def test_registered_text_is_registered_once_and_known_by_id_and_by_look_up(world: World) -> None:
    world.answers(answer({"id": 7}))
    client = world.client()
    found = await client.register("s", TEXT)
    assert await client.register("s", TEXT) == found
    assert await client.lookup("s", TEXT) == found
    assert await client.by_id(7) == RegisteredSchema(7, TEXT)
    assert len(world.requests) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "other"},
        {"text": OTHER},
        {"schema_type": "JSON"},
        {"references": (SchemaReference("n", "s", 1),)},
    ],
)
async def test_registration_of_something_else_is_asked_anew(world: World, change: dict[str, Any]) -> None:
    world.answers(answer({"id": 7}), answer({"id": 8}))
    client = world.client()
    await client.register("s", TEXT)
    assert (await client.register(**{"subject": "s", "text": TEXT} | change)).id == 8


async def test_text_that_was_read_by_id_stays_when_another_layout_gets_the_same_id(world: World) -> None:
    world.answers(answer({"schema": TEXT}), answer({"id": 7}))
    client = world.client()
    await client.by_id(7)
    assert (await client.register("s", '{ "type": "string" }')).text == '{ "type": "string" }'
    assert (await client.by_id(7)).text == TEXT


async def test_looked_up_schema_is_known_by_id_version_and_registration(world: World) -> None:
    world.answers(answer({"subject": "s", "version": 3, "id": 7, "schema": TEXT}))
    client = world.client()
    found = await client.lookup("s", TEXT)
    assert found == RegisteredSchema(7, TEXT, subject="s", version=3)
    assert await client.by_id(7) == RegisteredSchema(7, TEXT)
    assert await client.version("s", 3) == found
    assert await client.register("s", TEXT) == found
    assert world.asked == ["POST /subjects/s"]


async def test_newest_version_is_asked_for_again_after_its_time(world: World) -> None:
    world.answers(
        answer({"subject": "s", "version": 1, "id": 7, "schema": TEXT}),
        answer({"subject": "s", "version": 2, "id": 8, "schema": OTHER}),
    )
    client = world.client(latest_ttl=60.0)
    assert (await client.latest("s")).id == 7
    world.now += 59
    assert (await client.latest("s")).id == 7
    world.now += 2
    assert (await client.latest("s")).id == 8
    assert (await client.version("s", 1)).id == 7
    assert world.asked == ["GET /subjects/s/versions/latest"] * 2


async def test_newest_version_is_asked_for_again_after_a_registration(world: World) -> None:
    world.answers(
        answer({"subject": "s", "version": 1, "id": 7, "schema": TEXT}),
        answer({"id": 8}),
        answer({"subject": "s", "version": 2, "id": 8, "schema": OTHER}),
    )
    client = world.client()
    await client.latest("s")
    await client.register("s", OTHER)
    assert (await client.latest("s")).version == 2


async def test_newest_version_that_was_asked_for_before_a_registration_is_not_kept(world: World) -> None:
    begun, may_answer = asyncio.Event(), asyncio.Event()

    async def script(request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            return answer({"id": 8})
        if begun.is_set():
            return answer({"subject": "s", "version": 2, "id": 8, "schema": OTHER})
        begun.set()
        await may_answer.wait()
        return answer({"subject": "s", "version": 1, "id": 7, "schema": TEXT})

    world.script = script
    client = world.client()
    early = asyncio.create_task(client.latest("s"))
    await begun.wait()
    await client.register("s", OTHER)
    may_answer.set()
    assert (await early).version == 1
    assert (await client.latest("s")).version == 2


async def test_missing_id_is_not_asked_for_again_for_a_while(world: World) -> None:
    world.answers(refusal(404, 40403), answer({"schema": TEXT}))
    client = world.client(missing_ttl=10.0)
    for _ in range(3):
        with pytest.raises(SchemaNotFoundError, match="no schema with id 5"):
            await client.by_id(5)
    assert len(world.requests) == 1
    world.now += 11
    assert (await client.by_id(5)).text == TEXT


async def test_registration_ends_what_was_believed_missing(world: World) -> None:
    latest = {"subject": "s", "version": 1, "id": 5, "schema": TEXT}
    world.answers(refusal(404, 40403), refusal(404, 40401), refusal(404, 40401), answer({"id": 5}), answer(latest))
    client = world.client()
    for question in (client.by_id(5), client.latest("s"), client.lookup("s", TEXT)):
        with pytest.raises(SchemaNotFoundError):
            await question
    await client.register("s", TEXT)
    assert (await client.by_id(5)).text == TEXT
    assert (await client.lookup("s", TEXT)).id == 5
    assert (await client.latest("s")).version == 1


async def test_memory_of_missing_ids_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "_MOST_MISSING", 3)
    world.script = lambda request: refusal(404, 40403)
    client = world.client()
    for id in (1, 2, 3, 4, 1):
        with pytest.raises(SchemaNotFoundError):
            await client.by_id(id)
    assert len(world.requests) == 5
    assert len(client._missing._known) == 3


async def test_thousand_first_questions_make_one_request(world: World) -> None:
    begun, may_answer = asyncio.Event(), asyncio.Event()

    async def script(request: httpx2.Request) -> httpx2.Response:
        begun.set()
        await may_answer.wait()
        return answer({"id": 3}) if request.method == "POST" else answer({"schema": TEXT})

    world.script = script
    client = world.client()
    by_id = [asyncio.create_task(client.by_id(1)) for _ in range(1000)]
    registering = [asyncio.create_task(client.register("s", TEXT)) for _ in range(1000)]
    await begun.wait()
    by_id[0].cancel()
    registering[0].cancel()
    may_answer.set()
    found = await asyncio.gather(*by_id[1:], *registering[1:])
    assert {(schema.id, schema.text) for schema in found} == {(1, TEXT), (3, TEXT)}
    assert sorted(world.asked) == ["GET /schemas/ids/1", "POST /subjects/s/versions"]


async def test_cached_answers_are_served_while_the_registry_is_away(world: World) -> None:
    latest = {"subject": "s", "version": 1, "id": 7, "schema": TEXT}
    world.answers(answer(latest))
    client = world.client(latest_ttl=60.0, missing_ttl=10.0)
    await client.latest("s")
    world.now += 61
    world.requests.clear()
    world.answers(httpx2.ConnectError("away"), answer(latest | {"version": 2, "id": 8}))
    assert (await client.by_id(7)).text == TEXT
    assert (await client.version("s", 1)).id == 7
    assert world.requests == []
    assert (await client.latest("s")).version == 1
    assert (await client.latest("s")).version == 1
    assert (len(world.requests), world.slept) == (1, [])
    world.now += 11
    assert (await client.latest("s")).version == 2


async def test_newest_version_of_a_deleted_subject_is_not_served_any_more(world: World) -> None:
    world.answers(answer({"subject": "s", "version": 1, "id": 7, "schema": TEXT}), refusal(404, 40401))
    client = world.client(latest_ttl=60.0)
    await client.latest("s")
    world.now += 61
    with pytest.raises(SchemaNotFoundError, match="subject 's'"):
        await client.latest("s")
    with pytest.raises(SchemaNotFoundError):
        await client.latest("s")
    assert len(world.requests) == 2


# Failures, retries, fail-over


@pytest.mark.parametrize(
    "failure",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadError("reset"),
        httpx2.ReadTimeout("slow"),
        httpx2.RemoteProtocolError("nonsense"),
        OSError("no route"),
        refusal(408, None),
        refusal(425, None),
        refusal(429, 42901),
        refusal(500, 50001),
        refusal(503, None),
        raw(b"<html>", 502),
    ],
    ids=repr,
)
async def test_failure_that_may_pass_is_tried_again(world: World, failure: Any) -> None:
    world.answers(failure, answer({"schema": TEXT}))
    assert (await world.client().by_id(1)).text == TEXT
    assert world.slept == pytest.approx([0.1])


async def test_waits_grow_until_the_deadline_and_the_error_names_setting_and_url(world: World) -> None:
    def script(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("refused")

    world.script = script
    with pytest.raises(RegistryUnavailableError, match=r"schema\.registry_url.*http://one: refused") as caught:
        await world.client(deadline=30.0).by_id(1)
    # 0.1, doubled to at most 5: 0.1+0.2+0.4+0.8+1.6+3.2+5+5+5+5 = 26.3, and another 5 would pass 30
    assert world.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5, 5])
    assert caught.value.retriable
    assert isinstance(caught.value.__cause__, httpx2.ConnectError)


async def test_error_is_not_kept(world: World) -> None:
    world.answers(refusal(422, 42201), answer({"schema": TEXT}))
    client = world.client()
    with pytest.raises(RegistryError):
        await client.by_id(1)
    assert (await client.by_id(1)).text == TEXT


async def test_request_without_an_answer_is_given_up_after_its_time(world: World) -> None:
    cancelled = asyncio.Event()

    async def script(request: httpx2.Request) -> httpx2.Response:
        if len(world.requests) > 1:
            return answer({"schema": TEXT})
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        raise AssertionError

    world.script = script
    assert (await world.client(request_timeout=0.01).by_id(1)).text == TEXT
    assert cancelled.is_set()


async def test_answer_that_never_ends_is_given_up_after_its_time(world: World) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b'{"schema": '
        await asyncio.Event().wait()

    world.script = lambda request: httpx2.Response(200, content=endless())
    with pytest.raises(RegistryUnavailableError, match=r"no answer within 0\.01 s"):
        await world.client(request_timeout=0.01, deadline=0.05).by_id(1)


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry_After": "7"}, 7.0),
        ({"Retry_After": "0"}, 0.1),
        ({"Retry_After": "-5"}, 0.1),
        ({"Retry_After": "soon"}, 0.1),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:09 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 9.0),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:09 GMT"}, 0.1),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:09 -0000", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.1),
    ],
)
async def test_retry_after_is_honoured(world: World, headers: dict[str, str], wait: float) -> None:
    world.answers(answer({}, 429, **headers), answer({"schema": TEXT}))
    await world.client().by_id(1)
    assert world.slept == pytest.approx([wait])


async def test_retry_after_beyond_the_deadline_ends_the_question_at_once(world: World) -> None:
    world.answers(answer({"message": "busy"}, 503, Retry_After="99999999999"))
    with pytest.raises(RegistryUnavailableError, match="status 503: busy"):
        await world.client().by_id(1)
    assert world.slept == []


async def test_other_url_is_asked_while_one_wants_to_be_left_alone(world: World) -> None:
    counts = {"one": 0, "two": 0}

    def script(request: httpx2.Request) -> httpx2.Response:
        counts[request.url.host] += 1
        if request.url.host == "one":
            return answer({}, 429, Retry_After="20")
        return answer({"schema": TEXT}) if counts["two"] == 3 else answer({}, 503)

    world.script = script
    await world.client(urls=("http://one", "http://two")).by_id(1)
    assert world.hosts == ["one", "two", "two", "two"]
    assert world.slept == pytest.approx([0.1, 0.2])


async def test_next_url_is_asked_without_waiting_and_stays_first(world: World) -> None:
    down = {"one"}

    def script(request: httpx2.Request) -> httpx2.Response:
        if request.url.host in down:
            raise httpx2.ConnectError("refused")
        return answer({"schema": TEXT})

    world.script = script
    client = world.client(urls=("http://one", "http://two", "http://three"))
    await client.by_id(1)
    await client.by_id(2)
    down.add("two")
    await client.by_id(3)
    down -= {"one"}
    down.add("three")
    await client.by_id(4)
    assert world.hosts == ["one", "two", "two", "two", "three", "three", "one"]
    assert world.slept == []


async def test_try_cut_short_by_the_deadline_does_not_hide_what_was_seen_before(world: World) -> None:
    async def refuse_then_hang(request: httpx2.Request) -> httpx2.Response:
        if len(world.requests) == 1:
            raise httpx2.ConnectError("certificate verify failed")
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nothing answers")

    world.script = refuse_then_hang
    with pytest.raises(RegistryUnavailableError, match="certificate verify failed"):
        await world.client(deadline=0.11).by_id(1)
    assert len(world.requests) == 2


async def test_error_of_the_deadline_tells_what_each_url_said(world: World) -> None:
    def script(request: httpx2.Request) -> httpx2.Response:
        if request.url.host == "one":
            raise httpx2.ConnectError("refused")
        return raw(b"<html>gateway</html>", 502)

    world.script = script
    with pytest.raises(RegistryUnavailableError, match=r"http://one: refused; http://two: status 502"):
        await world.client(urls=("http://one", "http://two"), deadline=1.0).by_id(1)


@pytest.mark.parametrize(
    "garbage",
    [
        raw(b""),
        raw(b"<html>welcome</html>"),
        raw(b"\xff\xfe\xff"),
        raw(b"[" * 100_000),
        answer([1]),
        answer("text"),
        answer({}),
        answer({"schema": 1}),
        answer({"schema": TEXT, "schemaType": 7}),
        answer({"schema": TEXT, "references": {}}),
        answer({"schema": TEXT, "references": ["x"]}),
        answer({"schema": TEXT, "references": [{"name": "n", "subject": "s", "version": True}]}),
        raw(b"\x1f\x8b", Content_Encoding="gzip"),
        raw(b"", 404),
        raw(b"<html>not found</html>", 404),
        answer({"error_code": 404, "message": "HTTP 404 Not Found"}, 404),
        answer({"error_code": True, "message": "x"}, 404),
        raw(b"<html>blocked</html>", 400),
        raw(b"", 304),
    ],
    ids=lambda response: str(response.status_code),
)
async def test_what_is_no_answer_of_a_registry_is_unavailable_and_not_tried_again_there(
    world: World, garbage: httpx2.Response
) -> None:
    world.answers(garbage)
    client = world.client()
    with pytest.raises(RegistryUnavailableError, match=r"schema\.registry_url"):
        await client.by_id(1)
    assert world.slept == []
    world.answers(answer({"schema": TEXT}))
    assert (await client.by_id(1)).text == TEXT


async def test_url_where_something_else_answers_is_passed_over(world: World) -> None:
    world.script = lambda request: raw(b"hello") if request.url.host == "one" else answer({"schema": TEXT})
    assert (await world.client(urls=("http://one", "http://two")).by_id(1)).text == TEXT
    assert world.hosts == ["one", "two"]


@pytest.mark.parametrize("id", [0, -1, 2**31, "1", 1.0, True, None])
async def test_registered_id_that_is_no_positive_int32_is_unavailable(world: World, id: Any) -> None:
    world.answers(answer({"id": id}))
    with pytest.raises(RegistryUnavailableError, match="'id'"):
        await world.client().register("s", TEXT)


async def test_answer_about_another_version_is_unavailable(world: World) -> None:
    world.answers(answer({"subject": "s", "version": 2, "id": 8, "schema": OTHER}))
    with pytest.raises(RegistryUnavailableError, match="another version"):
        await world.client().version("s", 1)


async def test_answer_above_the_limit_is_refused_before_its_end(world: World) -> None:
    read = 0

    async def large() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1000
            yield b" " * 1000

    world.script = lambda request: httpx2.Response(200, content=large())
    with pytest.raises(RegistryError, match="larger than 5000 bytes") as caught:
        await world.client(max_schema_bytes=5000).by_id(1)
    assert read == 6000
    assert not caught.value.retriable


async def test_answer_of_exactly_the_limit_is_taken(world: World) -> None:
    content = json.dumps({"schema": TEXT}).encode()
    world.script = lambda request: raw(content)
    assert (await world.client(max_schema_bytes=len(content)).by_id(1)).text == TEXT
    with pytest.raises(RegistryError, match="larger"):
        await world.client(max_schema_bytes=len(content) - 1).by_id(1)


async def test_large_error_page_is_cut_and_its_status_counts(world: World) -> None:
    world.answers(raw(b"x" * 10_000, 500), answer({"schema": TEXT}))
    assert (await world.client(max_schema_bytes=1000).by_id(1)).text == TEXT


# Refusals


async def test_incompatible_schema_is_refused_with_the_registrys_words(world: World) -> None:
    world.answers(refusal(409, 409, "field 'x'\nhas another type"))
    with pytest.raises(SchemaIncompatibleError, match=r"subject 's': field 'x' has another type"):
        await world.client().register("s", TEXT)
    assert len(world.requests) == 1


async def test_invalid_schema_is_refused_with_status_and_code(world: World) -> None:
    world.answers(refusal(422, 42201, "invalid"))
    with pytest.raises(RegistryError, match="invalid") as caught:
        await world.client().register("s", TEXT)
    assert (caught.value.status, caught.value.code, caught.value.retriable) == (422, 42201, False)


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_name_the_settings_and_wait_for_somebody(world: World, status: int) -> None:
    world.answers(raw(b"", status))
    with pytest.raises(RegistryError, match=r"schema\.user.*schema\.password.*schema\.token") as caught:
        await world.client(user="ann", password="secret-1").by_id(1)
    assert (caught.value.status, caught.value.retriable) == (status, True)
    assert not isinstance(caught.value, RegistryUnavailableError)
    assert "secret-1" not in str(caught.value)
    assert world.slept == []


@pytest.mark.parametrize(
    ("ask", "named"),
    [
        (lambda client: client.by_id(77), "schema with id 77"),
        (lambda client: client.latest("orders"), "version of subject 'orders'"),
        (lambda client: client.version("orders", 4), "version 4 of subject 'orders'"),
        (lambda client: client.lookup("orders", TEXT), "such schema under subject 'orders'"),
        (lambda client: client.register("orders", TEXT), "subject 'orders'"),
    ],
)
async def test_missing_schema_is_named(
    world: World, ask: Callable[[HttpSchemaRegistry], Awaitable[Any]], named: str
) -> None:
    world.answers(refusal(404, 40401))
    with pytest.raises(SchemaNotFoundError, match=named):
        await ask(world.client())


async def test_registrys_message_is_one_short_line_without_credentials(world: World) -> None:
    secret = "pässwörd/1"
    message = (
        f"user ann:{secret} p%C3%A4ssw%C3%B6rd%2F1 YW5uOnDDpHNzd8O2cmQvMQ== http://x:y@host\r\n\x1b[31m" + "z" * 900
    )
    world.answers(refusal(422, 42201, message))
    with pytest.raises(RegistryError) as caught:
        await world.client(user="ann", password=secret).register("s", TEXT)
    said = str(caught.value).split("42201): ")[1]
    assert said.startswith("user ann:*** *** *** http://***@host [31mzzz")
    assert len(said) == 500


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_on_the_same_origin_is_followed_with_credentials(world: World, status: int) -> None:
    world.answers(raw(b"", status, Location="/new/ids/1"), answer({"schema": TEXT}))
    assert (await world.client(urls=("http://one:80/old",), token="abc").by_id(1)).text == TEXT
    assert world.asked == ["GET /old/schemas/ids/1", "GET /new/ids/1"]
    assert world.requests[1].headers["Authorization"] == "Bearer abc"


async def test_post_is_redirected_as_a_post_or_not_at_all(world: World) -> None:
    world.answers(raw(b"", 308, Location="/v2"), answer({"id": 4}), raw(b"", 302, Location="/v2"))
    client = world.client()
    assert (await client.register("s", TEXT)).id == 4
    assert json.loads(world.requests[1].content) == {"schema": TEXT}
    with pytest.raises(RegistryUnavailableError, match="redirects a POST with status 302"):
        await client.register("s", OTHER)
    assert len(world.requests) == 3


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("http://evil/schemas", "http://evil"),
        ("https://one/schemas", "https://one"),
        ("http://one:81/", "http://one:81"),
        ("//evil/x", "http://evil"),
        ("http://ann:pw@one/", "http://one"),
        ("http://one:port/", "not a URL"),
    ],
)
async def test_redirect_to_another_origin_is_not_followed(world: World, location: str, shown: str) -> None:
    world.answers(raw(b"", 302, Location=location))
    with pytest.raises(RegistryUnavailableError) as caught:
        await world.client(token="abc").by_id(1)
    assert shown in str(caught.value)
    assert "pw" not in str(caught.value)
    assert len(world.requests) == 1


async def test_redirects_in_a_circle_end(world: World) -> None:
    world.script = lambda request: raw(b"", 302, Location="/again")
    with pytest.raises(RegistryUnavailableError, match="more than 5 times"):
        await world.client().by_id(1)
    assert len(world.requests) == 6


# Sign of life, end


async def test_ping_asks_each_url_once(world: World) -> None:
    world.script = lambda request: answer(["AVRO"])
    await world.client().ping()
    world.script = lambda request: refusal(503, None)
    world.requests.clear()
    with pytest.raises(RegistryUnavailableError):
        await world.client(urls=("http://one", "http://two")).ping()
    assert world.hosts == ["one", "two"]
    assert world.slept == []


async def test_close_ends_open_questions_and_the_client_works_again(world: World) -> None:
    begun = asyncio.Event()

    async def script(request: httpx2.Request) -> httpx2.Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    world.script = script
    client = world.client()
    asker = asyncio.create_task(client.by_id(1))
    await begun.wait()
    await client.close()
    with pytest.raises(RegistryUnavailableError, match="closed"):
        await asker
    await client.close()
    assert world.closed == 1
    world.script = lambda request: answer({"schema": TEXT})
    assert (await client.by_id(1)).text == TEXT
    await client.close()


def test_client_works_in_one_loop_after_the_other_and_keeps_what_it_knows(world: World) -> None:
    client = world.client()

    async def ask(id: int) -> str:
        try:
            return (await client.by_id(id)).text
        finally:
            await client.close()

    assert [asyncio.run(ask(1)), asyncio.run(ask(2)), asyncio.run(ask(1))] == [TEXT] * 3
    assert len(world.requests) == 2
    assert world.closed == 2


async def test_making_and_closing_a_client_opens_nothing(world: World) -> None:
    await world.client().close()
    assert world.closed == 0
