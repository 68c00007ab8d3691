"""What leaves when a transaction commits, and what a rollback drops.

A `Departures` hangs on each session that somebody produced into. It holds work in order, each piece with the
transaction (the outermost one or a savepoint) in which it was given:

- a savepoint that rolls back drops its pieces and those of the savepoints inside it;
- the outermost rollback drops everything;
- the outermost commit calls the pieces' senders, after the rows are durable and before `commit()` returns, so an
  error of the sending reaches whoever committed, with the rows kept.

SQLAlchemy tells all this by synchronous events on the inner `Session`; they run inside the greenlet of the
`AsyncSession`'s call, where `await_only` may wait for a coroutine.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only

from deimos_async.database.fencing import FencedSession
from deimos_async.errors import LifecycleError

__all__ = [
    "Departures",
    "Scope",
    "current_scope",
    "depart_with",
    "enter_scope",
    "leave_scope",
    "open_scope",
    "refuse_loss",
]

Send = Callable[[Sequence[Any]], Awaitable[None]]

logger = logging.getLogger("deimos_async.database")

_INFO_KEY = "deimos_async.departures"


@dataclass(frozen=True, slots=True)
class _Piece:
    transaction: SessionTransaction
    send: Send
    item: Any


class Departures:
    """What leaves with one session's outermost commit."""

    def __init__(self, session: Session) -> None:
        self._pieces: list[_Piece] = []
        self._committed = False
        event.listen(session, "after_commit", self._after_commit)
        event.listen(session, "after_soft_rollback", self._after_rollback)
        event.listen(session, "after_transaction_end", self._after_end)

    def add(self, session: Session, send: Send, items: Sequence[Any]) -> None:
        """Keep the items until the commit; `send` is then called with all its neighbours that have the same `send`."""
        transaction = session.get_nested_transaction() or session.get_transaction()
        if transaction is None:
            transaction = session.begin()
        self._pieces.extend(_Piece(transaction, send, item) for item in items)

    def _after_commit(self, session: Session) -> None:
        transaction = session.get_nested_transaction() or session.get_transaction()
        if transaction is not None and transaction.parent is None:
            self._committed = True

    def _after_rollback(self, session: Session, previous: SessionTransaction) -> None:
        self._pieces = [piece for piece in self._pieces if not _is_within(piece.transaction, previous)]

    def _after_end(self, session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is not None:
            return
        pieces, self._pieces = self._pieces, []
        committed, self._committed = self._committed, False
        if not committed:
            if pieces:
                logger.info("%d messages of a transaction that did not commit are dropped", len(pieces))
            return
        failures: list[Exception] = []
        first = 0
        for index in range(1, len(pieces) + 1):
            if index == len(pieces) or pieces[index].send != pieces[first].send:
                try:
                    await_only(pieces[first].send([piece.item for piece in pieces[first:index]]))
                except Exception as error:
                    # Each group of senders is tried: those behind it have nothing to do with this one's failure.
                    failures.append(error)
                first = index
        for failure in failures[1:]:
            failures[0].add_note(f"and also: {failure}")
        if failures:
            raise failures[0]


def _is_within(transaction: SessionTransaction, outer: SessionTransaction) -> bool:
    inner: SessionTransaction | None = transaction
    while inner is not None:
        if inner is outer:
            return True
        inner = inner.parent
    return False


def depart_with(session: AsyncSession, send: Send, items: Sequence[Any]) -> None:
    """Keep the items until the session's outermost transaction commits; a rollback drops them.

    Raises:
        LifecycleError: The argument is no AsyncSession.
    """
    if not isinstance(session, AsyncSession):
        raise LifecycleError(f"session= takes an AsyncSession, not {type(session).__name__}")
    inner = session.sync_session
    departures = inner.info.get(_INFO_KEY)
    if departures is None:
        departures = inner.info[_INFO_KEY] = Departures(inner)
    departures.add(inner, send, items)


class Scope:
    """The transaction that surrounds the running code: a block of `app.transaction()`, or a handler's session."""

    __slots__ = ("ended", "owner", "session")

    def __init__(self, owner: object, session: AsyncSession) -> None:
        self.owner = owner
        self.session = session
        self.ended = False


_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("deimos_async.transactions", default=())


def current_scope(owner: object) -> Scope | None:
    """The innermost scope of this application in this task (child tasks inherit it), or None.

    Raises:
        LifecycleError: That transaction has ended, so nothing can leave with it any more.
    """
    for scope in reversed(_scopes.get()):
        if scope.owner is owner:
            if scope.ended:
                raise LifecycleError(
                    "the transaction that surrounds this call has ended; produce before it ends, "
                    "or outside of it (a task started inside of it inherits it)"
                )
            return scope
    return None


def refuse_loss(owner: object, problem: str) -> None:
    """Raise if the surrounding session of this application stores an offset, which must not pass what may be lost.

    Raises:
        ConfigurationError: It does. Nothing of that session can be committed any more.
    """
    scope = open_scope(owner)
    if scope is not None and isinstance(inner := scope.session.sync_session, FencedSession):
        raise inner.refuse(problem)


def open_scope(owner: object) -> Scope | None:
    """As `current_scope`, but a transaction that has ended counts as none: a new one may begin."""
    for scope in reversed(_scopes.get()):
        if scope.owner is owner:
            return None if scope.ended else scope
    return None


def enter_scope(owner: object, session: AsyncSession) -> tuple[Scope, Token[tuple[Scope, ...]]]:
    """Make the session what `current_scope` finds."""
    scope = Scope(owner, session)
    return scope, _scopes.set((*_scopes.get(), scope))


def leave_scope(scope: Scope, token: Token[tuple[Scope, ...]]) -> None:
    """End it, also for child tasks that still hold it."""
    scope.ended = True
    _scopes.reset(token)
