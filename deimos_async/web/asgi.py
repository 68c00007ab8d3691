"""`/livez`, `/readyz` and `/metrics` as an ASGI application (https://asgi.readthedocs.io/en/latest/specs/www.html)."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

from deimos_async.health import Health

if TYPE_CHECKING:  # start-up time: loaded where the outbox is sent, or tables are polled
    from deimos_async.outbox.pump import PumpStatus
    from deimos_async.polling.scheduler import PollerStatus

__all__ = ["WebApp"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_JSON = "application/json"
_TEXT = "text/plain; charset=utf-8"
_NO_METRICS = (
    "There are no metrics here: the application's provider is not Prometheus. "
    "Use Deimos(metrics=Prometheus()), from the extra 'prometheus'.\n"
)


class WebApp:
    """Answers from numbers that are there anyway: no request to a broker, registry or database, and no waiting.

    `/livez`: 200 while every consumer makes progress or has nothing to do and nothing has failed, also during start
    and stop; else 503. `/readyz`: 200 while it runs and everything has started. Both bodies are JSON and say why, and
    what each consumer does. `/metrics`: for Prometheus, where that is the provider; else 404. Other paths are 404,
    methods other than GET and HEAD 405.

    Args:
        health: What the application says about itself, asked for each request.
        render: The metrics page and its content type for an `Accept` header, or None.
    """

    def __init__(self, health: Callable[[], Health], render: Callable[[str], tuple[bytes, str]] | None) -> None:
        self._health = health
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or, where a server runs this by itself, its lifespan."""
        match scope["type"]:
            case "http":
                await self._respond(scope, send)
            case "lifespan":
                await _live(receive, send)
            case "websocket":
                await send({"type": "websocket.close", "code": 1000})
            case other:
                raise ValueError(f"ASGI scope of type {other!r} is not served")

    async def _respond(self, scope: Scope, send: Send) -> None:
        status, body, content_type, more = self._answer(scope)
        headers = [
            (b"content-type", content_type.encode()),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
            *more,
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _answer(self, scope: Scope) -> tuple[int, bytes, str, Iterable[tuple[bytes, bytes]]]:
        path = _path(scope)
        if path not in ("/livez", "/readyz", "/metrics"):
            return 404, b"Not found. There are /livez, /readyz and /metrics.\n", _TEXT, ()
        if scope["method"] not in ("GET", "HEAD"):
            return 405, b"Only GET and HEAD.\n", _TEXT, [(b"allow", b"GET, HEAD")]
        if path == "/metrics":
            if self._render is None:
                return 404, _NO_METRICS.encode(), _TEXT, ()
            body, content_type = self._render(_accept(scope))
            return 200, body, content_type, ()
        health = self._health()
        good = health.alive if path == "/livez" else health.ready
        return 200 if good else 503, json.dumps(_shown(health)).encode() + b"\n", _JSON, ()


def _path(scope: Scope) -> str:
    """Path below the mount, for servers and routers that leave the mount's own path in `path` as for others."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "").rstrip("/")
    if root and (path == root or path.startswith(root + "/")):
        path = path[len(root) :]
    return path


def _accept(scope: Scope) -> str:
    return ",".join(value.decode("latin-1") for name, value in scope.get("headers", ()) if name.lower() == b"accept")


def _shown(health: Health) -> Mapping[str, Any]:
    return {
        "state": health.state,
        "alive": health.alive,
        "ready": health.ready,
        "problems": health.problems,
        "consumers": [
            {
                "name": status.name,
                "group": status.group,
                "topic": status.topic,
                "partitions": sorted(partition.partition for partition in status.assigned),
                "in_flight": status.in_flight,
                "lag": status.lag,
                "last_progress_seconds": round(status.last_progress, 1),
                "stalled": status.stalled,
                "waiting": status.waiting,
                "waiting_keys": status.waiting_keys,
                "held_up_partitions": sorted(partition.partition for partition in status.held_up),
                "failed": status.failed,
            }
            for status in health.consumers
        ],
        **({} if health.outbox is None else {"outbox": _shown_outbox(health.outbox)}),
        **({"pollers": list(map(_shown_poller, health.pollers))} if health.pollers else {}),
    }


def _shown_poller(status: PollerStatus) -> Mapping[str, Any]:
    return {
        "name": status.name,
        "running": status.is_running,
        "runs": status.runs,
        "rows": status.rows,
        "failed_rows": status.failed_rows,
        "problem": status.problem,
    }


def _shown_outbox(status: PumpStatus) -> Mapping[str, Any]:
    return {
        "slots": sorted(status.slots),
        "in_flight": status.in_flight,
        "blocked_keys": status.blocked_keys,
        "parked": status.parked,
        "failing_topics": sorted(status.failing_topics),
        "started": status.started,
        "database": status.database is None,
    }


async def _live(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return
