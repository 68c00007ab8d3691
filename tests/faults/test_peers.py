"""What another framework makes of the first trial; only `make chaos` runs it, for the table."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fault_kafka import ProxiedKafka
from fault_trial import Trial

pytestmark = [pytest.mark.services("own_kafka"), pytest.mark.usefixtures("proxy")]


@pytest.mark.parametrize("who", ["deimos_async", "FastStream"])
async def test_losses_by_kills_are_counted(fault_kafka: ProxiedKafka, unique_name: str, who: str) -> None:
    command = None
    if who == "FastStream":
        command = [os.environ["DEIMOS_CHAOS_FASTSTREAM"], str(Path(__file__).parent / "faststream_member.py")]
    async with Trial(
        f"{who}, one group, defaults: SIGKILL of a member every 3 s",
        fault_kafka,
        unique_name,
        groups=("partition",),
        command=command,
        may_lose=True,
    ) as trial:
        trial.writer.start()
        alive = await trial.join(3)
        await trial.kill_in_turn(alive, 10)
        await trial.count_losses()
