"""Values on the command line."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import click
import pytest
from click.testing import CliRunner

from deimos_async.cli.dead_letters import dead_letters
from deimos_async.cli.lag import lag
from deimos_async.cli.options import FiniteRange, key_text, point_in_time


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "Infinity", "-1", "0", "x"])
def test_number_that_is_not_in_the_range_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        FiniteRange(min=0, min_open=True).convert(text, None, None)
    assert FiniteRange(min=0, min_open=True).convert("0.5", None, None) == 0.5


def test_time_is_aware_and_an_age_is_before_now() -> None:
    assert point_in_time("2026-05-01T12:00+02:00") == datetime(2026, 5, 1, 10, tzinfo=UTC)
    assert point_in_time("2026-05-01T12:00") == datetime(2026, 5, 1, 12, tzinfo=UTC)
    assert timedelta(hours=11) < datetime.now(UTC) - point_in_time("12h") < timedelta(hours=13)


@pytest.mark.parametrize(
    "text",
    ["999999d", "9" * 400 + "d", "9" * 5000 + "s", "0001-01-01T00:00+14:00", "9999-12-31T23:59-14:00", "\u0661d", ""],
)
def test_time_that_does_not_exist_is_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        point_in_time(text)


def test_key_is_text_that_may_be_json() -> None:
    for text in ("a", "1", '{"a": [1]}', "{", "", "9" * 5000):
        assert key_text(text) == text
    with pytest.raises(click.BadParameter, match="too deeply"):
        key_text("[" * 100_000)


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        (lag, ["--max-seconds", "nan"]),
        (lag, ["--max-seconds", "inf"]),
        (lag, ["--max-seconds", "-1"]),
        (dead_letters, ["replay", "--rate", "nan"]),
        (dead_letters, ["replay", "--rate", "inf"]),
        (dead_letters, ["replay", "--rate", "-1"]),
        (dead_letters, ["replay", "--since", "999999d"]),
        (dead_letters, ["list", "--until", "999999d"]),
        (dead_letters, ["list", "--key", "[" * 100_000]),
        (dead_letters, ["show", "nowhere:app", "orders-dlt/0/99999999999999999999"]),
    ],
)
def test_argument_that_makes_no_sense_is_a_mistake_with_a_reason(command: click.Command, arguments: list[str]) -> None:
    found = CliRunner().invoke(command, [*arguments, "nowhere:app"])
    assert found.exit_code == 2
    assert "Invalid value for" in found.output
    assert isinstance(found.exception, SystemExit)
