"""Sessions whose commit is kept for whoever stores the offset in the same transaction."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, event
from sqlalchemy.orm import Session

from deimos_async.errors import ConfigurationError

__all__ = ["FencedSession"]


class FencedSession(Session):
    """The plain session within a handler's AsyncSession, where its offset is stored in the same transaction.

    A handler that committed by itself would commit without the offset, and its rows would come twice: that is refused,
    and remembered, should the handler catch the refusal. A rollback is the handler's own business.

    Attributes:
        may_commit: Whether the outermost transaction may commit now.
        is_committed: Whether it has.
        refused: Why the handler must not go through, whatever it returns or raises itself.
        committing: The connection that the outermost commit went to.
    """

    may_commit = False
    is_committed = False
    refused: ConfigurationError | None = None
    committing: Connection | None = None

    def drop_connection(self) -> None:
        """After a commit that failed: let nobody else have its connection.

        SQLAlchemy takes such a commit for the transaction's end and gives the connection back without a rollback;
        SQLite for one still has the transaction then, if the commit found the database locked.
        """
        if self.committing is not None:
            self.committing.invalidate()

    def refuse(self, problem: str) -> ConfigurationError:
        """Let nothing of this session be committed any more; returns the error to raise."""
        self.refused = ConfigurationError(problem)
        self.may_commit = False
        return self.refused


# Events, as `async with session.begin()` commits without calling the session's `commit`.


@event.listens_for(FencedSession, "before_commit")
def _refuse_commit(session: FencedSession) -> None:
    if not _is_outermost(session):
        return
    if session.may_commit:
        session.committing = session.connection()
    else:
        raise session.refuse(
            "a handler with delivery='effectively_once' must not commit its session: it commits by itself when the "
            "handler returns, together with the offset. Use session.begin_nested() for a part that may fail alone"
        )


@event.listens_for(FencedSession, "after_commit")
def _note_commit(session: FencedSession) -> None:
    if _is_outermost(session):
        session.is_committed = True


def _is_outermost(session: Any) -> bool:
    transaction = session.get_nested_transaction() or session.get_transaction()
    return transaction is not None and transaction.parent is None
