"""The outbox under faults: what is committed arrives, in the order of each key, and nothing else does.

The short form does all faults to one set of pumps, one after another; the long form has a trial for each. Those that
must not make anything be sent twice come first: after each fault it is checked how often something was.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable, Iterator

import pytest
from fault_kafka import ProxiedKafka
from fault_outbox import OutboxTrial
from fault_proxy import TcpProxy, fault_lasts
from fault_trial import IS_CHAOS, SEED
from fault_written import KEYS, LATE, NOWHERE, TOO_LARGE
from servers import MariaDB, Postgres

pytestmark = pytest.mark.services("own_kafka")

PUMPS = 2
CUT_SECONDS = 15.0 if IS_CHAOS else 2.0


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(Postgres, marks=pytest.mark.services("own_postgres"), id="postgresql"),
        pytest.param(MariaDB, marks=pytest.mark.services("own_mariadb"), id="mariadb"),
    ],
)
def server(request: pytest.FixtureRequest) -> Iterator[Postgres | MariaDB]:
    """A database server of the trials' own, which they may restart."""
    server = request.param()
    try:
        asyncio.run(server.start())
        yield server
    finally:
        asyncio.run(server.stop())
        server.remove()


async def rows_that_cannot_be_sent(trial: OutboxTrial) -> None:
    """Only the key of the one and the topic of the other wait, until they can be sent."""
    if TOO_LARGE in trial.by_key:
        return  # in a later round they have been cured
    await trial.ask_writer("poison", "poisoned")
    await trial.until(lambda: trial.arrived_of(TOO_LARGE) == [1], "what is before the large message has arrived")
    await trial.progressed()
    assert (await trial.left_of(".narrow"), await trial.left_of(".missing")) == (3, 5)
    assert trial.arrived_of(TOO_LARGE) == [1]
    await trial.cure()
    await trial.until(
        lambda: len(trial.arrived_of(TOO_LARGE)) == 4 and len(trial.arrived_of(NOWHERE)) == 5,
        "what could not be sent has arrived",
    )


async def late_commits(trial: OutboxTrial) -> None:
    """Low ids stay invisible while higher ones are sent, and come to light in the middle of them."""
    before = {key: len(trial.arrived_of(key)) for key in LATE}
    await trial.ask_writer("late", "late")
    for _ in range(5 if IS_CHAOS else 1):
        await trial.progressed()
        await fault_lasts(1)
    assert {key: len(trial.arrived_of(key)) for key in LATE} == before
    await trial.ask_writer("release", "released")
    await trial.until(
        lambda: all(len(trial.arrived_of(key)) == count + 5 for key, count in before.items()),
        "what was committed late has arrived",
    )


async def storm_of_rollbacks(trial: OutboxTrial) -> None:
    trial.writer.tell("rollbacks 0.5")
    await fault_lasts(20 if IS_CHAOS else 1)
    await trial.progressed()
    trial.writer.tell("rollbacks 0.1")


async def more_and_fewer_pumps(trial: OutboxTrial) -> None:
    """2, more, 1, and 2 again, while there is load; nothing is sent twice for that."""
    await trial.start_pumps(4 if IS_CHAOS else 2)
    await trial.progressed()
    await trial.leave(*trial.alive[1:])
    await trial.shared_by(1)
    await trial.progressed()
    await trial.start_pumps(PUMPS - 1)


async def ended_in_order(trial: OutboxTrial) -> None:
    """SIGTERM: the other one goes on with all slots; nothing is sent twice."""
    await trial.leave(trial.alive[0])
    await trial.shared_by(PUMPS - 1)
    await trial.progressed()
    await trial.start_pumps(1)


async def killed(trial: OutboxTrial) -> None:
    lot = random.Random(SEED)
    for _ in range(15 if IS_CHAOS else 2):
        await trial.kill(lot.choice(trial.alive))
        await trial.start_pump()
        await fault_lasts(2)


async def frozen(trial: OutboxTrial) -> None:
    """SIGSTOP until others have its slots; then it goes on where it was."""
    zombie = trial.alive[0]
    async with trial.fault(zombie):
        zombie.send(signal.SIGSTOP)
        await trial.shared_by(PUMPS - 1)
        await trial.progressed()
        zombie.send(signal.SIGCONT)
        await trial.shared_by(PUMPS)


async def database_cut(trial: OutboxTrial) -> None:
    pump = trial.alive[0]
    async with trial.fault(pump):
        pump.proxy.cut()
        await trial.shared_by(PUMPS - 1)
        await trial.progressed()
        pump.proxy.heal()
        await trial.shared_by(PUMPS)


async def database_silent(trial: OutboxTrial) -> None:
    """Half-open: connections that are there stay silent for ever; new ones work when the others have its slots."""
    pump = trial.alive[-1]
    async with trial.fault(pump):
        pump.proxy.silence(new=True)
        await trial.shared_by(PUMPS - 1)
        await trial.progressed()
        pump.proxy.heal()
        await trial.shared_by(PUMPS)


async def broker_cut(trial: OutboxTrial) -> None:
    async with trial.fault():
        trial.broker_proxy.cut()
        await fault_lasts(CUT_SECONDS)
        trial.broker_proxy.heal()


async def broker_silent(trial: OutboxTrial) -> None:
    async with trial.fault():
        trial.broker_proxy.silence(new=False)
        await fault_lasts(CUT_SECONDS)


async def broker_restarted(trial: OutboxTrial) -> None:
    async with trial.fault():
        await trial.kafka.restart()
        await trial.recovered()


async def database_restarted(trial: OutboxTrial) -> None:
    async with trial.fault():
        await trial.server.restart()
        await trial.recovered()


FAULTS: dict[str, Callable[[OutboxTrial], Awaitable[None]]] = {
    "a row too large, a topic that does not exist": rows_that_cannot_be_sent,
    "late commits": late_commits,
    "half of all rolled back": storm_of_rollbacks,
    "more pumps, and one": more_and_fewer_pumps,
    "SIGTERM": ended_in_order,
    "SIGKILL of a pump every 2 s": killed,
    "SIGSTOP past the lease, and back": frozen,
    "a pump cut from the database": database_cut,
    "a pump's connections to the database half-open": database_silent,
    "the broker cut off": broker_cut,
    "connections to the broker half-open": broker_silent,
    "the broker restarted": broker_restarted,
    "the database restarted": database_restarted,
}


SHORT = [name for name in FAULTS if name != "SIGTERM"]
"""SIGTERM is a part of "more pumps, and one", too."""


@pytest.mark.parametrize("names", [[name] for name in FAULTS] if IS_CHAOS else [SHORT])
async def test_what_is_committed_arrives_in_order_whatever_happens(
    fault_kafka: ProxiedKafka, proxy: TcpProxy, unique_name: str, server: Postgres | MariaDB, names: list[str]
) -> None:
    title = f"outbox on {server.name}: {'; '.join(names)}"
    async with OutboxTrial(title, fault_kafka, proxy, server, unique_name) as trial:
        await trial.start_pumps(PUMPS)
        await trial.progressed()
        for name in names:
            fault = FAULTS[name]
            await trial.compared(lambda fault=fault: fault(trial))
        assert set(KEYS) <= trial.by_key.keys()
        await trial.finish()
