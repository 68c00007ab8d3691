"""A broker behind a proxy for all trials, and the account of each at the end of the run."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
from fault_kafka import ProxiedKafka
from fault_proxy import TcpProxy
from fault_trial import IS_CHAOS, reports
from servers.ports import HOST

PEER_PYTHON = os.environ.get("DEIMOS_CHAOS_FASTSTREAM", "")
# Another framework in an environment of its own, which only `make chaos` makes.
collect_ignore = [] if IS_CHAOS and PEER_PYTHON else ["test_peers.py"]


@pytest.fixture(scope="session")
def fault_kafka() -> Iterator[ProxiedKafka]:
    """One broker for all trials; it runs whenever a test begins."""
    kafka = ProxiedKafka()
    try:
        asyncio.run(kafka.start())
        yield kafka
    finally:
        asyncio.run(kafka.stop())
        kafka.remove()


@pytest.fixture
async def proxy(fault_kafka: ProxiedKafka) -> AsyncIterator[TcpProxy]:
    """The members' way to the broker, new and well for each test."""
    async with TcpProxy(fault_kafka.proxy_port, (HOST, fault_kafka.port)) as proxy:
        yield proxy


outcomes: dict[str, bool] = {}
"""Which of the tests that ran have passed."""


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    outcomes[report.nodeid] = outcomes.get(report.nodeid, True) and not report.failed


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Leave the account where `make chaos` looks for it."""
    path = os.environ.get("DEIMOS_CHAOS_REPORT")
    if path:
        Path(path).write_text(json.dumps({"reports": reports, "outcomes": outcomes}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not reports:
        return
    terminalreporter.write_line("fault trials (those of the registry run side by side):")
    for report in reports:
        ratio = "" if report["ratio"] is None else f", rate after against before {report['ratio']:.2f}"
        terminalreporter.write_line(
            f"  {report['seconds']:6.1f} s  {report['trial']}: {report['written']} written, {report['faults']} faults, "
            f"{report['duplicates']} of {report['handled']} handlings again, {report['lost']} lost, "
            f"ended in {report['end_seconds']:.1f} s{ratio}"
        )
