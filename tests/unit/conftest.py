"""Applications in memory, and waiting for what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from deimos_async import Deimos, Key

DEADLINE = 20.0


class Progress:
    """Handlers say that something happened; tests wait until enough has."""

    def __init__(self) -> None:
        self._changed = asyncio.Event()

    def __call__(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


@pytest.fixture
def progress() -> Progress:
    return Progress()


@pytest.fixture
def make_app() -> Callable[..., Deimos]:
    """An embedded application without telemetry; arguments as `Deimos`."""

    def made(settings: dict[str, Any] | None = None, **arguments: Any) -> Deimos:
        options: dict[str, Any] = {"metrics": None, "tracing": None} | arguments
        return Deimos({"embedded": True, "consumers.commit_interval": 0.05} | (settings or {}), **options)

    return made


@pytest.fixture
def app(make_app: Callable[..., Deimos]) -> Deimos:
    return make_app()


@pytest.fixture
def orders(app: Deimos) -> Any:
    return app.topic("orders", key=Key.plain(), partitions=2)
