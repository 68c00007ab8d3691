"""From `package.module:attribute` to the application, and errors to exit status."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from deimos_async.app import Deimos
from deimos_async.errors import ConfigurationError, DeimosError
from deimos_async.plain_text import escaped_lines

__all__ = ["configure_logging", "load_app", "reporting"]

EXIT_CONFIGURATION = 2
"""The application or its settings must be changed."""
EXIT_FAILURE = 1
"""Something that was to work did not: brokers away, a consumer that stopped."""


def load_app(target: str) -> Deimos:
    """Import the application.

    Raises:
        ConfigurationError: The target is not `module:attribute`, cannot be found, or is no `Deimos`.
    """
    module_name, colon, attribute = target.partition(":")
    if not (module_name and colon and attribute):
        raise ConfigurationError(f"APP {target!r}: write package.module:attribute, e.g. shop.events:app")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise ConfigurationError(
                f"APP {target!r}: there is no module {error.name!r} in {os.getcwd()} or on the Python path"
            ) from error
        raise
    for step in attribute.split("."):
        if not hasattr(found, step):
            raise ConfigurationError(f"APP {target!r}: module {module_name!r} has no attribute {attribute!r}")
        found = getattr(found, step)
    if not isinstance(found, Deimos):
        raise ConfigurationError(f"APP {target!r} is {type(found).__name__}, not a Deimos application")
    return found


@contextmanager
def reporting() -> Iterator[None]:
    """Our errors become a text on standard error and an exit status; a traceback would only hide them.

    What is not printable in them is escaped: they may quote what a message said.
    """
    try:
        yield
    except ConfigurationError as error:
        click.echo(escaped_lines(f"Configuration error: {error}"), err=True)
        sys.exit(EXIT_CONFIGURATION)
    except DeimosError as error:
        click.echo(escaped_lines(f"Error: {error}"), err=True)
        sys.exit(EXIT_FAILURE)


def configure_logging(level: str, *, messages: bool) -> None:
    """Lines on standard error, unless the application has set up logging itself.

    Args:
        messages: Whether a line for every message is shown, with what `logging.payload_log` allows.
    """
    if not logging.getLogger().handlers:
        logging.basicConfig(
            level=level.upper(),
            format="%(asctime)s %(levelname)-7s %(name)s %(message)s",
            stream=sys.stderr,
        )
        # The clients' own lines about each request are of no use below warnings.
        for name in ("aiokafka", "httpx2", "httpcore2"):
            logging.getLogger(name).setLevel(logging.WARNING)
        if not messages:
            logging.getLogger("deimos_async.messages").setLevel(logging.WARNING)
