"""The ASGI application: paths, status codes, bodies, and being mounted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from deimos_async import Deimos, Key, Message, Prometheus
from deimos_async.health import Health
from deimos_async.web.asgi import WebApp

App = Callable[..., Deimos]


def client(application: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(application), base_url="http://test")


def web(*, alive: bool = True, ready: bool = True, problems: tuple[str, ...] = ()) -> WebApp:
    return WebApp(lambda: Health("running", alive, ready, problems), None)


async def test_live_and_ready_answer_by_status_and_say_why() -> None:
    async with client(web(alive=False, ready=True, problems=("it is stuck",))) as http:
        live, ready = await http.get("/livez"), await http.get("/readyz")
    assert (live.status_code, ready.status_code) == (503, 200)
    assert live.json() == {
        "state": "running", "alive": False, "ready": True, "problems": ["it is stuck"], "consumers": [],
    }  # fmt: skip
    assert live.headers["content-type"] == "application/json"
    assert live.headers["cache-control"] == "no-store"
    async with client(web(ready=False)) as http:
        assert [(await http.get(path)).status_code for path in ("/livez", "/readyz")] == [200, 503]


async def test_head_has_the_headers_of_get_and_no_body() -> None:
    async with client(web()) as http:
        get, head = await http.get("/livez"), await http.head("/livez")
    assert head.status_code == 200
    assert head.content == b""
    assert head.headers == get.headers
    assert int(head.headers["content-length"]) == len(get.content)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_other_methods_are_refused(method: str) -> None:
    async with client(web()) as http:
        answer = await http.request(method, "/livez")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize("path", ["/", "/livez/", "/health", "/livez/x", "/Livez"])
async def test_other_paths_are_not_found(path: str) -> None:
    async with client(web()) as http:
        assert (await http.get(path)).status_code == 404


async def test_metrics_without_prometheus_say_what_to_do(app: Deimos) -> None:
    async with client(app.web()) as http:
        answer = await http.get("/metrics")
    assert answer.status_code == 404
    assert "Deimos(metrics=Prometheus())" in answer.text


async def test_metrics_are_those_of_the_application(make_app: App) -> None:
    app = make_app(metrics=Prometheus())
    events = app.producer(app.topic("events", key=Key.none()))
    async with client(app.web()) as http:
        async with app.running():
            await events.produce(b"x")
            answer = await http.get("/metrics")
        tokens = await http.get("/metrics", headers={"accept": "application/openmetrics-text"})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    counts = {
        sample.name: sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
        if "events" in sample.labels.values()
    }
    assert (counts["publish_total"], counts["messaging_client_sent_messages_total"]) == (1, 1)
    assert tokens.headers["content-type"].startswith("application/openmetrics-text")


async def test_application_is_followed_through_its_life(app: Deimos, orders: Any) -> None:
    @app.consumer(orders, group="billing")
    async def bill(message: Message) -> None: ...

    async with client(app.web()) as http:
        before = await http.get("/livez")
        async with app.running():
            during, ready = await http.get("/livez"), await http.get("/readyz")
        after = await http.get("/readyz")
    assert before.status_code == 503
    assert before.json()["problems"] == ["the application does not run"]
    assert (during.status_code, ready.status_code, after.status_code) == (200, 200, 503)
    (shown,) = during.json()["consumers"]
    assert shown.keys() == {
        "name", "group", "topic", "partitions", "in_flight", "lag", "last_progress_seconds", "stalled", "failed",
        "waiting", "waiting_keys", "held_up_partitions",
    }  # fmt: skip
    assert (shown["name"], shown["group"], shown["topic"], shown["stalled"]) == ("bill", "billing", "orders", False)


async def test_failure_is_seen_without_what_was_in_the_message(make_app: App, progress: Any) -> None:
    app = make_app({"consumers.reraise_errors": True})
    events = app.topic("events", key=Key.none())
    to_events = app.producer(events)

    @app.consumer(events, group="g")
    async def handle(message: Message) -> None:
        raise ValueError(message.payload)

    async with client(app.web()) as http, app.running():
        await to_events.produce(b"card 4111")
        await app.wait_failed()
        live, ready = await http.get("/livez"), await http.get("/readyz")
    assert (live.status_code, ready.status_code) == (503, 503)
    assert live.json()["problems"] == ["consumer handle events g has failed: HandlerError caused by ValueError"]
    assert "4111" not in live.text


async def test_it_can_be_mounted_in_fastapi(app: Deimos) -> None:
    api = FastAPI()
    api.mount("/deimos", app.web())
    async with client(api) as http, app.running():
        assert (await http.get("/deimos/livez")).status_code == 200
        assert (await http.get("/deimos/readyz")).json()["ready"] is True
        assert (await http.get("/deimos/else")).status_code == 404


@pytest.mark.parametrize(
    ("path", "root", "status"),
    [
        ("/livez", "", 200),
        ("/deimos/livez", "/deimos", 200),
        ("/livez", "/deimos", 200),
        ("/deimosx/livez", "/deimos", 404),
    ],
)
async def test_mount_is_taken_off_the_path(path: str, root: str, status: int) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is read of a request")

    await web()({"type": "http", "method": "GET", "path": path, "root_path": root, "headers": []}, receive, send)
    assert sent[0]["status"] == status


async def test_lifespan_of_a_server_is_answered() -> None:
    asked = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
    sent: list[str] = []

    async def receive() -> Any:
        return next(asked)

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await web()({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_web_socket_is_closed_and_another_scope_is_an_error() -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        raise AssertionError("nothing is read")

    async def send(message: Any) -> None:
        sent.append(message["type"])

    await web()({"type": "websocket"}, receive, send)
    assert sent == ["websocket.close"]
    with pytest.raises(ValueError, match="'other' is not served"):
        await web()({"type": "other"}, receive, send)
