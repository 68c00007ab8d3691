"""Floors point down, siblings meet only as listed, pure modules decide and do not act.

The graph is read from the source, so that imports within functions and for typing only are arrows too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import deimos_async

PACKAGE = "deimos_async"

FLOORS = (
    ("errors", "plain_text"),
    ("message", "topics", "events"),
    ("specs", "settings", "payload_log"),
    ("schemas", "brokers", "database", "telemetry"),
    ("consuming", "models", "polling", "producing", "outbox"),
    (
        "app",
        "router",
        "assembly",
        "running",
        "pumps",
        "pollers",
        "provisioning",
        "service",
        "loop_lag",
        "health",
        "web",
        "letters",
        "lag",
    ),
    ("cli", "testing", "__main__"),
)
"""From the ground up; a name is a module or a package of `deimos_async`."""

SIBLINGS = {
    "consuming": {"producing"},
    "models": {"consuming", "producing"},
    "polling": {"models", "producing"},
    "producing": {"outbox"},
    "app": {"router", "assembly", "running", "provisioning", "service", "health", "web"},
    "running": {"router", "assembly", "pumps", "pollers", "provisioning", "service", "loop_lag"},
    "provisioning": {"assembly"},
    "pumps": {"assembly"},
    "pollers": {"assembly"},
    "assembly": {"router"},
    "letters": {"assembly"},
    "lag": {"assembly"},
    "web": {"health"},
    "__main__": {"cli"},
}
"""Arrows between names of one floor."""

ONLY_IN = {
    "aiokafka": "brokers/kafka*.py",
    "httpx2": "schemas/registry*.py",
    "fastavro": "schemas/*.py",
    "opentelemetry": "telemetry/opentelemetry.py",
    "prometheus_client": "telemetry/prometheus.py",
    "datadog": "telemetry/datadog.py",
    "uvicorn": "web/server.py",
    "alembic": "database/migrations/*.py",
    "click": "cli/*.py",
    "pytest": "testing/plugin.py",
    "pytest_asyncio": "testing/plugin.py",
}
"""Libraries that one place of the package may import."""

PURE = (
    "errors.py",
    "plain_text.py",
    "message.py",
    "topics.py",
    "schemas/wire.py",
    "schemas/keys.py",
    "schemas/coercion.py",
    "schemas/avro*.py",
    "consuming/lanes.py",
    "consuming/offsets.py",
    "consuming/progress.py",
    "consuming/batches.py",
    "consuming/backoff.py",
    "consuming/on_error.py",
    "consuming/dead_letters.py",
    "consuming/waiting.py",
    "models/messages.py",
    "letters/letter.py",
    "outbox/holding.py",
    "outbox/intake.py",
    "outbox/settling.py",
    "outbox/shares.py",
    "polling/cursor.py",
    "letters/progress.py",
    "letters/summary.py",
    "telemetry/names.py",
)

# What reads or writes the world, tells the time, draws lots or runs things. `urllib.parse` and the like only compute.
ACTING = {
    "aiokafka", "aiosqlite", "asyncio", "click", "concurrent", "http", "httpx2", "io", "logging", "multiprocessing",
    "opentelemetry", "os", "pathlib", "pydantic_settings", "queue", "random", "secrets", "select", "selectors",
    "shutil", "signal", "socket", "sqlalchemy", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "tomllib",
    "urllib.request",
}  # fmt: skip
ACTING_CALLS = frozenset({"open", "print", "input"})
ACTING_METHODS = frozenset({"now", "utcnow", "today", "uuid1", "uuid4"})


@dataclass(frozen=True)
class Module:
    """One source file: its path within the package and its dotted name, `""` for the package itself."""

    path: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return ".".join(self.path.removesuffix(".py").removesuffix("__init__").strip("/").split("/"))

    @property
    def floor_name(self) -> str:
        return self.name.partition(".")[0]


def read(sources: Mapping[str, str]) -> dict[str, Module]:
    modules = [Module(path, ast.parse(text, path)) for path, text in sources.items()]
    return {module.name: module for module in modules}


def imports(module: Module) -> Iterator[tuple[str, int]]:
    """Every absolute name that is imported, wherever in the file, with its line. `from a import b` gives `a.b`."""
    package = f"{PACKAGE}.{module.name}".strip(".").split(".")
    if not module.path.endswith("__init__.py"):
        package.pop()
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def own(name: str, modules: Mapping[str, Module]) -> str | None:
    """Name within the package of the module that an imported name means; None for other libraries."""
    if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
        return None
    inner = name.removeprefix(PACKAGE).strip(".")
    # The last part may be a class or function of the module before it.
    return inner if inner in modules else inner.rpartition(".")[0]


def arrows(modules: Mapping[str, Module]) -> dict[str, dict[str, int]]:
    """For each module those of ours that it imports, with the line of the first import."""
    graph: dict[str, dict[str, int]] = {}
    for module in modules.values():
        below = graph[module.name] = {}
        for name, line in imports(module):
            found = own(name, modules)
            if found is not None and found != module.name:
                below.setdefault(found, line)
    return graph


def check(sources: Mapping[str, str]) -> list[str]:
    """Every breach of the rules, as `path:line: what is wrong`; sources by their path within the package."""
    modules = read(sources)
    graph = arrows(modules)
    return [
        *_check_map(modules),
        *_check_directions(modules, graph),
        *_check_cycles(graph),
        *_check_libraries(modules),
        *_check_purity(modules, graph),
    ]


def _floor(name: str) -> int:
    return next((number for number, names in enumerate(FLOORS) if name in names), len(FLOORS))


def _check_map(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        if module.name and _floor(module.floor_name) == len(FLOORS):
            yield f"{module.path}:1: {module.floor_name!r} is on no floor; add it to FLOORS"


def _check_directions(modules: Mapping[str, Module], graph: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    for module in modules.values():
        if not module.name:
            continue  # the face of the package shows names of every floor
        here = module.floor_name
        for target, line in graph[module.name].items():
            there = target.partition(".")[0]
            where = f"{module.path}:{line}: {module.name} imports {target or PACKAGE}"
            if not there:
                yield f"{where}, the face of the package; import the module that has the name"
            elif _floor(there) > _floor(here):
                yield f"{where}, which is above it"
            elif _floor(there) == _floor(here) and there != here and there not in SIBLINGS.get(here, set()):
                yield f"{where}, a sibling; the arrow is not listed"


def _check_cycles(graph: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        yield f"modules import each other in a circle: {' <- '.join(error.args[1])}"


def _check_libraries(modules: Mapping[str, Module]) -> Iterator[str]:
    for module in modules.values():
        for name, line in imports(module):
            place = ONLY_IN.get(name.partition(".")[0])
            if place is not None and not fnmatch(module.path, place):
                yield f"{module.path}:{line}: {name.partition('.')[0]} is imported in {place} only"


def _check_purity(modules: Mapping[str, Module], graph: Mapping[str, Mapping[str, int]]) -> Iterator[str]:
    told = set()
    for module in modules.values():
        if not _is_pure(module):
            continue
        for reached in map(modules.__getitem__, _reachable(module.name, graph)):
            if reached is not module and _is_pure(reached):
                continue  # it answers for itself
            for line, acts in _acts(reached):
                if (reached.path, line) not in told:
                    told.add((reached.path, line))
                    whose = "the module is pure" if reached is module else f"the pure {module.path} stands on it"
                    yield f"{reached.path}:{line}: {acts}, but {whose}"


def _is_pure(module: Module) -> bool:
    return any(fnmatch(module.path, pattern) for pattern in PURE)


def _reachable(name: str, graph: Mapping[str, Mapping[str, int]]) -> list[str]:
    found, waiting = {name: None}, [name]
    while waiting:
        for below in graph.get(waiting.pop(), ()):
            if below in graph and below not in found:
                found[below] = None
                waiting.append(below)
    return list(found)


def _acts(module: Module) -> Iterator[tuple[int, str]]:
    for name, line in imports(module):
        parts = name.split(".")
        if {".".join(parts[:depth]) for depth in range(1, len(parts) + 1)} & ACTING:
            yield line, f"imports {name}"
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in ACTING_CALLS | ACTING_METHODS:
                yield node.lineno, f"calls {node.func.id}()"
            elif isinstance(node.func, ast.Attribute) and node.func.attr in ACTING_METHODS:
                yield node.lineno, f"calls .{node.func.attr}()"


# --- the package -----------------------------------------------------------------------------------------------------


def test_package_keeps_the_rules() -> None:
    root = Path(deimos_async.__file__).parent
    sources = {path.relative_to(root).as_posix(): path.read_text("utf-8") for path in sorted(root.rglob("*.py"))}
    assert {"errors.py", "app.py", "brokers/kafka.py", "__init__.py"} <= sources.keys()
    breaches = check(sources)
    assert not breaches, "\n" + "\n".join(breaches)


def test_patterns_of_libraries_meet_something() -> None:
    root = Path(deimos_async.__file__).parent
    for pattern in {*ONLY_IN.values()} - {"testing/plugin.py"}:
        assert list(root.glob(pattern)), f"no module is {pattern}"


# --- the checker -----------------------------------------------------------------------------------------------------


def test_arrows_down_and_listed_siblings_are_allowed() -> None:
    assert (
        check(
            {
                "__init__.py": "from deimos_async.app import Deimos",
                "__main__.py": "from deimos_async.cli import main",
                "cli/__init__.py": "from deimos_async import app",
                "app.py": "import deimos_async.router\nfrom deimos_async.consuming.runner import Runner",
                "router.py": "from . import topics",
                "consuming/runner.py": "from deimos_async.producing.producer import Producer\nfrom . import fetch",
                "consuming/fetch.py": "import asyncio, time",
                "producing/producer.py": "from ..errors import DeimosError",
                "topics.py": "from urllib.parse import urlsplit\nfrom deimos_async.errors import DeimosError",
                "errors.py": "",
                "brokers/kafka_consumer.py": "import aiokafka",
                "schemas/registry.py": "import httpx2",
                "testing/plugin.py": "import pytest",
            }
        )
        == []
    )


@pytest.mark.parametrize(
    ("path", "source", "breach"),
    [
        # directions
        ("errors.py", "from deimos_async.message import Message", "errors imports message, which is above it"),
        ("topics.py", "def f():\n    import deimos_async.app", "topics.py:2: topics imports app, which is above it"),
        (
            "brokers/memory.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from deimos_async.consuming import lanes",
            "brokers/memory.py:3: brokers.memory imports consuming.lanes, which is above it",
        ),
        ("brokers/memory.py", "from ..consuming.lanes import Lane", "imports consuming.lanes, which is above it"),
        ("brokers/__init__.py", "from .. import app", "brokers imports app, which is above it"),
        (
            "database/engines.py",
            "from importlib import import_module\nimport_module('deimos_async.app')",
            "database.engines imports app, which is above it",
        ),
        ("brokers/kafka.py", "from deimos_async.schemas.wire import x", "imports schemas.wire, a sibling"),
        ("producing/producer.py", "import deimos_async.consuming.lanes", "imports consuming.lanes, a sibling"),
        ("message.py", "from deimos_async.topics import Key", "message imports topics, a sibling"),
        ("app.py", "from deimos_async.cli import main", "app imports cli, which is above it"),
        ("app.py", "from deimos_async import Message", "app imports deimos_async, the face of the package"),
        ("utilities.py", "", "'utilities' is on no floor"),
        # libraries
        ("brokers/memory.py", "from aiokafka.errors import KafkaError", "aiokafka is imported in brokers/kafka*.py"),
        ("app.py", "def f():\n    import aiokafka", "app.py:2: aiokafka is imported in brokers/kafka*.py only"),
        ("schemas/files.py", "import httpx2", "httpx2 is imported in schemas/registry*.py only"),
        ("testing/assertions.py", "import pytest", "pytest is imported in testing/plugin.py only"),
        # purity
        ("message.py", "import asyncio", "message.py:1: imports asyncio, but the module is pure"),
        ("topics.py", "from time import monotonic", "imports time.monotonic, but the module is pure"),
        ("topics.py", "from urllib.request import urlopen", "imports urllib.request.urlopen, but"),
        ("topics.py", "from urllib import request", "imports urllib.request, but"),
        ("schemas/avro_reading.py", "def f():\n    open('x')", "schemas/avro_reading.py:2: calls open(), but"),
        ("schemas/keys.py", "from uuid import uuid4\nuuid4()", "schemas/keys.py:2: calls uuid4(), but"),
        ("consuming/dead_letters.py", "from datetime import datetime\ndatetime.now()", "calls .now(), but"),
        ("consuming/on_error.py", "import random", "imports random, but the module is pure"),
        ("consuming/lanes.py", "from sqlalchemy import select", "imports sqlalchemy.select, but the module is pure"),
        (
            "consuming/offsets.py",
            "from deimos_async.specs import x",
            "specs.py:1: imports os, but the pure consuming/offsets.py stands on it",
        ),
    ],
)
def test_breach_is_told_with_its_place(path: str, source: str, breach: str) -> None:
    others = {
        "app.py": "",
        "cli/__init__.py": "",
        "consuming/__init__.py": "",
        "consuming/lanes.py": "",
        "message.py": "",
        "schemas/wire.py": "",
        "specs.py": "import os",
        "topics.py": "",
    }
    (found,) = check({**others, path: source})
    assert breach in found


def test_circle_within_a_package_is_a_breach() -> None:
    (found,) = check({"schemas/a.py": "from . import b", "schemas/b.py": "def f():\n    from . import a"})
    assert found.startswith("modules import each other in a circle")
    assert "schemas.a" in found
