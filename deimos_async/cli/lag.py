"""`lag`: how far the application's consumer groups are behind."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Sequence

import click

from deimos_async.app import Deimos
from deimos_async.cli.loading import load_app, reporting
from deimos_async.cli.options import FiniteRange
from deimos_async.errors import ConfigurationError
from deimos_async.lag import PartitionLag, lags

__all__ = ["lag"]

EXIT_EXCEEDED = 3
"""Everything was seen, and some of it is above a limit."""


@click.command()
@click.argument("app", metavar="APP")
@click.option("--group", "groups", multiple=True, metavar="NAME", help="Only this group. Repeatable.")
@click.option("--max-messages", type=click.IntRange(min=0), help="Status 3 if a partition lags by more messages.")
@click.option("--max-seconds", type=FiniteRange(min=0), help="Status 3 if the oldest message waits longer.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def lag(app: str, groups: tuple[str, ...], max_messages: int | None, max_seconds: float | None, as_json: bool) -> None:
    """Show what consumer groups of APP have not committed yet, by partition. APP need not run.

    Exit status: 0; 3 when a limit is exceeded, or an offset is out of range while a limit is given; 1 when the brokers
    could not be asked; 2 for mistakes.
    """
    with reporting():
        found = asyncio.run(_ask(load_app(app), groups))
    exceeded = [row.exceeds(max_messages=max_messages, max_seconds=max_seconds) for row in found]
    if as_json:
        rows = [dataclasses.asdict(row) | {"exceeds": above} for row, above in zip(found, exceeded, strict=True)]
        click.echo(json.dumps(rows))
    else:
        _show(found, exceeded)
    if any(exceeded):
        sys.exit(EXIT_EXCEEDED)


async def _ask(app: Deimos, groups: Sequence[str]) -> list[PartitionLag]:
    async with app.administration() as opened:
        prefix = opened.settings.producers.topic_prefix
        known = {consumer.kafka_group for consumer in opened.plan.consumers}
        chosen = [group if group in known else prefix + group for group in groups]
        if unknown := [group for group, name in zip(groups, chosen, strict=True) if name not in known]:
            raise ConfigurationError(
                f"--group {unknown[0]}: the application has no consumer of that group; it has "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        return await lags(opened.brokers, opened.plan, now=time.time(), groups=chosen)


def _show(rows: Sequence[PartitionLag], exceeded: Sequence[bool]) -> None:
    groups = max([len(row.group) for row in rows], default=5)
    topics = max([len(row.topic) for row in rows], default=5)
    click.echo(f"{'group':<{groups}}  {'topic':<{topics}}  partition   committed         end         lag   seconds")
    for row, above in zip(rows, exceeded, strict=True):
        committed = "-" if row.committed is None else str(row.committed)
        seconds = "-" if row.seconds is None else f"{row.seconds:.1f}"
        marks = " out of range" * row.is_out_of_range + " above the limit" * (above and not row.is_out_of_range)
        click.echo(
            f"{row.group:<{groups}}  {row.topic:<{topics}}  {row.partition:>9}  {committed:>10}  {row.end:>10}  "
            f"{row.messages:>10}  {seconds:>8}{marks}"
        )
    click.echo(f"{sum(row.messages for row in rows)} messages behind in {len(rows)} partitions")
