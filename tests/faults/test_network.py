"""The way to the brokers is cut, silent or slow, also when members are told to end."""

from __future__ import annotations

import signal
import time

import pytest
from fault_kafka import ProxiedKafka
from fault_proxy import TcpProxy, fault_lasts
from fault_trial import IS_CHAOS, SHUTDOWN_TIMEOUT, Trial

pytestmark = pytest.mark.services("own_kafka")

REQUEST_TIMEOUT = {"DEIMOS_KAFKA__REQUEST_TIMEOUT": "4"}
"""Seconds after which a silent connection is given up: 30 if nothing is said."""
FAULT_SECONDS = 20.0 if IS_CHAOS else 5.0
SLOW_SECONDS = 20.0 if IS_CHAOS else 2.0


@pytest.mark.parametrize("kind", ["cut", "half-open", "slow"])
async def test_network_fault_loses_nothing_and_members_go_on_by_themselves(
    fault_kafka: ProxiedKafka, proxy: TcpProxy, unique_name: str, kind: str
) -> None:
    async with Trial(
        f"connections to the broker {kind}", fault_kafka, unique_name, environment=REQUEST_TIMEOUT
    ) as trial:
        trial.writer.start()
        members = await trial.join(2)

        async def fault() -> None:
            async with trial.fault(kind):
                match kind:
                    case "cut":
                        # Longer than the session: the group gives both members up.
                        async with trial.assigned_again(*members):
                            proxy.cut()
                            await fault_lasts(FAULT_SECONDS)
                            proxy.heal()
                    case "half-open":
                        # Those there are stay silent for ever; it is for the members to notice and to connect anew,
                        # after the request timeout, when the group has given them up.
                        async with trial.assigned_again(*members):
                            proxy.silence(new=False)
                    case _:
                        proxy.delay(0.1)
                        proxy.slow(200_000)
                        await fault_lasts(SLOW_SECONDS)
                        proxy.heal()
                await trial.recovered()

        await trial.compared(fault)
        await trial.finish()


@pytest.mark.parametrize("kind", ["refused", "silent"])
async def test_sigterm_with_unreachable_brokers_ends_within_its_deadline(
    fault_kafka: ProxiedKafka, proxy: TcpProxy, unique_name: str, kind: str
) -> None:
    environment = {"DEIMOS_KAFKA__REQUEST_TIMEOUT": "2"}
    async with Trial(f"SIGTERM with brokers {kind}", fault_kafka, unique_name, environment=environment) as trial:
        trial.writer.start()
        members = await trial.join(1)
        async with trial.fault(kind):
            if kind == "refused":
                proxy.cut()
            else:
                proxy.silence(new=True)
            began = time.monotonic()
            for member in members:
                member.is_to_end = True
                member.send(signal.SIGTERM)
            statuses = [await member.ended() for member in members]
            trial.end_seconds.append(time.monotonic() - began)
        # Handlers have the shutdown timeout; the commit has the request timeout, and the clients some seconds to close.
        assert trial.end_seconds[-1] < SHUTDOWN_TIMEOUT + 20
        assert statuses == [0]
        for member in members:
            assert member.left == {"tasks": [], "sockets": []}, member.log[-4000:]
        proxy.heal()
        await trial.join(1)
        await trial.finish()
