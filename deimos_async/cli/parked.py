"""`parked list | show | retry | release | drop`: what the outbox could not send."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deimos_async.app import Deimos
from deimos_async.cli.loading import EXIT_FAILURE, load_app, reporting
from deimos_async.cli.options import FiniteRange, point_in_time
from deimos_async.database.outbox.protocol import ParkedRow, RowContent, WaitingRow
from deimos_async.errors import ConfigurationError
from deimos_async.outbox.rows import decode_headers
from deimos_async.plain_text import escaped

if TYPE_CHECKING:  # start-up time: SQLAlchemy is loaded when the command runs
    from deimos_async.database.outbox.parking import ParkedFilter, ParkedStore

__all__ = ["parked"]

T = TypeVar("T")
_ID = click.IntRange(min=1)
_IDS = click.argument("ids", metavar="[ID]...", nargs=-1, type=_ID)
_FILTERS = (
    click.option(
        "--topic", "topics", metavar="NAME", multiple=True, help="Of this topic, as Kafka knows it. Repeatable."
    ),
    click.option(
        "--error", "codes", metavar="CODE", multiple=True, help="With this error, e.g. too_large. Repeatable."
    ),
    click.option(
        "--since",
        type=point_in_time,
        metavar="TIME",
        help="Put aside then or later: a time (UTC unless it says so), or an age: 12h.",
    ),
    click.option("--until", type=point_in_time, metavar="TIME", help="Put aside before then."),
)


def _filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group()
def parked() -> None:
    """Messages that the outbox of APP could not send. APP need not run, and Kafka is not asked.

    With the setting outbox.poison=park they were put aside; with block_key they are at the front of the outbox, and
    their keys wait for them.
    """


# --- list --------------------------------------------------------------------------------------------------------


@parked.command("list")
@click.argument("app", metavar="APP")
@_filtered
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Show so many, the last ones first."
)
@click.option(
    "--waiting",
    type=FiniteRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Also show what has waited for longer at the front of the outbox.",
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_rows(
    app: str,
    topics: tuple[str, ...],
    codes: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    limit: int,
    waiting: float,
    as_json: bool,
) -> None:
    """Count parked messages by topic and error, and show the last ones, and those that may block their keys.

    The latter are the first message of each key among the first 1000 of the outbox, where it has waited for long. Which
    of them block their keys, the pump's log says.
    """

    async def ask(store: ParkedStore) -> tuple[Any, list[ParkedRow], list[WaitingRow]]:
        wanted = _filter((), topics, codes, since, until)
        shown = await store.rows(wanted, limit=limit) if limit else []
        return await store.counts(wanted), list(shown), list(await store.waiting(older_than=waiting, topics=topics))

    counts, rows, fronts = _at_store(app, ask)
    if as_json:
        found = {
            "counts": [{"topic": topic, "error": code, "count": count} for topic, code, count in counts],
            "rows": [_parked_row(row) for row in rows],
            "waiting": [_waiting_row(row) for row in fronts],
        }
        click.echo(json.dumps(found))
        return
    for topic, code, count in counts:
        click.echo(escaped(f"{topic}: {count} parked, {code or 'not said'}"))
    if not counts:
        click.echo("nothing is parked")
    for row in rows:
        click.echo(escaped(f"{_shown(row.parked_at)}  {row.id}  {row.topic}  {row.code}  {row.size} bytes"))
    for front in fronts:
        click.echo(escaped(f"waits for {front.age:.0f} s  {front.id}  {front.topic}  {front.size} bytes"))


# --- show --------------------------------------------------------------------------------------------------------


@parked.command("show")
@click.argument("app", metavar="APP")
@click.argument("row", metavar="ID", type=_ID)
@click.option("--reveal", is_flag=True, help="Key, payload and headers themselves, not only their sizes and hashes.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(app: str, row: int, reveal: bool, as_json: bool) -> None:
    """Show one message, parked or waiting. What it says is hidden unless --reveal is given, and never decoded."""

    async def ask(store: ParkedStore) -> tuple[ParkedRow | WaitingRow | None, RowContent | None]:
        found = await store.rows(_filter((row,)))
        if found:
            return found[0], await store.content(row, is_parked=True)
        return await store.waiting_row(row), await store.content(row, is_parked=False)

    about, content = _at_store(app, ask)
    if about is None or content is None:
        click.echo(f"Error: no message {row} is parked, and none waits", err=True)
        sys.exit(EXIT_FAILURE)
    told = _parked_row(about) | {"state": "parked"} if isinstance(about, ParkedRow) else _waiting_row(about)
    told |= {
        "partition": content.partition,
        "timestamp_ms": content.timestamp_ms,
        "key": _part(content.key, reveal),
        "partition_key": _part(content.partition_key, reveal),
        "payload": _part(content.message, reveal),
    }
    try:
        told["headers"] = [{"name": name} | _part(value, reveal) for name, value in decode_headers(content.headers)]
    except ValueError:
        told["headers"] = None  # they may be what is wrong with it
    if as_json:
        click.echo(json.dumps(told))
        return
    for name, value in told.items():
        title = name.replace("_", " ")
        if name == "headers":
            click.echo("headers: cannot be read" if value is None else "headers:" if value else "headers: none")
            for header in value or ():
                click.echo(escaped(f"  {header['name']}: {_part_text(header)}"))
        elif isinstance(value, dict):
            click.echo(escaped(f"{title}: {_part_text(value)}"))
        else:
            click.echo(escaped(f"{title}: {'-' if value is None else value}"))


def _part(data: bytes | None, reveal: bool) -> dict[str, Any]:
    if data is None:
        return {"bytes": None}
    told: dict[str, Any] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if not reveal:
        return told
    try:
        return told | {"text": data.decode()}
    except UnicodeDecodeError:
        return told | {"hex": data.hex()}


def _part_text(part: dict[str, Any]) -> str:
    if part["bytes"] is None:
        return "none"
    shown = part.get("text", part.get("hex"))
    return f"{part['bytes']} bytes, sha256 {part['sha256']}" + ("" if shown is None else f", {shown}")


# --- retry, release, drop ----------------------------------------------------------------------------------------


@parked.command("retry")
@click.argument("app", metavar="APP")
@_IDS
@_filtered
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def retry(
    app: str,
    ids: tuple[int, ...],
    topics: tuple[str, ...],
    codes: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    everything: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Give parked messages back to the outbox. Needs ids, filters or --all.

    Each keeps its message id and goes behind what its key has waiting: consumers see it after messages that were
    produced later. Remove the cause first (the topic's limit, its partitions); else they are put aside again.
    """
    rows = _chosen(app, ids, topics, codes, since, until, everything)
    count = len(rows)
    if rows and not dry_run:
        count = _at_store(app, lambda store: store.retry([row.id for row in rows]))
    _tell_done("given back to the outbox", "retried", rows, count, ids, dry_run, as_json)


