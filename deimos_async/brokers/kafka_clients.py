"""Starting and ending aiokafka's clients in bounded time.

aiokafka waits without end in several places: for a producer id while brokers are away, for batches of an idempotent
producer when it stops, for the answer to a join when a consumer stops. So every start has a deadline, and an end that
takes too long becomes an abandonment: its tasks are cancelled and its connections closed.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaError

from deimos_async.brokers.kafka_errors import describe, translate
from deimos_async.brokers.kafka_options import KafkaOptions
from deimos_async.errors import BrokerError, BrokerUnavailableError

__all__ = ["abandon", "ask_first_servers_again", "close", "connect"]

_log = logging.getLogger(__name__)

_ABANDON_TIMEOUT = 2.0
"""Seconds for cancelled tasks and closed connections to go."""


async def connect(start: Callable[[], Coroutine[Any, Any, Any]], options: KafkaOptions, setting: str) -> None:
    """Start a client within the connect timeout.

    Raises:
        BrokerUnavailableError: Nobody answered; names the setting and the servers.
        BrokerError: The brokers refused.
    """
    starting = asyncio.get_running_loop().create_task(start(), name="start kafka client")
    try:
        await asyncio.wait({starting}, timeout=options.connect_timeout)
    finally:
        if not starting.done():
            # A connection that is being opened is known to nobody but the coroutine that opens it.
            connections = _connections_of(starting)
            starting.cancel()
            await asyncio.wait({starting}, timeout=_ABANDON_TIMEOUT)
            if starting.done() and not starting.cancelled():
                starting.exception()  # would be reported if nobody asked
            for connection in connections:
                connection.close()
    try:
        if starting.cancelled():
            raise TimeoutError("no answer")
        starting.result()
    except (TimeoutError, OSError) as error:
        raise _unavailable(error, options, setting) from error
    except KafkaError as error:
        translated = translate(error, f"cluster at {options.bootstrap_servers}")
        if isinstance(translated, BrokerUnavailableError):
            raise _unavailable(error, options, setting) from error
        raise translated from error


def ask_first_servers_again(network: AIOKafkaClient, options: KafkaOptions, setting: str) -> None:
    """Let a client that reaches no broker it knows of ask the bootstrap servers, as at its start.

    aiokafka 0.14 asks these once only: brokers that all have new addresses would never be found. As Java's client
    does by KIP-899.
    """
    update = network._metadata_update

    async def update_or_begin_anew(cluster: Any, topics: Any) -> bool:
        if await update(cluster, topics):
            return True
        try:
            await connect(network.bootstrap, options, setting)
        except BrokerError:
            return False  # nobody there either; the client asks for its next update by itself
        return bool(await update(cluster, topics))

    network._metadata_update = update_or_begin_anew


def _connections_of(task: asyncio.Task[Any]) -> set[AIOKafkaConnection]:
    """Connections that are local to the coroutines of a suspended task."""
    found = set()
    coroutine: Any = task.get_coro()
    while (frame := getattr(coroutine, "cr_frame", None)) is not None:
        found |= {value for value in frame.f_locals.values() if isinstance(value, AIOKafkaConnection)}
        coroutine = coroutine.cr_await
    return found


def _unavailable(error: BaseException, options: KafkaOptions, setting: str) -> BrokerUnavailableError:
    return BrokerUnavailableError(
        f"no broker of setting '{setting}.bootstrap_servers' ({options.bootstrap_servers}) could be used within "
        f"{options.connect_timeout:g} s, by {options.security_protocol}: {describe(error)}; check that it runs, its "
        "address, and the security settings (the log of 'aiokafka' says more)"
    )


async def close(
    stop: Callable[[], Coroutine[Any, Any, Any]], parts: Callable[[], Iterable[object]], network: Any, *, timeout: float
) -> None:
    """End a client: its own way within `timeout` seconds, then by abandonment. Never raises but when cancelled.

    Args:
        stop: The client's own end.
        parts: The client's objects that own tasks.
        network: The client's connections, with a `close`.
        timeout: Seconds; the abandonment may add a few.
    """
    stopping = asyncio.get_running_loop().create_task(stop(), name="stop kafka client")
    try:
        await asyncio.wait({stopping}, timeout=timeout)
    finally:
        # aiokafka's own stop may end with the CancelledError of one of its tasks, its connections still open.
        is_clean = stopping.done() and not stopping.cancelled() and stopping.exception() is None
        if not is_clean:
            stopping.cancel()
            await abandon(parts(), network)


async def abandon(parts: Iterable[object], network: Any) -> None:
    """Cancel every task that runs a method of these objects, and close the connections. Nothing is sent afterwards."""
    owners = {id(part) for part in (*parts, network) if part is not None}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _ABANDON_TIMEOUT
    while tasks := _tasks_of(owners):
        # A cancelled task of aiokafka may await another one before it ends, which must be cancelled in turn.
        for task in tasks:
            task.cancel()
        done, _ = await asyncio.wait(tasks, timeout=0.05)
        for task in done:
            if not task.cancelled():
                task.exception()  # how an abandoned task failed is of no interest, but would be reported if not asked
        if loop.time() > deadline:
            _log.warning("tasks of an abandoned kafka client do not end: %s", sorted(task.get_name() for task in tasks))
            break
    closing = loop.create_task(network.close(), name="close kafka connections")
    await asyncio.wait({closing}, timeout=_ABANDON_TIMEOUT)
    if not closing.done():
        closing.cancel()
    elif not closing.cancelled() and (error := closing.exception()) is not None:
        _log.warning("connections of an abandoned kafka client could not be closed", exc_info=error)


def _tasks_of(owners: set[int]) -> set[asyncio.Task[Any]]:
    # aiokafka keeps no list of its tasks; their coroutines are methods, whose frames know the object.
    found = set()
    for task in asyncio.all_tasks():
        frame = getattr(task.get_coro(), "cr_frame", None)
        if frame is not None and id(frame.f_locals.get("self")) in owners:
            found.add(task)
    return found
