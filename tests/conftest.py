"""What all tests share: addresses of services, unique names, and the count of tests left out for want of a service."""

import asyncio
import json
import os
import re
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import pytest
from servers import KafkaBroker, MariaDB, Postgres, Server, ServerError, answers
from services import KINDS, Policy, read_record, reason_variable, variable

sys.path.insert(0, str(Path(__file__).parent / "support"))
from planted import SECRET, SecretWatch, plant

_FIXTURES = {
    "kafka_bootstrap": "kafka",
    "registry_url": "registry",
    "postgres_url": "postgres",
    "mariadb_url": "mariadb",
    "own_kafka": "own_kafka",
    "own_mariadb_url": "own_mariadb",
}
_OWN: dict[str, type[Server]] = {"own_kafka": KafkaBroker, "own_postgres": Postgres, "own_mariadb": MariaDB}
"""Servers that tests start for themselves."""


class ServiceBook:
    """Where the services are, why others are nowhere, and how many tests that has cost."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.left_out: Counter[str] = Counter()
        self._addresses: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def address(self, name: str) -> str:
        return self._addresses[name]

    def reason(self, name: str) -> str | None:
        """Why the service is missing; None when it is there."""
        if name not in self._addresses and name not in self._reasons:
            self._reasons |= self._look_for(name)
        return self._reasons.get(name)

    def _look_for(self, name: str) -> dict[str, str]:
        if name in _OWN:
            return self._prepare_own(name, _OWN[name])
        recorded = {entry["name"]: entry["address"] for entry in read_record()}
        given = os.environ.get(variable(name)) or recorded.get(name)
        if reason := os.environ.get(reason_variable(name)):
            return {name: reason}
        if given is None:
            return {name: f"{variable(name)} is not set; `make services` starts one, `make test` does so by itself"}
        if not asyncio.run(answers(given)):
            return {name: f"nobody answers at the address in {variable(name)} or .services/"}
        self._addresses[name] = given
        return {}

    def _prepare_own(self, name: str, kind: type[Server]) -> dict[str, str]:
        if self.policy.how == "none":
            return {name: "SERVICES=none: no server may be started"}
        if needs := kind.missing():
            return {name: "it needs " + ", ".join(str(need) for need in needs)}
        try:
            asyncio.run(kind.prepare())
        except ServerError as error:
            return {name: str(error).splitlines()[0]}
        self._addresses[name] = "started by each test"
        return {}


_BOOK = pytest.StashKey[ServiceBook]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_BOOK] = ServiceBook(Policy.from_environment())
    plant()
    config.pluginmanager.register(SecretWatch(SECRET), "secret-watch")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end_as_by_ctrl_c)


def _end_as_by_ctrl_c(number: int, frame: FrameType | None) -> None:
    """At Ctrl-C pytest tears fixtures down, and with them servers; at other signals it would leave them running."""
    # Once: the signal may come from the terminal or a `timeout`, and from `make test` as well.
    signal.signal(number, signal.SIG_IGN)
    signal.raise_signal(signal.SIGINT)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave a test out, or fail it where services are required, before any of its fixtures is made."""
    names = {name for mark in item.iter_markers("services") for name in mark.args}
    names |= {_FIXTURES[fixture] for fixture in getattr(item, "fixturenames", ()) if fixture in _FIXTURES}
    if unknown := names - KINDS.keys() - _OWN.keys():
        pytest.fail(f"the services mark knows no {', '.join(sorted(unknown))}", pytrace=False)
    book = item.config.stash[_BOOK]
    missing = {name: reason for name in sorted(names) if (reason := book.reason(name)) is not None}
    if not missing:
        return
    book.left_out.update(missing.keys())
    text = "; ".join(f"{name} is missing: {reason}" for name, reason in missing.items())
    if book.policy.requires_all:
        pytest.fail(text, pytrace=False)
    pytest.skip(text)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the count where `make test` looks for it, to print it last."""
    book = session.config.stash[_BOOK]
    path = os.environ.get("DEIMOS_TEST_REPORT")
    if path:
        counts = {name: {"tests": tests, "reason": book.reason(name)} for name, tests in book.left_out.items()}
        Path(path).write_text(json.dumps(counts))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    book = config.stash[_BOOK]
    for name, tests in sorted(book.left_out.items()):
        verb = "failed" if book.policy.requires_all else "left out"
        terminalreporter.write_line(f"{name} could not be reached: tests {verb} for that: {tests}", yellow=True)


@pytest.fixture(scope="session")
def kafka_bootstrap(pytestconfig: pytest.Config) -> str:
    """Bootstrap servers of a broker that all tests share."""
    return pytestconfig.stash[_BOOK].address("kafka")


@pytest.fixture(scope="session")
def registry_url(pytestconfig: pytest.Config) -> str:
    """Base URL of a Confluent-compatible schema registry that all tests share."""
    return pytestconfig.stash[_BOOK].address("registry")


@pytest.fixture(scope="session")
def postgres_url(pytestconfig: pytest.Config) -> str:
    """SQLAlchemy's asynchronous URL of a PostgreSQL database that all tests share."""
    return pytestconfig.stash[_BOOK].address("postgres")


@pytest.fixture(scope="session")
def mariadb_url(pytestconfig: pytest.Config) -> str:
    """SQLAlchemy's asynchronous URL of a MariaDB database that all tests share."""
    return pytestconfig.stash[_BOOK].address("mariadb")


@pytest.fixture(scope="session")
def own_mariadb_url() -> Iterator[str]:
    """As `mariadb_url`, with a server of these tests alone: its transactions are seen in all of its databases."""
    server = MariaDB()
    # In a thread: fixtures that ask for this one may have a running loop.
    with ThreadPoolExecutor(1) as thread:
        try:
            thread.submit(asyncio.run, server.start()).result()
            yield server.url
        finally:
            thread.submit(asyncio.run, server.stop()).result()
            server.remove()


@pytest.fixture
async def own_kafka() -> AsyncIterator[KafkaBroker]:
    """A running broker for this test alone, which may stop, kill and restart it."""
    async with KafkaBroker() as broker:
        yield broker


@pytest.fixture
def unique_name(request: pytest.FixtureRequest) -> str:
    """Start of names (topics, groups, subjects, tables) that no other test and no other run uses.

    Lower-case letters, digits and underscores, at most 41 of them: it may go into a table's name as it is.
    """
    readable = re.sub(r"[^a-z0-9]+", "_", request.node.name.removeprefix("test_").lower())[:30]
    return f"t{readable}_{uuid.uuid4().hex[:9]}" if readable[0].isdigit() else f"{readable}_{uuid.uuid4().hex[:9]}"