@parked.command("release")
@click.argument("app", metavar="APP")
@click.argument("ids", metavar="ID...", nargs=-1, required=True, type=_ID)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def release(app: str, ids: tuple[int, ...], dry_run: bool, as_json: bool) -> None:
    """Put waiting messages aside that block their keys, by their ids in the outbox, so that the keys go on.

    A key goes on at its next attempt, which is at most 5 minutes away. A message that is sent at this very moment may
    be parked all the same.
    """
    wanted = sorted(set(ids))

    async def put_aside(store: ParkedStore) -> list[int]:
        if dry_run:
            return [id_ for id_ in wanted if await store.waiting_row(id_) is not None]
        text = "put aside by the command parked release"
        return [id_ for id_ in wanted if await store.park(id_, code="released", text=text, attempts=0, fence=None)]

    done = _at_store(app, put_aside)
    missing = [id_ for id_ in wanted if id_ not in done]
    if as_json:
        click.echo(json.dumps({"released": done, "missing": missing, "dry_run": dry_run}))
    else:
        click.echo(f"{len(done)} messages {'would be ' if dry_run else ''}put aside")
        for id_ in missing:
            click.echo(f"Error: no message {id_} waits in the outbox", err=True)
    if missing:
        sys.exit(EXIT_FAILURE)


