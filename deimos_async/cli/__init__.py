"""The command line: a module for each command. What belongs here: arguments, output, exit status."""

from __future__ import annotations

import importlib

import click

__all__ = ["main"]

_COMMANDS = {
    "dead-letters": "deimos_async.cli.dead_letters:dead_letters",
    "lag": "deimos_async.cli.lag:lag",
    "migrate": "deimos_async.cli.migrate:migrate",
    "outbox": "deimos_async.cli.outbox:outbox",
    "parked": "deimos_async.cli.parked:parked",
    "poller": "deimos_async.cli.poller:poller",
    "run": "deimos_async.cli.run:run",
    "topics": "deimos_async.cli.topics:topics",
}


class _Commands(click.Group):
    """Loads a command when it is asked for, so that `--help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        target = _COMMANDS.get(cmd_name)
        if target is None:
            return None
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="deimos-async")
def main() -> None:
    """Kafka and SQL databases for asyncio.

    APP is package.module:attribute, as in `shop.events:app`.
    """
