"""A secret that can be recognised, given to every application that tests make; a test whose output shows it fails.

What is looked at: what a test, its fixtures and the programs that share their standard streams print, the log lines of
level INFO and above, and what a failure says. Programs whose output goes through pipes are looked at by whoever reads
those, with `check_hidden`.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

SECRET = "pl4nted-s3cret"
"""Begins every password of the tests with real servers."""
VARIABLE = "DEIMOS_KAFKA__SASL_PASSWORD"
"""Where it is planted: without a SASL mechanism no client uses it, but every application holds it."""


def plant() -> None:
    """Give it to applications of this process and of those that inherit its environment."""
    os.environ[VARIABLE] = SECRET


def check_hidden(text: str, where: str) -> None:
    """Fail if a program has shown it."""
    # No assert: it would quote the text.
    if SECRET in text:
        line = next(line for line in text.splitlines() if SECRET in line)
        pytest.fail(f"the planted secret shows in {where}: {line.replace(SECRET, '[secret]')}", pytrace=False)


class SecretWatch:
    """Plugin of pytest. Each phase of a test fails if what was captured of it holds the secret."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # Sections of earlier phases come again with each later one.
        places = [title for title, text in report.sections if title.endswith(report.when) and self._secret in text]
        if self._secret in report.longreprtext:
            places.append("the failure")
        if places:
            said = f"the planted secret shows in {', '.join(places)}"
            if report.passed:
                report.outcome, report.longrepr = "failed", said
            else:
                report.sections.append(("Planted secret", said))
        return report
