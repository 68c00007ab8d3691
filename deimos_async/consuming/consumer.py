"""`Consumer`: what class consumers derive from."""

from __future__ import annotations

from typing import Any

__all__ = ["Consumer"]


class Consumer:
    """Base of class consumers. One instance is made at start, without arguments, for each time it is registered.

    Define `async def consume_message(self, message)` for message mode, or `async def consume_batch(self, messages)`
    for batch mode; further parameters are injected as a function's.
    """

    def fatal_error(self, error: BaseException, messages: list[Any]) -> bool:
        """Override to select errors that stop the consumer before any retry."""
        return False
