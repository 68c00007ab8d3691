"""Who sends the outbox hears of what was committed, from whatever thread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from deimos_async.outbox.signal import Listener, OutboxSignal, parse_notice, write_notice

DEADLINE = 30.0


@pytest.fixture
def signal() -> OutboxSignal:
    return OutboxSignal()


@pytest.fixture
async def listener(signal: OutboxSignal) -> AsyncIterator[Listener]:
    listener = signal.listen()
    yield listener
    listener.close()


async def test_shards_gather_until_they_are_taken(signal: OutboxSignal, listener: Listener) -> None:
    signal.wake([1, 2])
    signal.wake({2, 5})
    async with asyncio.timeout(DEADLINE):
        assert await listener.wait() == {1, 2, 5}
    assert listener.take() == frozenset()
    signal.wake([7])
    assert listener.take() == {7}


async def test_waiting_ends_with_the_next_signal_and_not_before(signal: OutboxSignal, listener: Listener) -> None:
    waiting = asyncio.ensure_future(listener.wait())
    signal.wake([])
    await asyncio.sleep(0)
    assert not waiting.done()
    signal.wake([3])
    async with asyncio.timeout(DEADLINE):
        assert await waiting == {3}


async def test_signal_that_nobody_waited_for_to_the_end_is_kept(signal: OutboxSignal, listener: Listener) -> None:
    waiting = asyncio.ensure_future(listener.wait())
    await asyncio.sleep(0)
    signal.wake([3])
    waiting.cancel()
    await asyncio.wait([waiting])
    assert listener.take() == {3}


async def test_every_listener_hears_until_it_is_closed(signal: OutboxSignal, listener: Listener) -> None:
    other = signal.listen()
    signal.wake([1])
    other.close()
    other.close()
    signal.wake([2])
    assert (listener.take(), other.take()) == ({1, 2}, {1})


async def test_other_threads_are_heard(signal: OutboxSignal, listener: Listener) -> None:
    await asyncio.to_thread(signal.wake, [4])
    async with asyncio.timeout(DEADLINE):
        assert await listener.wait() == {4}


def test_listener_whose_loop_has_ended_is_forgotten(signal: OutboxSignal) -> None:
    async def listen() -> Listener:
        return signal.listen()

    asyncio.run(listen())
    signal.wake([1])
    signal.wake([2])
    assert signal._listeners == []


def test_notices_hold_numbers_and_nothing_else() -> None:
    assert write_notice({12, 3, 40}) == "3,12,40"
    assert parse_notice("3,12,40") == {3, 12, 40}
    assert parse_notice("") == frozenset()
    assert parse_notice("1,x,-2, 3,²,99999999999,5") == {1, 5}
