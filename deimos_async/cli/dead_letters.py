"""`dead-letters list | show | replay | drop`: what the application's consumers had to put aside."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any, TypeVar

import click

from deimos_async.app import Deimos
from deimos_async.cli.loading import EXIT_FAILURE, load_app, reporting
from deimos_async.cli.options import FiniteRange, key_text, point_in_time
from deimos_async.consuming.dead_letters import HEADER_PREFIX, MARKS
from deimos_async.errors import ConfigurationError
from deimos_async.letters.desk import LetterDesk, LetterTopic, Opened
from deimos_async.letters.dropping import Drop, drop, drops_all, drops_before, drops_replayed
from deimos_async.letters.letter import Letter, LetterAddress, LetterFilter
from deimos_async.letters.replay import Replay, ReplayOptions, ReplayReport
from deimos_async.letters.summary import LetterSummary
from deimos_async.plain_text import escaped

__all__ = ["dead_letters"]

T = TypeVar("T")


def _address(text: str) -> LetterAddress:
    try:
        return LetterAddress.parse(text)
    except ValueError:
        raise click.BadParameter(f"{text!r}: give topic/partition/offset, as `dead-letters list` shows it") from None


_FILTERS = (
    click.option("--group", metavar="NAME", multiple=True, help="Given up by this group. Repeatable."),
    click.option("--error", metavar="CLASS", multiple=True, help="Of this error class, e.g. ValueError. Repeatable."),
    click.option(
        "--since",
        type=point_in_time,
        metavar="TIME",
        help="Failed then or later: a time (UTC unless it says so), or an age: 12h.",
    ),
    click.option("--until", type=point_in_time, metavar="TIME", help="Failed before then."),
    click.option(
        "--key",
        type=key_text,
        metavar="TEXT",
        help="With this key: text, a number, or JSON for keys of several fields.",
    ),
)
_TOPIC = click.option(
    "--topic", "topics", metavar="NAME", multiple=True, help="Only this topic's dead letters. Repeatable."
)


def _filtered(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_FILTERS):
        command = option(command)
    return command


@click.group("dead-letters")
def dead_letters() -> None:
    """Messages that consumers of APP had to put aside. APP need not run."""


# --- list --------------------------------------------------------------------------------------------------------


@dead_letters.command("list")
@click.argument("app", metavar="APP")
@_TOPIC
@_filtered
@click.option(
    "--limit", type=click.IntRange(min=0), default=20, show_default=True, help="Show so many, those that failed last."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_letters(
    app: str,
    topics: tuple[str, ...],
    group: tuple[str, ...],
    error: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    key: str | None,
    limit: int,
    as_json: bool,
) -> None:
    """Count dead letters by topic, error and group, and show the last ones. Reads all of them."""

    async def ask(desk: LetterDesk) -> tuple[dict[LetterTopic, LetterSummary], list[Letter]]:
        wanted = _filter(desk, group, error, since, until, key)
        return await desk.summarize(await desk.topics(topics), wanted, newest=limit)

    summaries, last = _at_desk(app, ask)
    if as_json:
        found = {
            "topics": [_summary_row(topic, summary) for topic, summary in summaries.items()],
            "letters": [_letter_row(letter) for letter in last],
        }
        click.echo(json.dumps(found))
        return
    for topic, summary in summaries.items():
        click.echo(f"{topic.name} (of {topic.source.kafka_name}): {summary.count} letters, {summary.replayed} replayed")
        if summary.oldest is not None:
            click.echo(f"  failed from {_shown(summary.oldest)} to {_shown(summary.newest)}")
        for title, counts in (("error", summary.by_error), ("group", summary.by_group)):
            for name, count in counts.most_common():
                click.echo(f"  {count:>8}  {title} {escaped(name or 'not said')}")
    if not summaries:
        click.echo("no dead-letter topic exists")
    for letter in last:
        who, what = escaped(letter.group or "-"), escaped(letter.error_class or "-")
        click.echo(f"{_shown(letter.failed_at)}  {letter.address}  {who}  {what}")


def _summary_row(topic: LetterTopic, summary: LetterSummary) -> dict[str, Any]:
    return {
        "cluster": topic.cluster,
        "topic": topic.name,
        "source": topic.source.kafka_name,
        "count": summary.count,
        "replayed": summary.replayed,
        "oldest": _iso(summary.oldest),
        "newest": _iso(summary.newest),
        "by_error": {name or "": count for name, count in summary.by_error.most_common()},
        "by_group": {name or "": count for name, count in summary.by_group.most_common()},
    }


def _letter_row(letter: Letter) -> dict[str, Any]:
    return {
        "letter": str(letter.address),
        "topic": letter.topic,
        "partition": letter.partition,
        "offset": letter.offset,
        "group": letter.group,
        "attempts": letter.attempts,
        "error": letter.error_class,
        "failed_at": _iso(letter.failed_at),
        "replays": letter.replays,
    }


# --- show --------------------------------------------------------------------------------------------------------


@dead_letters.command("show")
@click.argument("app", metavar="APP")
@click.argument("letter", metavar="TOPIC/PARTITION/OFFSET", type=_address)
@click.option("--reveal", is_flag=True, help="Key, payload and headers themselves, not only their sizes and hashes.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def show(app: str, letter: LetterAddress, reveal: bool, as_json: bool) -> None:
    """Show one dead letter. What the message says is hidden unless --reveal is given."""

    async def ask(desk: LetterDesk) -> tuple[Letter, Opened | None] | None:
        found = await desk.find(letter)
        if found is None:
            return None
        return found[1], await desk.open(*found) if reveal else None

    found = _at_desk(app, ask)
    if found is None:
        click.echo(escaped(f"Error: there is no letter at {letter} (any more)"), err=True)
        sys.exit(EXIT_FAILURE)
    record = found[0].record
    rows = _letter_row(found[0]) | {
        "error_message": found[0].error_message,
        "key": _part(record.key, "key", found[1]),
        "payload": _part(record.value, "payload", found[1]),
        "headers": [_header(name, value, reveal) for name, value in record.headers],
    }
    if as_json:
        click.echo(json.dumps(rows, default=str))
        return
    for name, value in rows.items():
        if name == "headers":
            click.echo("headers:" if value else "headers: none")
            for header in value:
                click.echo(escaped(f"  {header['name']}: {header.get('value', _size(header))}"))
        elif isinstance(value, Mapping):
            click.echo(f"{name}: {_size(value)}")
            for about in ("value", "problem", "hex"):
                if about in value:
                    text = value[about] if isinstance(value[about], str) else json.dumps(value[about], default=str)
                    click.echo(escaped(f"  {about}: {text}"))
        else:
            click.echo(escaped(f"{name.replace('_', ' ')}: {'-' if value is None else value}"))


def _part(data: bytes | None, name: str, opened: Opened | None) -> dict[str, Any]:
    if data is None:
        return {"bytes": None}
    told: dict[str, Any] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if opened is None:
        return told
    if name in opened.problems:
        return told | {"problem": opened.problems[name], "hex": data.hex()}
    value = opened.key if name == "key" else opened.payload
    if isinstance(value, bytes):
        # Of a topic without a schema: text where it is text.
        try:
            return told | {"value": value.decode()}
        except UnicodeDecodeError:
            return told | {"hex": value.hex()}
    return told | {"value": value}


def _header(name: str, value: bytes | None, reveal: bool) -> dict[str, Any]:
    if value is None:
        return {"name": name, "bytes": None}
    told: dict[str, Any] = {"name": name, "bytes": len(value)}
    if reveal or name.startswith(HEADER_PREFIX) or name in MARKS:
        told["value"] = value.decode(errors="backslashreplace")
    return told


def _size(part: Mapping[str, Any]) -> str:
    if part["bytes"] is None:
        return "none"
    return f"{part['bytes']} bytes" + (f", sha256 {part['sha256']}" if "sha256" in part else "")


# --- replay ------------------------------------------------------------------------------------------------------


@dead_letters.command("replay")
@click.argument("app", metavar="APP")
@_TOPIC
@_filtered
@click.option("--to", metavar="TOPIC", help="With one --topic: all go to this topic of APP, wherever they came from.")
@click.option("--to-all-groups", is_flag=True, help="With --group: the others handle these messages again too.")
@click.option("--by-key", is_flag=True, help="Choose partitions by the key; else the ones that messages came from.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many letters.")
@click.option("--rate", type=FiniteRange(min=0, min_open=True), help="At most so many letters a second.")
@click.option(
    "--max-replays",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Leave messages alone that were replayed so often.",
)
@click.option("--again", is_flag=True, help="Also letters that were replayed before.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def replay(
    app: str,
    topics: tuple[str, ...],
    group: tuple[str, ...],
    error: tuple[str, ...],
    since: datetime | None,
    until: datetime | None,
    key: str | None,
    to: str | None,
    to_all_groups: bool,
    by_key: bool,
    limit: int | None,
    rate: float | None,
    max_replays: int,
    again: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Send dead letters back to the topics that their dead-letter topics belong to.

    Letters that say that they came from elsewhere are left. Key, value, timestamp and headers are as they were, without
    the headers of the dead letter and with `deimos-replayed-from`, `deimos-replay-topic` and `deimos-replays`. With
    --group only that group handles them; else every group that reads the topic does. The letters stay where they are;
    which were replayed is remembered, and they are not replayed again.
    """
    with ExitStack() as stack:
        bar = _Bar(stack) if sys.stderr.isatty() and not as_json else None

        async def send(desk: LetterDesk) -> ReplayReport:
            options = ReplayOptions(
                wanted=_filter(desk, group, error, since, until, key),
                to=to,
                only_group=bool(group) and not to_all_groups,
                max_replays=max_replays,
                by_key=by_key,
                limit=limit,
                rate=rate,
                again=again,
                dry_run=dry_run,
            )
            chosen = await desk.topics(topics)
            return await Replay(desk, chosen, options, on_progress=bar or (lambda done, total: None)).run()

        report = _at_desk(app, send)
    if as_json:
        told = {"replayed": report.replayed, "passed_over": report.passed_over}
        click.echo(json.dumps(told | {"refused": report.refused, "dry_run": dry_run}))
        sys.exit(EXIT_FAILURE if report.refused else 0)
    verb = "would be replayed" if dry_run else "replayed"
    for topic, count in report.replayed.most_common():
        click.echo(f"{count} letters {verb} to {topic}")
    if not report.replayed:
        click.echo(f"no letters {verb}")
    for reason, count in report.passed_over.most_common():
        click.echo(escaped(f"{count} letters left: {reason}"))
    for reason in report.refused:
        click.echo(escaped(f"Error: {reason}"), err=True)
    if report.refused:
        sys.exit(EXIT_FAILURE)


