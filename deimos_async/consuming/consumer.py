"""`Consumer`: what class consumers derive from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from deimos_async.events import EventBus
from deimos_async.specs import Delivering
from deimos_async.topics import KeyConfig, TopicOptions

__all__ = ["Circumstances", "Consumer"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Where an instance of a class consumer will run, as far as it is known at start.

    Attributes:
        name: The consumer's, for errors and logs.
        key: How the topic's keys are made, or UNSET.
        dialect: SQLAlchemy's, of the application's database; None: there is none.
        options: The topic's, merged with the defaults.
    """

    name: str
    key: KeyConfig
    batch: bool
    delivery: Delivering
    dialect: Any
    events: EventBus
    options: TopicOptions = field(default_factory=TopicOptions)


class Consumer:
    """Base of class consumers. One instance is made at start, without arguments, for each time it is registered.

    Define `async def consume_message(self, message)` for message mode, or `async def consume_batch(self, messages)`
    for batch mode; further parameters are injected as a function's.
    """

    def fatal_error(self, error: BaseException, messages: list[Any]) -> bool:
        """Override to select errors that stop the consumer before any retry."""
        return False

    def _prepare(self, circumstances: Circumstances) -> Sequence[Any]:
        """For bases of this library that must know where they run; called once, at start.

        Returns:
            SQLAlchemy's MetaData of the tables that it writes: embedded runs, whose database is empty, make them.

        Raises:
            ConfigurationError: Every mistake in the class.
        """
        return ()
