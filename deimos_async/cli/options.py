"""What commands share: values that need more than click's own types, and options of those that host an application."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

__all__ = ["FiniteRange", "hosting_options", "key_text", "point_in_time"]

F = TypeVar("F", bound=Callable[..., Any])

_AGE = re.compile(r"(\d+(?:\.\d+)?)([smhd])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class FiniteRange(click.FloatRange):
    """Numbers in a range, which `nan` and `inf` never are: nothing is above the one, and nothing reaches the other."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The number. Fails as click's own types do."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


def point_in_time(text: str) -> datetime:
    """An aware time: from ISO 8601, in UTC unless it says so, or from an age before now, as `12h`.

    Raises:
        click.BadParameter: It is neither, or before the year 1.
    """
    try:
        if age := _AGE.fullmatch(text):
            return datetime.now(UTC) - timedelta(seconds=float(age[1]) * _SECONDS[age[2]])
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError:
        raise click.BadParameter(f"{text!r} is before the year 1 or after the year 9999") from None
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: give a time as 2026-05-01T12:00+02:00, or an age as 90s, 30m, 12h, 7d"
        ) from None


def key_text(text: str) -> str:
    """The text of a key, which may be JSON.

    Raises:
        click.BadParameter: It begins like JSON that is nested more deeply than can be read.
    """
    try:
        json.loads(text)
    except ValueError:
        pass  # a text or a number with a meaning of its own
    except RecursionError:
        raise click.BadParameter("nested too deeply for a key") from None
    return text


def hosting_options(command: F) -> F:
    """Options `--web`, `--loop` and `--log-level`, for commands that run an application until they are stopped."""
    web = click.option(
        "--web",
        metavar="HOST:PORT",
        default=None,
        help="Serve /livez, /readyz and /metrics, from before the start to the end. With --workers: worker n at "
        "PORT + n.",
    )
    loop = click.option("--loop", type=click.Choice(["auto", "asyncio", "uvloop"]), default="auto", show_default=True)
    log_level = click.option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"]),
        default="info",
        show_default=True,
        help="Unless the application sets up logging itself.",
    )
    return web(loop(log_level(command)))