class _Bar:
    """A progress bar, begun when the number of letters is known."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._update: Callable[[int], None] | None = None
        self._done = 0

    def __call__(self, done: int, total: int) -> None:
        if self._update is None:
            bar = click.progressbar(length=total, label="letters", file=sys.stderr)
            self._update = self._stack.enter_context(bar).update
        self._update(done - self._done)
        self._done = done


# --- drop --------------------------------------------------------------------------------------------------------


@dead_letters.command("drop")
@click.argument("app", metavar="APP")
@_TOPIC
@click.option(
    "--before",
    type=_address,
    metavar="TOPIC/PARTITION/OFFSET",
    multiple=True,
    help="The letters below it, in its partition. Repeatable.",
)
@click.option("--replayed", is_flag=True, help="Each partition up to the first letter that was not replayed.")
@click.option("--all", "everything", is_flag=True, help="All of them.")
# Known only to be refused with a reason; the help does not offer them.
@click.option("--group", "--error", "--since", "--until", "--key", "filters", multiple=True, hidden=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="For programs; needs --yes or --dry-run.")
def drop_letters(
    app: str,
    topics: tuple[str, ...],
    before: tuple[LetterAddress, ...],
    replayed: bool,
    everything: bool,
    filters: tuple[str, ...],
    yes: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Delete dead letters, from the beginning of a partition up to an offset. Needs --before, --replayed or --all."""
    with reporting():
        if filters:
            raise ConfigurationError(
                "drop takes no filters: Kafka deletes from the beginning of a partition up to an offset, and never "
                "records in between; replay the letters that are wanted, then give --replayed, --before or --all"
            )
        if bool(before) + replayed + everything != 1:
            raise ConfigurationError("drop needs one of --before TOPIC/PARTITION/OFFSET, --replayed and --all")
        if before and topics:
            raise ConfigurationError("--before names the topic itself; leave --topic away")
        if as_json and not (yes or dry_run):
            raise ConfigurationError("--json cannot ask; give --yes or --dry-run")

    async def plan(desk: LetterDesk) -> list[Drop]:
        if before:
            return await drops_before(desk, before)
        chosen = await desk.topics(topics)
        return await (drops_replayed(desk, chosen) if replayed else drops_all(desk, chosen))

    drops = _at_desk(app, plan)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "drops": [
                        {
                            "cluster": one.cluster,
                            "topic": one.id.topic,
                            "partition": one.id.partition,
                            "before": one.before,
                            "letters": one.count,
                            "not_replayed": one.unreplayed,
                        }
                        for one in drops
                    ],
                    "dry_run": dry_run,
                }
            )
        )
    else:
        for one in drops:
            click.echo(
                f"{one.id.topic}[{one.id.partition}]: {one.count} letters below offset {one.before}, "
                f"{one.unreplayed} of them not replayed"
            )
        if not drops:
            click.echo("nothing to delete")
    if dry_run or not drops:
        return
    if not yes:
        click.confirm("They cannot be brought back. Delete them?", abort=True)
    # What was shown is what is deleted: letters that came meanwhile lie above these offsets.
    _at_desk(app, lambda desk: drop(desk, drops))
    if not as_json:
        click.echo("deleted")


# --- shared ------------------------------------------------------------------------------------------------------


def _at_desk(app: str, work: Callable[[LetterDesk], Awaitable[T]]) -> T:
    """Run something with the application's dead letters; errors become an exit status."""

    async def run(application: Deimos) -> T:
        async with application.administration() as opened:
            return await work(LetterDesk(opened.brokers, opened.plan, opened.settings))

    with reporting():
        return asyncio.run(run(load_app(app)))


def _filter(
    desk: LetterDesk,
    groups: Sequence[str],
    errors: Sequence[str],
    since: datetime | None,
    until: datetime | None,
    key: str | None,
) -> LetterFilter:
    return LetterFilter(
        groups=tuple(desk.group_name(group) for group in groups),
        errors=tuple(errors),
        since=since,
        until=until,
        key=key,
    )


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")


def _shown(moment: datetime | None) -> str:
    return "-" if moment is None else moment.isoformat(sep=" ", timespec="seconds")
