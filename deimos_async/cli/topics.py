"""`topics create` and `topics list`: the application's topics, with the dead-letter topics they need."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence

import click

from deimos_async.app import Deimos
from deimos_async.cli.loading import load_app, reporting
from deimos_async.provisioning import TopicState, create_topics, topic_states

__all__ = ["topics"]


@click.group()
def topics() -> None:
    """Topics that APP needs, dead-letter topics included."""


@topics.command("list")
@click.argument("app", metavar="APP")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_topics(app: str, as_json: bool) -> None:
    """Show each topic and whether it exists."""
    with reporting():
        states = asyncio.run(_ask(load_app(app)))
        _show(states, as_json)


@topics.command("create")
@click.argument("app", metavar="APP")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def create(app: str, as_json: bool) -> None:
    """Make the topics that do not exist; those that do are left as they are."""
    with reporting():
        application = load_app(app)
        made = asyncio.run(_create(application))
        if as_json:
            click.echo(json.dumps({"created": [state.required.name for state in made]}))
        else:
            for state in made:
                click.echo(f"created {state.required.name}")
            click.echo(f"{len(made)} topics created")


async def _ask(app: Deimos) -> list[TopicState]:
    async with app.brokers_only() as (brokers, required):
        return await topic_states(brokers, required)


async def _create(app: Deimos) -> list[TopicState]:
    async with app.brokers_only() as (brokers, required):
        return await create_topics(brokers, required)


def _show(states: Sequence[TopicState], as_json: bool) -> None:
    rows = [
        {
            "cluster": state.required.cluster,
            "topic": state.required.name,
            "partitions": state.existing if state.existing is not None else state.required.partitions,
            "exists": state.existing is not None,
            "dead_letters_of": state.required.source,
        }
        for state in states
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    width = max([len(str(row["topic"])) for row in rows], default=5)
    click.echo(f"{'topic':<{width}}  partitions  exists")
    for row in rows:
        click.echo(f"{row['topic']:<{width}}  {row['partitions']:>10}  {'yes' if row['exists'] else 'NO'}")
