"""`migrate`: the framework's own tables in the application's database."""

from __future__ import annotations

import asyncio
import importlib
from typing import TYPE_CHECKING

import click

from deimos_async.app import Deimos
from deimos_async.cli.loading import load_app, reporting
from deimos_async.cli.options import FiniteRange
from deimos_async.errors import ConfigurationError

if TYPE_CHECKING:  # optional library: Alembic
    from deimos_async.database.migrations.migrator import State

__all__ = ["migrate"]


@click.command()
@click.argument("app", metavar="APP")
@click.option("--to", metavar="REV", help="Go up to this revision; default: head, the last one.")
@click.option("--down-to", metavar="REV", help="Go back to this revision; base: drop all of it, rows included.")
@click.option("--sql", is_flag=True, help="Print SQL for the kind of database that APP has, and do nothing.")
@click.option(
    "--from",
    "start",
    metavar="REV",
    help="With --sql: where the database is; default: base when going up, head when going back.",
)
@click.option("--list", "listing", is_flag=True, help="Show the revisions and where the database is.")
@click.option(
    "--lock-timeout",
    type=FiniteRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for another process that migrates.",
)
def migrate(
    app: str, to: str | None, down_to: str | None, sql: bool, start: str | None, listing: bool, lock_timeout: float
) -> None:
    """Make or change the framework's tables in the database of APP. APP need not run.

    Tables of yours and your own Alembic history are not touched. Any number of processes may do this at once: one of
    them works, the others wait for it. REV is an id, head, base, +1 or -1.

    Exit status: 0; 1 when the database cannot be reached or refuses; 2 for mistakes.
    """
    with reporting():
        if to is not None and down_to is not None:
            raise ConfigurationError("--to and --down-to exclude each other: use one of them")
        if start is not None and not sql:
            raise ConfigurationError("--from goes with --sql; otherwise the database itself says where it is")
        if listing and (sql or to is not None or down_to is not None):
            raise ConfigurationError("--list changes nothing: use it alone")
        application = load_app(app)
        if listing:
            _show(asyncio.run(_list(application)))
        elif sql:
            click.echo(asyncio.run(_print(application, to, down_to, start)), nl=False)
        else:
            asyncio.run(_move(application, to, down_to, lock_timeout))


async def _move(app: Deimos, to: str | None, down_to: str | None, timeout: float) -> None:
    _require_alembic()
    from deimos_async.database.migrations.migrator import downgrade, state, upgrade  # optional library

    async with app.database_only() as database:
        if down_to is not None:
            steps = await downgrade(database.engine, down_to, timeout=timeout)
        else:
            steps = await upgrade(database.engine, to or "head", timeout=timeout)
        reached = await state(database.engine)
    for step in steps:
        click.echo(f"{'applied' if step.up else 'undone'} {step.revision.id}  {step.revision.title}")
    where = reached.current or "base"
    click.echo(f"the database is at {where}{' (head)' if reached.is_head else ''}; {len(steps)} revisions run")


async def _print(app: Deimos, to: str | None, down_to: str | None, start: str | None) -> str:
    _require_alembic()
    from deimos_async.database.migrations.migrator import downgrade_sql, upgrade_sql  # optional library

    async with app.database_only() as database:
        dialect = database.engine.dialect.name
    if down_to is not None:
        return downgrade_sql(dialect, down_to, start=start or "head")
    return upgrade_sql(dialect, to or "head", start=start or "base")


async def _list(app: Deimos) -> State:
    _require_alembic()
    from deimos_async.database.migrations.migrator import state  # optional library

    async with app.database_only() as database:
        return await state(database.engine)


def _show(state: State) -> None:
    ids = [revision.id for revision in state.revisions]
    applied = 0 if state.current is None else ids.index(state.current) + 1
    for number, revision in enumerate(state.revisions, 1):
        marks = ["applied" if number <= applied else "to apply"]
        marks += ["current"] * (number == applied) + ["head"] * (number == len(ids))
        click.echo(f"{revision.id}  {', '.join(marks):<24}  {revision.title}")
    click.echo(f"the database is at {state.current or 'base'}")


def _require_alembic() -> None:
    try:
        importlib.import_module("deimos_async.database.migrations.migrator")
    except ModuleNotFoundError as error:
        if error.name != "alembic":
            raise
        raise ConfigurationError(
            "the command migrate needs Alembic, which is not installed: pip install 'deimos-async[migrations]'"
        ) from error
