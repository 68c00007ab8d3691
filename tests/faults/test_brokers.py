"""Brokers that are restarted, alone or one after another."""

from __future__ import annotations

from typing import Any

import pytest
from fault_kafka import ProxiedKafka, ReplicatedKafka
from fault_trial import IS_CHAOS, Trial

pytestmark = pytest.mark.services("own_kafka")


@pytest.mark.usefixtures("proxy")
async def test_broker_restarted_loses_nothing(fault_kafka: ProxiedKafka, unique_name: str) -> None:
    async with Trial("the broker restarted", fault_kafka, unique_name) as trial:
        trial.writer.start()
        await trial.join(2)

        async def restart() -> None:
            async with trial.fault("restart"):
                await fault_kafka.restart()
                await trial.recovered()

        await trial.compared(restart)
        await trial.finish()


async def test_three_brokers_restarted_one_after_another_lose_nothing(unique_name: str) -> None:
    # Three brokers leave little of a small machine to busy members: in the short form they work slowly.
    load: dict[str, Any] = {} if IS_CHAOS else {"environment": {"FAULT_WORK": "0.02"}, "backlog": 120}
    async with (
        ReplicatedKafka() as kafka,
        Trial("three brokers restarted one after another", kafka, unique_name, **load) as trial,
    ):
        trial.writer.start()
        await trial.join(2)

        async def restarts() -> None:
            for broker in kafka:
                async with trial.fault(f"restart of broker {broker.node_id}"):
                    await broker.restart()
                    await trial.recovered()

        await trial.compared(restarts)
        await trial.finish()
