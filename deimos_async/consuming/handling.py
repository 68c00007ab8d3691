"""How one handler is called: built once, at start, so that a call only runs sessions, providers and the handler."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import Any, Protocol

from deimos_async.consuming.stored_offsets import PATIENCE, Ending, MustReread, Refused, StoredOffsets
from deimos_async.errors import DatabaseError, DatabaseUnavailableError
from deimos_async.message import TopicPartition
from deimos_async.specs import Argument, HandlerSpec, Provide, TakeMessage, TakeSession

__all__ = ["Call", "FencedCall", "build_call", "build_fenced_call"]

logger = logging.getLogger("deimos_async.consuming")

Call = Callable[[Any], Awaitable[Any]]
"""Takes the Message, or the list of them."""


class FencedCall(Protocol):
    """A call whose transaction stores more than what the handler writes."""

    async def __call__(self, message: Any, ending: Ending | None = None) -> None:
        """Call with the Message, or the list of them. None: the offset moves behind them."""


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

    invoke = _invocation(spec)
    if not spec.needs_session:

        async def without_session(message: Any) -> None:
            await invoke(message, None)

        return without_session

    # start-up time: SQLAlchemy is loaded only where a handler takes a session
    from deimos_async.database.transactions import enter_scope, leave_scope

    assert open_session is not None  # checked at start: a handler with a session needs a database
    connect, surroundings = _connecting(), _surroundings()

    async def with_session(message: Any) -> None:
        async with open_session() as session:
            await connect(session)
            scope, token = enter_scope(owner, session)
            try:
                await invoke(message, session)
                await session.commit()
            except Exception as error:
                if (translated := surroundings(error)) is not None:
                    raise translated from error
                raise
            finally:
                leave_scope(scope, token)

    return with_session


def build_fenced_call(
    spec: HandlerSpec, *, open_session: Callable[[], Any], owner: object, offsets: StoredOffsets | None
) -> FencedCall:
    """As `build_call`, for `delivery="effectively_once"`: the stored offset moves in the handler's transaction.

    What the call raises besides the handler's own errors: `MustReread`, when the stored offset is another one, and when
    it is not known whether a commit went through; `Refused`, when the handler did what breaks the guarantee; a
    `DatabaseError` with `retriable` true for a lost conflict with another transaction. Whatever it raises, nothing was
    committed as far as is known.

    Args:
        spec: The handler takes a session, itself or by a provider.
        open_session: Gives a new AsyncSession (not entered) that drives a `FencedSession`.
        offsets: None: there is no partition to move on in, as in a test that hands over a message of its own.
    """
    # start-up time: SQLAlchemy is loaded only where a handler takes a session
    from deimos_async.database.errors import is_away
    from deimos_async.database.fencing import FencedSession
    from deimos_async.database.transactions import enter_scope, leave_scope

    invoke, connect, is_batch = _invocation(spec), _connecting(), spec.batch
    surroundings = _surroundings()

    async def attempt(message: Any, session: Any, fence: FencedSession, ending: Ending | None) -> None:
        first, last = (message[0], message[-1]) if is_batch else (message, message)
        partition = TopicPartition(first.topic, first.partition)
        if ending is None and offsets is not None:
            ending = offsets.passing(partition, first.offset, last.offset + 1)
        await invoke(message, session)
        if fence.refused is not None:
            raise fence.refused
        if fence.new or fence.dirty or fence.deleted:
            # Before the offset's row is locked, and while it is clear that an error is the handler's.
            await session.flush()
        try:
            async with asyncio.timeout(PATIENCE):
                if ending is not None:
                    await ending.store(session)
                fence.may_commit = True
                await session.commit()
        except Exception as error:
            if not fence.is_committed:
                await session.run_sync(FencedSession.drop_connection)
                if is_away(error):
                    raise MustReread(f"whether it was committed is not known ({type(error).__name__})") from error
                raise
            logger.exception(
                "%s[%d]@%d..%d is committed, but what follows a commit failed", *partition, first.offset, last.offset
            )
        finally:
            if ending is not None and fence.is_committed:
                ending.committed()

    async def fenced(message: Any, ending: Ending | None = None) -> None:
        async with open_session() as session:
            await connect(session)
            fence: FencedSession = session.sync_session
            scope, token = enter_scope(owner, session)
            try:
                await attempt(message, session, fence, ending)
            except Exception as error:
                if fence.refused is not None:
                    if offsets is None:
                        raise fence.refused from error
                    raise Refused(fence.refused) from error
                if (translated := surroundings(error)) is not None:
                    raise translated from error
                raise
            finally:
                leave_scope(scope, token)

    return fenced


def _connecting() -> Callable[[Any], Awaitable[None]]:
    """What opens a session's connection. Where there is none to be had, that is never the message's fault."""
    from sqlalchemy.exc import DBAPIError  # start-up time

    async def connect(session: Any) -> None:
        try:
            await session.connection()
        except (OSError, DBAPIError) as error:
            raise DatabaseUnavailableError(
                f"the database cannot be reached (setting 'database.url'): {type(error).__name__}"
            ) from error

    return connect


def _surroundings() -> Callable[[Exception], DatabaseError | None]:
    """What makes a retriable error of ours from one of the database that has nothing to do with the message."""
    # start-up time: SQLAlchemy is loaded only where a handler takes a session
    from sqlalchemy.exc import DBAPIError

    from deimos_async.database.errors import conflict, is_away, is_transient

    def translated(error: Exception) -> DatabaseError | None:
        if not isinstance(error, DBAPIError):
            return None
        if is_transient(error):
            return conflict(error)
        if is_away(error):
            return DatabaseUnavailableError(f"the database went away, or cannot work now ({type(error).__name__})")
        return None

    return translated


def _invocation(spec: HandlerSpec) -> Callable[[Any, Any], Awaitable[None]]:
    """Calls the handler with its providers, given the message (or messages) and the session."""
    function, arguments = spec.function, spec.arguments

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

    return invoke


async def _in_thread(function: Callable[..., Any], message: Any, **values: Any) -> None:
    outcome = await asyncio.to_thread(function, message, **values)
    if inspect.isawaitable(outcome):
        await outcome  # a plain function that returns a coroutine, e.g. a wrapper around an async one


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
