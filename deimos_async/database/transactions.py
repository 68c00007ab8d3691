"""What is written before a transaction's commit, what leaves after it, and what a rollback drops.

A `Departures` hangs on each session that somebody produced into. It holds work in order, each piece with the
transaction (the outermost one or a savepoint) in which it was given:

- a savepoint that rolls back drops its pieces and those of the savepoints inside it;
- the outermost rollback drops everything;
- the outermost commit first flushes the session, and then calls the writers of `write_with`, in the same transaction:
  at its end, when it has locked its own rows, so that ids of our rows follow the order of the locks, and are open
  only shortly. What they raise reaches whoever commits, and the transaction cannot be committed any more;
- then it calls the senders of `depart_with`, after the rows are durable and before `commit()` returns, so an error of
  the sending reaches whoever committed, with the rows kept.

SQLAlchemy tells all this by synchronous events on the inner `Session`; they run inside the greenlet of the
`AsyncSession`'s call, where `await_only` may wait for a coroutine. It tells a commit for each savepoint too, and it
tells it before its own flush; and other listeners, which are told later, may still change rows. So what is given when
the commit has begun is written right after the flush that it comes from, or at once. That may be the first thing that a
session produces. Therefore the listeners are those of all sessions: to listen to each one costs more than to tell that
there is nothing to do, and is not possible any more while it is told of its commit.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from deimos_async.database.fencing import FencedSession
from deimos_async.errors import LifecycleError

__all__ = [
    "Departures",
    "Scope",
    "Send",
    "Write",
    "current_scope",
    "depart_with",
    "enter_scope",
    "leave_scope",
    "open_scope",
    "refuse_loss",
    "tell_with",
    "write_with",
]

Send = Callable[[Sequence[Any]], Awaitable[None]]
Write = Callable[[Session, Sequence[Any]], Awaitable[None] | None]
"""Gets the session and the items. It is called where the session may be used, as by `AsyncSession.run_sync`.

It may be a coroutine function; the coroutine itself runs outside of that greenlet, as all coroutines do, and may use
the session only by SQLAlchemy's `greenlet_spawn`. With a plain `Session` it must not wait for anything.
"""

logger = logging.getLogger("deimos_async.database")

_INFO_KEY = "deimos_async.departures"
_MOST_ROUNDS = 100
"""Times that writers may make each other write again; SQLAlchemy gives up after so many flushes of a commit."""


@dataclass(frozen=True, slots=True)
class _Piece:
    transaction: SessionTransaction
    call: Callable[..., Awaitable[None] | None]
    items: Sequence[Any]


class Departures:
    """What is written before one session's outermost commit, and what leaves after it."""

    def __init__(self) -> None:
        self._unwritten: list[_Piece] = []
        self._unsent: list[_Piece] = []
        self._committing = False
        """The outermost commit has begun."""
        self._broken = False
        """A writer has failed, perhaps half way."""
        self._committed = False
        self._leaving = False
        """The transaction is over, and what leaves after its commit is leaving."""
        self._past_flush = False
        """Nothing more is written at the end of the flush that is going on: that moment has passed."""

    def write(self, session: Session, write: Write, items: Sequence[Any]) -> None:
        """Keep the items until the session is flushed for the commit; then `write` gets them and their neighbours."""
        self._check()
        self._unwritten.append(_Piece(_innermost(session), write, items))
        if self.is_late(session):
            self._write(session)
        elif self._committing and self._past_flush:
            self._write_pieces(session)

    def send(self, session: Session, send: Callable[..., Awaitable[None] | None], items: Sequence[Any]) -> None:
        """Keep the items until the commit; `send` is then called with all its neighbours that have the same `send`."""
        self._check()
        self._unsent.append(_Piece(_innermost(session), send, items))

    def _check(self) -> None:
        if self._leaving:
            # It would wait for a transaction that nobody knows of.
            raise LifecycleError("the transaction of this session is committed; produce before that")

    def is_late(self, session: Session) -> bool:
        """Whether there is nothing to wait for any more: the commit has begun, and no flush is going on."""
        # Events do not say when a flush ends that turns out to have nothing to do.
        return self._committing and not session._flushing

    def before_commit(self, session: Session) -> None:
        """The outermost commit begins."""
        if self._broken:
            raise LifecycleError(
                "what belongs to this transaction could not be written before, so it cannot be committed; roll it back"
            )
        self._committing = True
        if self._unwritten:
            self._write(session)

    def before_flush(self) -> None:
        """A flush begins."""
        self._past_flush = False

    def after_flush(self, session: Session) -> None:
        """A flush has come to its end; whoever gives something there is told before."""
        if self._committing:
            self._write_pieces(session)
        self._past_flush = True

    def _write(self, session: Session) -> None:
        for _ in range(_MOST_ROUNDS):
            session.flush()  # what it gives is written by `after_flush`
            if not self._unwritten:
                return
            self._write_pieces(session)
        raise LifecycleError(f"there was still something to write after {_MOST_ROUNDS} rounds before a commit")

    def _write_pieces(self, session: Session) -> None:
        pieces, self._unwritten = self._unwritten, []
        try:
            for write, items in _neighbours(pieces):
                _finish(write(session, items))
        except BaseException:
            self._broken = True
            raise

    def after_commit(self) -> None:
        """The outermost transaction is committed."""
        self._committed = True

    def after_rollback(self, previous: SessionTransaction) -> None:
        """That transaction or savepoint, and what is inside it, was rolled back."""
        self._unwritten = [piece for piece in self._unwritten if not _is_within(piece.transaction, previous)]
        self._unsent = [piece for piece in self._unsent if not _is_within(piece.transaction, previous)]

    def after_end(self) -> None:
        """The outermost transaction has ended, one way or the other."""
        unwritten, self._unwritten = self._unwritten, []
        pieces, self._unsent = self._unsent, []
        committed = self._committed
        self._committing = self._broken = self._committed = False
        if not committed:
            if dropped := sum(len(piece.items) for piece in unwritten + pieces):
                logger.info("%d messages of a transaction that did not commit are dropped", dropped)
            return
        failures: list[Exception] = []
        self._leaving = True
        try:
            for send, items in _neighbours(pieces):
                try:
                    _finish(send(items))
                except Exception as error:
                    # Each group of senders is tried: those behind it have nothing to do with this one's failure.
                    failures.append(error)
        finally:
            self._leaving = False
        for failure in failures[1:]:
            failures[0].add_note(f"and also: {failure}")
        if failures:
            raise failures[0]


