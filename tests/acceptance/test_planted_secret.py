"""The watch over the secret that tests plant: a test that shows it fails, and is named."""

from __future__ import annotations

from pathlib import Path

import planted
import pytest

pytest_plugins = ["pytester"]

_CONFTEST = """
import planted

def pytest_configure(config):
    config.pluginmanager.register(planted.SecretWatch("0ther-s3cret"))
"""
_TESTS = """
import logging, os, sys
import pytest

@pytest.fixture
def leaky():
    yield
    print("0ther-s3cret")

def test_prints(): print("password=0ther-s3cret")
def test_errs(): print("0ther-s3cret", file=sys.stderr)
def test_logs(): logging.getLogger("deimos_async").info("with %s", "0ther-s3cret")
def test_program(): os.write(1, b"0ther-s3cret")
def test_fixture(leaky): pass
def test_raises(): raise ValueError("0ther-s3cret")
def test_quiet(): print("s3cret")
"""


def test_test_that_shows_the_secret_fails_and_says_where(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(planted.__file__).parent))
    pytester.makeini("[pytest]\nlog_level = INFO")
    pytester.makeconftest(_CONFTEST)
    pytester.makepyfile(_TESTS)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio", "-v", timeout=120)
    result.assert_outcomes(passed=2, failed=5, errors=1)
    said = "\n".join(result.outlines)
    for name in ("prints", "errs", "logs", "program", "raises"):
        assert f"::test_{name} FAILED" in said
    assert "::test_fixture ERROR" in said
    for title in ("stdout call", "stderr call", "log call", "stdout teardown"):
        assert f"the planted secret shows in Captured {title}" in said
    assert "the planted secret shows in the failure" in said


def test_program_that_shows_the_secret_fails_the_test_without_repeating_it() -> None:
    planted.check_hidden("nothing here", "the log")
    with pytest.raises(pytest.fail.Exception) as caught:
        planted.check_hidden(f"first\npassword={planted.SECRET}\n", "the log")
    assert str(caught.value) == "the planted secret shows in the log: password=[secret]"
