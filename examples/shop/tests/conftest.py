"""The plugin of deimos_async asks for the application."""

from __future__ import annotations

import pytest

from deimos_async import Deimos


@pytest.fixture
def deimos_app() -> Deimos:
    from shop.events import app

    return app