def _neighbours(pieces: Sequence[_Piece]) -> Iterator[tuple[Callable[..., Awaitable[None] | None], list[Any]]]:
    first = 0
    for index in range(1, len(pieces) + 1):
        if index == len(pieces) or pieces[index].call != pieces[first].call:
            yield pieces[first].call, [item for piece in pieces[first:index] for item in piece.items]
            first = index


def _finish(outcome: Awaitable[None] | None) -> None:
    """Wait within the greenlet of an AsyncSession; a plain Session has none, and nobody who would wait."""
    if outcome is None:
        return
    if in_greenlet():
        await_only(outcome)
        return
    steps = outcome.__await__()
    try:
        next(steps)
    except StopIteration:
        return
    steps.close()
    raise LifecycleError("a plain Session cannot wait for what has to be asked first; use an AsyncSession")


def _innermost(session: Session) -> SessionTransaction:
    return session.get_nested_transaction() or session.get_transaction() or session.begin()


def _is_outermost(session: Session) -> bool:
    transaction = session.get_nested_transaction() or session.get_transaction()
    return transaction is not None and transaction.parent is None


def _is_within(transaction: SessionTransaction, outer: SessionTransaction) -> bool:
    inner: SessionTransaction | None = transaction
    while inner is not None:
        if inner is outer:
            return True
        inner = inner.parent
    return False


def write_with(session: AsyncSession | Session, write: Write, items: Sequence[Any]) -> None:
    """Keep the items until the session's outermost transaction commits, and write them then, at its end.

    `write` is called once for all its neighbours, after the flush; what it writes is part of the transaction, and what
    it raises is raised by the commit and lets nothing be committed. A rollback drops the items, that of a savepoint
    those that were given in it. Given from a listener when the commit has begun, they are written at once, or after the
    flush that is going on.

    Args:
        write: Writers that are equal are called together, so give the same one each time.

    Raises:
        LifecycleError: The argument is no session; or the commit has begun, and a coroutine gives more.
    """
    inner = session.sync_session if isinstance(session, AsyncSession) else session
    if not isinstance(inner, Session):
        raise LifecycleError(f"session= takes an AsyncSession or a Session, not {type(session).__name__}")
    departures = _departures(inner)
    if inner is not session and departures.is_late(inner) and not in_greenlet():
        raise LifecycleError("the commit of this session has begun; produce before it")
    departures.write(inner, write, items)


def tell_with(session: Session, tell: Callable[[Sequence[Any]], Awaitable[None] | None], items: Sequence[Any]) -> None:
    """As `depart_with`, for what only notes that something was committed: on any session, by a plain call too."""
    _departures(session).send(session, tell, items)


def depart_with(session: AsyncSession, send: Send, items: Sequence[Any]) -> None:
    """Keep the items until the session's outermost transaction commits; a rollback drops them.

    Raises:
        LifecycleError: The argument is no AsyncSession.
    """
    if not isinstance(session, AsyncSession):
        raise LifecycleError(f"session= takes an AsyncSession, not {type(session).__name__}")
    _departures(session.sync_session).send(session.sync_session, send, items)


def _departures(session: Session) -> Departures:
    found = _known(session)
    if found is None:
        found = session.info[_INFO_KEY] = Departures()
    return found


def _known(session: Session) -> Departures | None:
    found: Departures | None = session.info.get(_INFO_KEY)
    return found


@event.listens_for(Session, "before_commit")
def _before_commit(session: Session) -> None:
    if _is_outermost(session):
        _departures(session).before_commit(session)


@event.listens_for(Session, "before_flush")
def _before_flush(session: Session, context: Any, instances: Any) -> None:
    if (found := _known(session)) is not None:
        found.before_flush()


@event.listens_for(Session, "after_flush_postexec")
def _after_flush(session: Session, context: Any) -> None:
    if (found := _known(session)) is not None:
        found.after_flush(session)


@event.listens_for(Session, "after_commit")
def _after_commit(session: Session) -> None:
    if (found := _known(session)) is not None and _is_outermost(session):
        found.after_commit()


@event.listens_for(Session, "after_soft_rollback")
def _after_rollback(session: Session, previous: SessionTransaction) -> None:
    if (found := _known(session)) is not None:
        found.after_rollback(previous)


@event.listens_for(Session, "after_transaction_end")
def _after_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None and (found := _known(session)) is not None:
        found.after_end()


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
    # An asynchronous generator may be ended in another task than it began in, which then has nothing of it.
    with suppress(ValueError):
        _scopes.reset(token)
