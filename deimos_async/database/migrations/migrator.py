"""Runs the framework's revisions: online on an async engine, or as SQL for somebody else to run.

Needs Alembic (the extra `migrations`), so it is imported where it is used.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext, MigrationInfo
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.ext.asyncio import AsyncEngine

from deimos_async.database.migrations import VERSION_TABLE
from deimos_async.database.schema_lock import LOCK_TIMEOUT, as_database_error, schema_lock
from deimos_async.errors import ConfigurationError, DatabaseError, LifecycleError

__all__ = [
    "Revision",
    "State",
    "Step",
    "downgrade",
    "downgrade_sql",
    "state",
    "upgrade",
    "upgrade_sql",
]


@dataclass(frozen=True, slots=True)
class Revision:
    """One revision.

    Attributes:
        id: As `deimos_0001`.
        title: What it is about, in a line.
    """

    id: str
    title: str


@dataclass(frozen=True, slots=True)
class Step:
    """A revision that was applied, or undone where `up` is false."""

    revision: Revision
    up: bool


@dataclass(frozen=True, slots=True)
class State:
    """How far a database is.

    Attributes:
        revisions: All that this version of the framework has, oldest first.
        current: Id of the last one that was applied; None before the first.
    """

    revisions: tuple[Revision, ...]
    current: str | None

    @property
    def is_head(self) -> bool:
        """Whether nothing is left to apply."""
        return self.current == self.revisions[-1].id


async def upgrade(engine: AsyncEngine, to: str = "head", *, timeout: float = LOCK_TIMEOUT) -> list[Step]:
    """Apply what is missing, up to a revision. At most one process does so at a time; others wait, and find it done.

    PostgreSQL and SQLite do all of it or, after an error or a cancellation, nothing. MySQL and MariaDB keep what was
    done; the next call goes on from there. A table of ours that exists is taken over, with its rows, if it has the
    columns that it should have.

    Args:
        to: Id of a revision, `head`, or `+1`.
        timeout: Seconds to wait for another process, and on PostgreSQL for a table that somebody uses.

    Returns:
        What was applied, oldest first.

    Raises:
        ConfigurationError: No such revision, or another kind of database.
        DatabaseUnavailableError: The database cannot be reached.
        DatabaseError: It refuses; another process was at it for too long; a newer version of the framework has migrated
            it; a table has one of our names and is not ours.
        LifecycleError: Another migration, of another database, is running in this process.
    """
    async with schema_lock(engine, timeout=timeout) as connection:
        return await connection.run_sync(partial(_migrate, run=command.upgrade, to=to))


async def downgrade(engine: AsyncEngine, to: str, *, timeout: float = LOCK_TIMEOUT) -> list[Step]:
    """Undo what was applied after a revision, newest first. Tables that go take their rows with them.

    Args:
        to: Id of a revision, `base` for all of it, or `-1`.
        timeout: As for `upgrade`, whose errors these are, too.
    """
    async with schema_lock(engine, timeout=timeout) as connection:
        return await connection.run_sync(partial(_migrate, run=command.downgrade, to=to))


async def state(engine: AsyncEngine) -> State:
    """How far the database is; nothing is changed.

    Raises:
        DatabaseUnavailableError: The database cannot be reached.
        DatabaseError: It refuses, or a newer version of the framework has migrated it.
    """
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(_state)
    except DatabaseError:
        raise
    except Exception as error:
        # Drivers let errors of their own through while they connect.
        raise as_database_error(error) from error


def upgrade_sql(dialect: str, to: str = "head", *, start: str = "base") -> str:
    """SQL that does what `upgrade` does, from one revision to a later one.

    It asks the database nothing: a table that exists makes it fail. Where it comes to a revision, it writes that down.

    Args:
        dialect: SQLAlchemy's name: `postgresql`, `mysql`, `mariadb` or `sqlite`.
        start: Where the database is; `base` for one that has none of our tables.

    Raises:
        ConfigurationError: No such revision.
    """
    return _sql(dialect, command.upgrade, start, to)


def downgrade_sql(dialect: str, to: str, *, start: str = "head") -> str:
    """SQL that does what `downgrade` does; arguments and errors as for `upgrade_sql`."""
    return _sql(dialect, command.downgrade, start, to)


def _migrate(connection: sa.Connection, *, run: Callable[[Config, str], None], to: str) -> list[Step]:
    steps: list[Step] = []
    known = {
        revision.id: revision for revision in _state(connection).revisions
    }  # refuses what a newer version has made

    def told(*, step: MigrationInfo, **_: object) -> None:
        assert step.up_revision_id is not None
        steps.append(Step(known[step.up_revision_id], step.is_upgrade))

    with _alone_in_process(), _told(to):
        run(_config(connection=connection, on_version_apply=told), to)
    return steps


def _state(connection: sa.Connection) -> State:
    scripts = ScriptDirectory.from_config(_config()).walk_revisions()
    revisions = tuple(Revision(script.revision, script.doc) for script in scripts)[::-1]
    current = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()
    if current is not None and all(current != revision.id for revision in revisions):
        raise DatabaseError(
            f"the database is at revision {current!r}, which this version of deimos-async does not know; "
            "use the version that has migrated it, or a later one"
        )
    return State(revisions, current)


def _sql(dialect: str, run: Callable[..., None], start: str, to: str) -> str:
    output = io.StringIO()
    config = _config(dialect=dialect)
    config.output_buffer = output
    with _alone_in_process(), _told(f"{start}:{to}"):
        if start == "head":
            head = ScriptDirectory.from_config(config).get_current_head()
            assert head is not None
            start = head
        run(config, f"{start}:{to}", sql=True)
    return output.getvalue()


def _config(**attributes: Any) -> Config:
    config = Config(attributes=attributes)
    config.set_main_option("script_location", "deimos_async:database/migrations")
    return config


@contextmanager
def _told(revision: str) -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        raise ConfigurationError(f"revision {revision!r}: {error}") from error


_in_process = threading.Lock()


@contextmanager
def _alone_in_process() -> Iterator[None]:
    # What revisions import as `alembic.op` and `alembic.context` is one for the whole process.
    if not _in_process.acquire(blocking=False):
        raise LifecycleError("another migration is running in this process; run one after the other")
    try:
        yield
    finally:
        _in_process.release()
