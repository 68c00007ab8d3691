"""`import deimos_async` is cheap: nothing heavy is loaded and nothing is started."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = (
    "aiokafka",
    "aiosqlite",
    "alembic",
    "asyncio",
    "click",
    "fastavro",
    "httpx2",
    "opentelemetry",
    "pydantic",
    "pydantic_settings",
    "pytest",
    "sqlalchemy",
    "ssl",
)

PROGRAM = """
import json, sys, threading
import {module}
print(json.dumps({{
    "modules": sorted(name for name in sys.modules if "." not in name),
    "threads": threading.active_count(),
}}))
"""


def state_after_importing(module: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM.format(module=module)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_import_loads_nothing_heavy_and_starts_no_thread() -> None:
    state = state_after_importing("deimos_async")
    modules = state["modules"]
    assert isinstance(modules, list)
    assert "deimos_async" in modules
    assert [name for name in HEAVY if name in modules] == []
    assert state["threads"] == 1


@pytest.mark.parametrize("module", ["deimos_async.errors", "deimos_async.topics", "deimos_async.message"])
def test_values_that_every_floor_speaks_load_no_library(module: str) -> None:
    modules = state_after_importing(module)["modules"]
    assert isinstance(modules, list)
    assert [name for name in HEAVY if name in modules] == []


def test_pytest_plugin_loads_nothing_of_the_framework_until_a_fixture_is_used() -> None:
    modules = state_after_importing("deimos_async.testing.plugin")["modules"]
    assert isinstance(modules, list)
    assert [name for name in HEAVY if name in modules and name not in {"asyncio", "pytest", "ssl"}] == []


def test_application_loads_no_client_before_it_runs() -> None:
    state = state_after_importing("deimos_async.app")
    modules = state["modules"]
    assert isinstance(modules, list)
    heavy = {"aiokafka", "fastavro", "httpx2", "opentelemetry", "pydantic", "sqlalchemy"}
    assert sorted(heavy.intersection(modules)) == []
    assert state["threads"] == 1
