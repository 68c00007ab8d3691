"""The pytest plugin: the fixture `deimos`, and how a test sets it up.

    @pytest.fixture
    def deimos_app():                    # in conftest.py: the application under test
        from shop.events import app
        return app

    async def test_bill(deimos):
        await deimos.consume_message(bill, {"order_id": 1, "total": 9.5}, key=1)
        deimos.assert_sent("invoices", {"order_id": 1, "amount": 9.5}, key={"order_id": 1})

Settings of a test: `@pytest.mark.deimos(settings={"consumers.reraise_errors": False})` for one test or class, the
fixture `deimos_settings` (returning such a mapping) for a module or folder; the marker is above the fixture.
`--deimos-kafka host:port` and `--deimos-registry URL` run the same tests on a real broker and registry. Nothing of the
library is imported until a fixture is used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # start-up time: every run of pytest imports this module
    from deimos_async.app import Deimos
    from deimos_async.testing.harness import DeimosHarness

__all__ = ["deimos", "deimos_app", "deimos_settings"]

_NO_APP = """\
the fixture 'deimos' needs to know the application under test; write in conftest.py:

    @pytest.fixture
    def deimos_app():
        from shop.events import app      # wherever yours is
        return app
"""


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the plugin."""
    group = parser.getgroup("deimos", "applications of deimos-async")
    group.addoption(
        "--deimos-kafka",
        metavar="HOST:PORT",
        help="run tests with the fixture 'deimos' on this Kafka instead of in memory; their topics and consumer groups "
        "begin with a prefix of each test's own, and are deleted after it",
    )
    group.addoption(
        "--deimos-registry",
        metavar="URL",
        help="have them use this schema registry instead of one in memory; subjects likewise",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker, so that `--strict-markers` knows it."""
    config.addinivalue_line(
        "markers", "deimos(settings): settings of the application in this test, for the fixture 'deimos'"
    )


@pytest.fixture
def deimos_app() -> Deimos:
    """The application under test. Yours, in conftest.py, takes the place of this one, which says so."""
    pytest.fail(_NO_APP, pytrace=False)


@pytest.fixture
def deimos_settings() -> Mapping[str, Any]:
    """Settings of the application in tests, by dotted names or nested. Override it; the default sets none."""
    return {}


def _marked_settings(request: pytest.FixtureRequest) -> list[Mapping[str, Any]]:
    """What `@pytest.mark.deimos(settings=...)` says, the mark nearest to the test last."""
    layers = []
    for mark in request.node.iter_markers("deimos"):
        if mark.args or mark.kwargs.keys() != {"settings"} or not isinstance(mark.kwargs["settings"], Mapping):
            raise pytest.UsageError(
                'write @pytest.mark.deimos(settings={"consumers.reraise_errors": False}), with a mapping of settings'
            )
        layers.append(mark.kwargs["settings"])
    return layers[::-1]


try:
    # It is an optional library, and a plugin itself: where it is installed, pytest has imported it anyway. Its own
    # decorator makes the fixture work in its strict mode too.
    from pytest_asyncio import fixture as _async_fixture
except ModuleNotFoundError:

    @pytest.fixture
    def deimos() -> DeimosHarness:
        """The application under test, running in memory. It needs pytest-asyncio, which is missing."""
        pytest.fail("the fixture 'deimos' needs pytest-asyncio: pip install 'deimos-async[testing]'", pytrace=False)

else:

    @_async_fixture
    async def deimos(  # type: ignore[misc]  # the same fixture, where it can work
        request: pytest.FixtureRequest, deimos_app: Deimos, deimos_settings: Mapping[str, Any]
    ) -> AsyncIterator[DeimosHarness]:
        """The application under test, running: see `deimos_async.testing.DeimosHarness`."""
        # start-up time: the library is loaded with the first test that uses it
        from deimos_async.testing.harness import DeimosHarness

        async with DeimosHarness.running(
            deimos_app,
            deimos_settings,
            *_marked_settings(request),
            kafka=request.config.getoption("--deimos-kafka"),
            registry=request.config.getoption("--deimos-registry"),
        ) as harness:
            yield harness
