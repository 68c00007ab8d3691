"""The application for the plugin of deimos_async, which gives it a database of its own in each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fastapi_app.main import api, app

from deimos_async import Deimos


@pytest.fixture
def deimos_app() -> Deimos:
    return app


@pytest.fixture
async def client() -> AsyncIterator[Any]:
    """A client of the web application in this process; it does not run the lifespan."""
    transport = httpx2.ASGITransport(app=api)
    async with httpx2.AsyncClient(transport=transport, base_url="http://orders") as client:
        yield client