@parked.command("drop")
@click.argument("app", metavar="APP")
@_IDS
@_filtered
@click.option("--all", "everything", is_flag=True, help="All of them.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="For programs; needs --yes or --dry-run.")
def drop(
    app: str,
    ids: tuple[int, ...],
    topics: tuple[str, ...],
    codes: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    everything: bool,
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete parked messages for good; they will never be sent. Needs ids, filters or --all."""
    with reporting():
        if as_json and not (yes or dry_run):
            raise ConfigurationError("--json cannot ask; give --yes or --dry-run")
    rows = _chosen(app, ids, topics, codes, since, until, everything)
    count = len(rows)
    if rows and not dry_run:
        if not yes:
            click.confirm(f"{count} messages cannot be brought back. Delete them?", abort=True)
        count = _at_store(app, lambda store: store.drop([row.id for row in rows]))
    _tell_done("deleted", "dropped", rows, count, ids, dry_run, as_json)


# --- shared ------------------------------------------------------------------------------------------------------


def _chosen(
    app: str,
    ids: tuple[int, ...],
    topics: tuple[str, ...],
    codes: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    everything: bool,
) -> list[ParkedRow]:
    """Rows that something is to be done to, the oldest first: these and no others, whatever comes meanwhile."""
    with reporting():
        some = bool(ids or topics or codes or since or until)
        if some == everything:
            raise ConfigurationError("say which messages: ids, filters (--topic, --error, --since, --until), or --all")
    rows = _at_store(app, lambda store: store.rows(_filter(ids, topics, codes, since, until)))
    return sorted(rows)


def _tell_done(
    verb: str,
    name: str,
    rows: list[ParkedRow],
    count: int,
    ids: tuple[int, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    missing = sorted(set(ids) - {row.id for row in rows})
    if as_json:
        told = {name: count, "rows": [_parked_row(row) for row in rows], "missing": missing}
        click.echo(json.dumps(told | {"dry_run": dry_run}))
    else:
        if dry_run:
            for row in rows:
                click.echo(escaped(f"{_shown(row.parked_at)}  {row.id}  {row.topic}  {row.code}"))
        click.echo(f"{count} messages {'would be ' if dry_run else ''}{verb}")
        for id_ in missing:
            click.echo(f"Error: no message {id_} is parked, or it is not one of those that the filters mean", err=True)
    if missing:
        sys.exit(EXIT_FAILURE)


def _at_store(app: str, work: Callable[[ParkedStore], Awaitable[T]]) -> T:
    """Run something with the application's parked rows; errors become an exit status."""

    async def run(application: Deimos) -> T:
        # start-up time: loads SQLAlchemy
        from deimos_async.database.outbox.parking import ParkedStore

        async with application.database_only() as database:
            store = ParkedStore(database.engine)
            await store.check()
            return await work(store)

    with reporting():
        return asyncio.run(run(load_app(app)))


def _filter(
    ids: tuple[int, ...],
    topics: tuple[str, ...] = (),
    codes: tuple[str, ...] = (),
    since: datetime | None = None,
    until: datetime | None = None,
) -> ParkedFilter:
    # start-up time: loads SQLAlchemy
    from deimos_async.database.outbox.parking import ParkedFilter

    return ParkedFilter(ids=ids, topics=topics, codes=codes, since=since, until=until)


def _parked_row(row: ParkedRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "topic": row.topic,
        "message_id": row.message_id,
        "size": row.size,
        "error": row.code,
        "error_message": row.text,
        "attempts": row.attempts,
        "parked_at": row.parked_at.isoformat(timespec="milliseconds"),
    }


def _waiting_row(row: WaitingRow) -> dict[str, Any]:
    return {
        "id": row.id,
        "topic": row.topic,
        "message_id": row.message_id,
        "size": row.size,
        "waits": round(row.age, 3),
        "state": "waiting",
    }


def _shown(moment: datetime) -> str:
    return moment.isoformat(sep=" ", timespec="seconds")
