"""One answer for all who ask the same question at the same time, and things that belong to one event loop each."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

from deimos_async.errors import DeimosError, RegistryUnavailableError

__all__ = ["PerLoop", "SingleFlight"]

_T = TypeVar("_T")


class PerLoop(Generic[_T]):
    """A thing for each event loop that asks for it, since connections and futures cannot go from one loop to another.

    Those of closed loops are forgotten when another loop asks.
    """

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._made: dict[asyncio.AbstractEventLoop, _T] = {}

    def get(self) -> _T:
        """The running loop's one, made at its first call."""
        loop = asyncio.get_running_loop()
        found = self._made.get(loop)
        if found is None:
            for other in list(self._made):
                if other.is_closed():
                    self._made.pop(other, None)
            found = self._made[loop] = self._make()
        return found

    def pop(self) -> _T | None:
        """Take the running loop's one away; None if there is none. The next `get` makes another."""
        return self._made.pop(asyncio.get_running_loop(), None)


class _Flight(NamedTuple):
    task: asyncio.Task[Any]
    answer: asyncio.Future[Any]


class SingleFlight:
    """Questions under way, in one event loop.

    Each is a task of its own, so that no asker's cancellation touches the others. The answer goes to everyone who asked
    until it came; nothing is kept afterwards.
    """

    def __init__(self) -> None:
        self._flights: dict[Hashable, _Flight] = {}

    async def ask(self, question: Hashable, answer: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        """What `answer()` returns or raises, called once for all who ask the same question meanwhile.

        Raises:
            RegistryUnavailableError: `close` came before the answer.

        Cancelled: the question stays under way; others get its answer.
        """
        flight = self._flights.get(question)
        if flight is None:
            flight = self._start(question, answer)
        # Awaiting the future itself would cancel it for everybody along with the first asker.
        await asyncio.wait((flight.answer,))
        error = flight.answer.exception()
        if isinstance(error, DeimosError):
            # One instance raised in many places would collect all their tracebacks.
            raise copy.copy(error) from error.__cause__
        result: _T = flight.answer.result()
        return result

    async def close(self) -> None:
        """End all questions. Their askers get RegistryUnavailableError."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _start(self, question: Hashable, answer: Callable[[], Coroutine[Any, Any, Any]]) -> _Flight:
        task = asyncio.create_task(answer(), name=f"schema registry: {_short(question)}")
        flight = _Flight(task, asyncio.get_running_loop().create_future())
        self._flights[question] = flight
        task.add_done_callback(lambda _: self._land(question, flight))
        return flight

    def _land(self, question: Hashable, flight: _Flight) -> None:
        del self._flights[question]
        task, answer = flight
        error: BaseException | None
        if task.cancelled():
            error = RegistryUnavailableError("the schema registry's client was closed before the answer came")
        else:
            error = task.exception()
        if error is None:
            answer.set_result(task.result())
        else:
            answer.set_exception(error)
            answer.exception()  # marks it as seen: every asker may have been cancelled


def _short(question: Hashable) -> str:
    parts = question if isinstance(question, tuple) else (question,)
    return " ".join(str(part)[:60] for part in parts[:2])
