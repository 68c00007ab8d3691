"""`run`: hosts an application in this process, or in several."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import click

from deimos_async.app import Deimos
from deimos_async.cli.loading import EXIT_FAILURE, configure_logging, load_app, reporting
from deimos_async.cli.options import hosting_options
from deimos_async.errors import ConfigurationError
from deimos_async.plain_text import described
from deimos_async.service import Supervisor

__all__ = ["run"]

logger = logging.getLogger("deimos_async")

_WEB_STOP_TIMEOUT = 5.0


@click.command()
@click.argument("app", metavar="APP")
@click.option("--embedded", is_flag=True, help="In-memory broker, in-process registry, a fresh SQLite file.")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(["consumers", "outbox", "pollers", "producers"]),
    help="Run only these parts. Repeatable. Producers always run, as handlers use them.",
)
@click.option("--workers", type=click.IntRange(min=1), default=None, help="Run as N processes, each a group member.")
@hosting_options
@click.option("--log-messages", is_flag=True, help="A line for every message, as `logging.payload_log` says.")
def run(
    app: str,
    embedded: bool,
    only: tuple[str, ...],
    workers: int | None,
    web: str | None,
    loop: str,
    log_level: str,
    log_messages: bool,
) -> None:
    """Run APP until SIGTERM or SIGINT, then drain.

    Exit status: 0 after a drained stop; 1 when a consumer stopped for an error or no broker could be reached; 2 for
    mistakes in the application or its settings.
    """
    configure_logging(log_level, messages=log_messages)
    with reporting():
        address = web_address(web)
        if workers is not None:
            if embedded:
                raise ConfigurationError("--embedded and --workers exclude each other: the broker is in one process")
            sys.exit(
                in_workers(app, workers, only=only, loop=loop, log_level=log_level, messages=log_messages, web=web)
            )
        end_on_signals()
        application = load_app(app)
        with application.with_settings({"embedded": True} if embedded else {}):
            if application.settings.embedded and "DEIMOS_WORKER" in os.environ:
                raise ConfigurationError("setting 'embedded' and --workers exclude each other: use one of them")
            sys.exit(run_loop(loop, lambda: serve(application, only or None, address)))


def web_address(web: str | None) -> tuple[str, int] | None:
    """Host and port of this process for the option --web; None without it. Raises ConfigurationError."""
    if web is None:
        return None
    from deimos_async.web.server import parse_address  # only for this option

    return parse_address(web, int(os.environ.get("DEIMOS_WORKER", "0")))


def in_workers(
    app: str,
    count: int,
    *,
    only: Sequence[str],
    loop: str,
    log_level: str,
    web: str | None,
    messages: bool = False,
) -> int:
    """Run APP in so many processes; returns the exit status."""
    from deimos_async.cli.workers import run_workers  # only for the option --workers

    arguments = [app, *(part for name in only for part in ("--only", name))]
    arguments += ["--loop", loop, "--log-level", log_level, *(["--log-messages"] if messages else [])]
    arguments += [] if web is None else ["--web", web]
    return run_workers(arguments, count)


def end_on_signals() -> None:
    """Until the event loop has handlers of its own: a signal while the application is imported ends it as asked."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, frame: sys.exit(0))


def settle_memory() -> None:
    """What a start has made lives as long as the process: the garbage collector need not walk it again and again.

    With messages coming and going by the thousand it would do so several times a second, at 50 ms and more each.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def run_loop(loop: str, main: Callable[[], Awaitable[int]]) -> int:
    """Run a coroutine in a new event loop; `auto` takes uvloop where it is installed."""
    factory: Any = None
    if loop != "asyncio":
        try:
            import uvloop  # optional library

            factory = uvloop.new_event_loop
        except ImportError:
            if loop == "uvloop":
                raise ConfigurationError(
                    "--loop uvloop: it is not installed; pip install 'deimos-async[uvloop]'"
                ) from None

    async def started() -> int:
        return await main()

    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(started())


async def serve(app: Deimos, only: tuple[str, ...] | None, web: tuple[str, int] | None = None) -> int:
    """Run the application until a signal or a failure; returns the exit status. A signal during the start ends it.

    Args:
        web: Host and port at which it is watched, served before the application starts and until it has stopped.
    """
    if web is None:
        return await _serve(app, only)
    async with _watched(app, *web):
        return await _serve(app, only)


@asynccontextmanager
async def _watched(app: Deimos, host: str, port: int) -> AsyncIterator[None]:
    from deimos_async.web.server import WebServer, bind  # only for this option

    server = WebServer(app.web(), bind(host, port))
    supervisor = Supervisor()
    await supervisor.open()
    try:
        await supervisor.start([server])
        yield
        await supervisor.stop(server, timeout=_WEB_STOP_TIMEOUT)
    finally:
        await supervisor.close()


async def _serve(app: Deimos, only: tuple[str, ...] | None) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    stopped = asyncio.create_task(stop.wait(), name="deimos signal watch")
    serving = asyncio.create_task(_until_stopped(app, only, stopped), name="deimos run")
    try:
        await asyncio.wait([serving, stopped], return_when=asyncio.FIRST_COMPLETED)
        if not serving.done() and not app.is_running:
            serving.cancel()
        await asyncio.wait([serving])
        if serving.cancelled():
            logger.info("stopped during the start")
            return 0
        serving.result()
    finally:
        stopped.cancel()
    for name, error in app.failures.items():
        click.echo(f"Error: {name}: {described(error)}", err=True)
    return EXIT_FAILURE if app.failures else 0


async def _until_stopped(app: Deimos, only: tuple[str, ...] | None, stopped: asyncio.Task[Any]) -> None:
    async with app.running(only=only):
        health = app.health()
        outbox = "" if health.outbox is None else ", and sending the outbox"
        pollers = f", and polling {', '.join(poller.name for poller in health.pollers)}" if health.pollers else ""
        logger.info("running %s%s%s", ", ".join(only) if only else "producers and consumers", outbox, pollers)
        settle_memory()
        failed = asyncio.create_task(app.wait_failed(), name="deimos failure watch")
        try:
            await asyncio.wait([failed, stopped], return_when=asyncio.FIRST_COMPLETED)
        finally:
            failed.cancel()
        logger.info("stopping: draining handlers and producers")
