"""How one handler is called: built once, at start, so that a call only runs sessions, providers and the handler."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any

from deimos_async.errors import DatabaseUnavailableError
from deimos_async.specs import Argument, HandlerSpec, Provide, TakeMessage, TakeSession

__all__ = ["Call", "build_call"]

Call = Callable[[Any], Awaitable[Any]]
"""Takes the Message, or the list of them."""


def build_call(spec: HandlerSpec, *, open_session: Callable[[], Any] | None, owner: object) -> Call:
    """The callable that the dispatcher awaits for each message or batch: one attempt.

    A session is new for each call, in a transaction that commits when the handler returns and rolls back when it
    raises. Providers run in the order of the parameters and end in reverse, before the commit.

    Args:
        spec: The handler's resolved signature.
        open_session: Gives a new AsyncSession (not entered); None where there is no database.
        owner: The application, to which the session's transaction belongs.
    """
    function = spec.function
    if spec.is_async and not spec.arguments:
        return function
    if not spec.arguments:

        async def in_thread(message: Any) -> None:
            await _in_thread(function, message)

        return in_thread

    arguments = spec.arguments

    async def invoke(message: Any, session: Any) -> None:
        failure: BaseException | None = None
        async with AsyncExitStack() as stack:
            values = await _fill(arguments, message, session, stack, {})
            try:
                if spec.is_async:
                    await function(message, **values)
                else:
                    await _in_thread(function, message, **values)
            except BaseException as error:
                failure = error
                raise
        if failure is not None:
            raise failure  # a provider has caught it: it may see the handler's error, but not make it undone

    if not spec.needs_session:

        async def without_session(message: Any) -> None:
            await invoke(message, None)

        return without_session

    # start-up time: SQLAlchemy is loaded only where a handler takes a session
    from sqlalchemy.exc import DBAPIError

    from deimos_async.database.transactions import enter_scope, leave_scope

    assert open_session is not None  # checked at start: a handler with a session needs a database

    async def with_session(message: Any) -> None:
        async with open_session() as session:
            try:
                await session.connection()
            except (OSError, DBAPIError) as error:
                if isinstance(error, DBAPIError) and not _is_unreachable(error):
                    raise
                raise DatabaseUnavailableError("the database cannot be reached (setting 'database.url')") from error
            scope, token = enter_scope(owner, session)
            try:
                await invoke(message, session)
                await session.commit()
            finally:
                leave_scope(scope, token)

    return with_session


async def _in_thread(function: Callable[..., Any], message: Any, **values: Any) -> None:
    outcome = await asyncio.to_thread(function, message, **values)
    if inspect.isawaitable(outcome):
        await outcome  # a plain function that returns a coroutine, e.g. a wrapper around an async one


def _is_unreachable(error: Any) -> bool:
    # A connection that could not be opened at all: drivers raise OperationalError or InterfaceError for it.
    return type(error).__name__ in ("OperationalError", "InterfaceError") or bool(error.connection_invalidated)


async def _fill(
    arguments: Sequence[Argument],
    message: Any,
    session: Any,
    stack: AsyncExitStack,
    made: dict[Callable[..., Any], Any],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for argument in arguments:
        match argument.source:
            case TakeMessage():
                values[argument.name] = message
            case TakeSession():
                values[argument.name] = session
            case Provide() as provide:
                if provide.provider not in made:
                    made[provide.provider] = await _make(provide, message, session, stack, made)
                values[argument.name] = made[provide.provider]
    return values


async def _make(
    provide: Provide, message: Any, session: Any, stack: AsyncExitStack, made: dict[Callable[..., Any], Any]
) -> Any:
    values = await _fill(provide.arguments, message, session, stack, made)
    match provide.kind:
        case "async":
            return await provide.provider(**values)
        case "generator":
            return stack.enter_context(contextmanager(provide.provider)(**values))
        case "async_generator":
            return await stack.enter_async_context(asynccontextmanager(provide.provider)(**values))
        case _:
            return provide.provider(**values)
