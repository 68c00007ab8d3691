"""Members that are killed, come and go, freeze, or work for long: nothing is lost, little is handled twice."""

from __future__ import annotations

import asyncio
import signal

import pytest
from fault_kafka import ProxiedKafka
from fault_trial import ASSIGNED, IS_CHAOS, Trial

pytestmark = [pytest.mark.services("own_kafka"), pytest.mark.usefixtures("proxy")]


async def test_members_killed_every_three_seconds_lose_nothing(fault_kafka: ProxiedKafka, unique_name: str) -> None:
    async with Trial("SIGKILL of a member every 3 s", fault_kafka, unique_name) as trial:
        trial.writer.start()
        alive = await trial.join(3)
        await trial.compared(lambda: trial.kill_in_turn(alive, 10 if IS_CHAOS else 2))
        await trial.finish()


async def test_members_that_join_and_leave_every_second_repeat_only_what_a_failing_message_held_back(
    fault_kafka: ProxiedKafka, unique_name: str
) -> None:
    async with Trial("members join and leave every second", fault_kafka, unique_name) as trial:
        trial.writer.start()
        await trial.join(2)

        await trial.compared(lambda: trial.guests_come_and_go(20 if IS_CHAOS else 5))
        await trial.finish()
        assert not trial.ledger.faults, "nothing unclean was done: a message comes again only behind one that failed"


async def test_member_frozen_past_its_session_commits_nothing_and_comes_back(
    fault_kafka: ProxiedKafka, unique_name: str
) -> None:
    async with Trial("SIGSTOP past the session timeout, and back", fault_kafka, unique_name) as trial:
        trial.writer.start()
        frozen, other = await trial.join(2)

        async def freeze() -> None:
            async with trial.fault("frozen", frozen):
                frozen.send(signal.SIGSTOP)
                await trial.recovered(by=[other])  # the group has given it the partitions
                before = await trial.check_commits()
                async with trial.assigned_again(frozen):
                    frozen.send(signal.SIGCONT)
            after = await trial.check_commits()
            for group, offsets in before.items():
                for partition, offset in offsets.items():
                    assert after[group][partition] >= offset, "a commit of the frozen member was accepted"

        await trial.compared(freeze)
        await trial.finish()


async def test_handler_slower_than_every_timeout_of_the_group_keeps_its_partition(
    fault_kafka: ProxiedKafka, unique_name: str
) -> None:
    # Longer for each message than the session and twice as long as the longest time between polls.
    slow = {
        "FAULT_WORK": "4",
        "DEIMOS_CONSUMERS__MAX_POLL_INTERVAL": "2",
        "DEIMOS_CONSUMERS__SHUTDOWN_TIMEOUT": "30",
    }
    name = "handler of 4 s, session timeout 3 s, poll interval 2 s"
    groups = ("partition", "batch")
    async with Trial(name, fault_kafka, unique_name, groups=groups, environment=slow, fails=False) as trial:
        await asyncio.to_thread(trial.writer.write, 10 if IS_CHAOS else 2)
        member = await trial.start_member()
        await trial.complete()
        assert member.said[ASSIGNED] == len(groups), "it has lost its partitions meanwhile"
        await trial.finish()
