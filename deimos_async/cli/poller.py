"""`poller`: runs the application's pollers, in this process or in several, or sends a whole table once more."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack

import click

from deimos_async.app import Deimos
from deimos_async.cli.loading import EXIT_FAILURE, configure_logging, load_app, reporting
from deimos_async.cli.options import hosting_options
from deimos_async.cli.run import end_on_signals, in_workers, run_loop, serve, web_address
from deimos_async.errors import ConfigurationError

__all__ = ["poller"]


@click.command()
@click.argument("app", metavar="APP")
@click.option(
    "--backfill", metavar="NAME", default=None, help="Send the whole table of this poller once more, and end."
)
@click.option(
    "--chunk-rows",
    type=click.IntRange(min=1),
    default=100_000,
    show_default=True,
    help="With --backfill: rows that a process takes at a time.",
)
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Run as N processes, which share the work.")
@hosting_options
def poller(
    app: str,
    backfill: str | None,
    chunk_rows: int,
    workers: int | None,
    web: str | None,
    loop: str,
    log_level: str,
) -> None:
    """Run the pollers of APP until SIGTERM or SIGINT, then let the pages that are on their way end.

    The same as `run APP --only pollers`. Any number of processes may do so; they share the pollers.

    With --backfill the whole table of one poller is sent once more, in chunks that are leased: start it in as many
    processes as you like. The pollers themselves go on elsewhere. A backfill that was stopped goes on where it was.

    Exit status: 0 after a drained stop; 1 when the pollers broke or no broker could be reached, and for a backfill that
    was stopped; 2 for mistakes in the application or its settings.
    """
    configure_logging(log_level, messages=False)
    with reporting():
        if backfill is not None and (workers is not None or web is not None):
            raise ConfigurationError("--backfill goes with neither --workers nor --web; start it several times")
        address = web_address(web)
        if workers is not None:
            sys.exit(in_workers(app, workers, only=("pollers",), loop=loop, log_level=log_level, web=web))
        end_on_signals()
        application = load_app(app)
        if backfill is not None:
            name = backfill
            sys.exit(run_loop(loop, lambda: _backfill(application, name, chunk_rows)))
        sys.exit(run_loop(loop, lambda: serve(application, ("pollers",), address)))


async def _backfill(app: Deimos, name: str, chunk_rows: int) -> int:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    try:
        with ExitStack() as stack:
            report = _Bar(stack) if sys.stderr.isatty() else None
            async with app.running(only=("producers",)):
                rows = await app.backfill(name, chunk_rows=chunk_rows, report=report)
    except asyncio.CancelledError:
        click.echo("stopped; the same command goes on from here", err=True)
        return EXIT_FAILURE
    click.echo(f"{rows} rows sent by this process; all chunks are done")
    return 0


class _Bar:
    """A progress bar, begun when the number of chunks is known."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._update: Callable[[int], None] | None = None
        self._done = 0

    def __call__(self, done: int, chunks: int) -> None:
        if self._update is None:
            bar = click.progressbar(length=chunks, label="chunks", file=sys.stderr)
            self._update = self._stack.enter_context(bar).update
        self._update(done - self._done)
        self._done = done
