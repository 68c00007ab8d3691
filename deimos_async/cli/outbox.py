"""`outbox`: sends what the application has stored in its outbox, in this process or in several."""

from __future__ import annotations

import sys

import click

from deimos_async.cli.loading import configure_logging, load_app, reporting
from deimos_async.cli.options import hosting_options
from deimos_async.cli.run import end_on_signals, in_workers, run_loop, serve, web_address

__all__ = ["outbox"]


@click.command()
@click.argument("app", metavar="APP")
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Run as N processes, which share the work.")
@hosting_options
def outbox(app: str, workers: int | None, web: str | None, loop: str, log_level: str) -> None:
    """Send what waits in the outbox of APP until SIGTERM or SIGINT, then let what is on its way end.

    The same as `run APP --only outbox`. Any number of processes may do so; they share the work.

    Exit status: 0 after a drained stop; 1 when the pump broke or no broker could be reached; 2 for mistakes in the
    application or its settings.
    """
    configure_logging(log_level, messages=False)
    with reporting():
        address = web_address(web)
        if workers is not None:
            sys.exit(in_workers(app, workers, only=("outbox",), loop=loop, log_level=log_level, web=web))
        end_on_signals()
        application = load_app(app)
        sys.exit(run_loop(loop, lambda: serve(application, ("outbox",), address)))
