"""Tests of applications: the pytest plugin, and the types that its fixture hands out.

What belongs here: what stands in for the surroundings in a test, and how a failed assertion explains itself. What does
not: a broker or registry in memory (see `brokers`, `schemas`), which applications use too. Only `plugin` knows pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deimos_async.testing.harness import DeimosHarness
    from deimos_async.testing.sent import SentHeaders, SentMessage

__all__ = ["DeimosHarness", "SentHeaders", "SentMessage"]

_HOMES = {"DeimosHarness": "harness", "SentHeaders": "sent", "SentMessage": "sent"}


def __getattr__(name: str) -> Any:
    # start-up time: pytest imports this package in every run, for the plugin
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
