"""One trial: a topic, a writer, member processes, faults, and at the end the account of it all."""

from __future__ import annotations

import asyncio
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

from fault_kafka import (
    PARTITIONS,
    Brokers,
    Encode,
    LetterReader,
    OffsetReader,
    Writer,
    create_topics,
    encode_plain,
)
from fault_ledger import GROUPS, Fault, Ledger, Offsets, duplicates, fate, parse_line, problems
from fault_program import DEADLINE, FAULTS, IS_CHAOS, Program
from fault_proxy import fault_lasts
from planted import check_hidden

ROUNDS = 3 if IS_CHAOS else 1
WINDOW = 8.0
"""Seconds over which a rate is measured."""
BACKLOG = 12_000 if IS_CHAOS else 900
SEED = 20_261_124
SHUTDOWN_TIMEOUT = 5.0
SESSION_TIMEOUT = 3.0

MARKS = (ASSIGNED := ": assigned ", WAITS := " waits ", RUNS := "running producers")
"""Log lines of members that tests wait for: a group has given partitions, a message waits, the program runs."""

reports: list[dict[str, Any]] = []
"""What every finished trial has to say, in their order."""


def member_command() -> list[str]:
    """The program under test."""
    return [sys.executable, str(FAULTS / "member.py")]


class Member(Program):
    """One process of the group. Lines on its standard output go into the ledger as they come."""

    def __init__(self, name: str, trial: Trial) -> None:
        super().__init__(name, changed=trial.changed, marks=MARKS)
        self.latest: dict[str, int] = {}
        """When it last handled something, by group, in nanoseconds."""
        self._trial = trial

    def works_since(self, moment: int) -> bool:
        """Whether it has handled something for every group since then."""
        return all(self.latest.get(group, 0) > moment for group in self._trial.ledger.groups)

    def heard(self, text: bytes) -> None:
        """See `Program`. Other frameworks log to standard output, too."""
        if text.startswith(b"+"):
            line = parse_line(text.decode(), self.name)
            self.latest[line.group] = line.at
            self._trial.ledger.handled(line)


class Trial:
    """`async with Trial(...) as trial`: faults are done to its members, and `finish` closes the account.

    Args:
        name: What is tried, for the table.
        kafka: The cluster.
        prefix: Start of topic and group names.
        groups: Which groups the members serve.
        environment: More variables for the members.
        command: The members' program.
        encode: Bytes of a message.
        fails: Whether handlers fail as `fate` says.
        may_lose: The members are not ours: offsets are taken as they come, and losses are counted.
        backlog: How many messages the writer is ahead.
    """

    def __init__(
        self,
        name: str,
        kafka: Brokers,
        prefix: str,
        *,
        groups: Sequence[str] = GROUPS,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] | None = None,
        encode: Encode = encode_plain,
        fails: bool = True,
        may_lose: bool = False,
        backlog: int = BACKLOG,
    ) -> None:
        self.name = name
        self.random = random.Random(f"{SEED} {name}")
        self.ledger = Ledger(groups, PARTITIONS)
        self.members: list[Member] = []
        self.topic = f"{prefix}.events"
        self.ratios: list[float] = []
        self.end_seconds: list[float] = []
        self._kafka, self._fails, self._may_lose = kafka, fails, may_lose
        self._command = list(command or member_command())
        self._backlog = backlog
        self._began = time.monotonic()
        self._changed = asyncio.Event()
        self._stack = AsyncExitStack()
        self._encode = encode
        self._environment = {
            "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": kafka.members_address,
            "DEIMOS_PRODUCERS__TOPIC_PREFIX": f"{prefix}.",
            "DEIMOS_PRODUCERS__DELIVERY_TIMEOUT": "30",
            "DEIMOS_CONSUMERS__SESSION_TIMEOUT": str(SESSION_TIMEOUT),
            "DEIMOS_CONSUMERS__HEARTBEAT_INTERVAL": "0.5",
            "DEIMOS_CONSUMERS__COMMIT_INTERVAL": "0.5",
            "DEIMOS_CONSUMERS__SHUTDOWN_TIMEOUT": str(SHUTDOWN_TIMEOUT),
            "FAULT_GROUPS": ",".join(groups),
            "FAULT_FAILS": "1" if fails else "",
            **(environment or {}),
        }
        self._group_names = {group: f"{prefix}.{group}" for group in groups}

    async def __aenter__(self) -> Self:
        direct, letters = self._kafka.direct_address, f"{self.topic}-dlt"
        await asyncio.to_thread(create_topics, direct, [self.topic, letters], self._kafka.replicas)
        self.offsets = OffsetReader(direct, self.topic, self._group_names)
        self._stack.push_async_callback(self.offsets.stop)
        reader = LetterReader(direct, letters, self._letter_arrived)
        self._stack.push_async_callback(reader.stop)
        self.writer = Writer(direct, self.topic, self.ledger, backlog=self._backlog, encode=self._encode)
        self._stack.push_async_callback(self.writer.finish)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for member in self.members:
            await member.remove()
        await self._stack.aclose()
        for member in self.members:
            check_hidden("".join(member.telling), f"the log of {member.name}")

    def _letter_arrived(self, headers: Mapping[str, str]) -> None:
        group = headers["deimos-dlq-group"].rpartition(".")[2]
        self.ledger.put_aside(group, int(headers["deimos-dlq-partition"]), int(headers["deimos-dlq-offset"]))
        self.changed()

    # --- waiting -----------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something was handled, put aside or logged."""
        self.writer.covered(self.ledger.slowest())
        self._changed.set()

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait until the condition holds; it is asked again whenever something has changed.

        Raises:
            AssertionError: A member ended by itself, or the deadline passed; with what is known.
        """
        try:
            async with asyncio.timeout(DEADLINE):
                while not condition():
                    for member in self.members:
                        if member.has_ended and not member.is_to_end:
                            raise AssertionError(f"{member.name} ended by itself\n{self._account()}")
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not reached: {what}\n{self._account()}") from None

    def _account(self) -> str:
        ledger = self.ledger
        done = {group: [ledger.covered(group, part) for part in range(PARTITIONS)] for group in ledger.groups}
        logs = "\n".join(f"--- {member.name}:\n{member.log[-20000:]}" for member in self.members)
        return f"acknowledged: {len(ledger.acknowledged)}; done by partition: {done}\n{logs}"

    async def recovered(self, *, by: Sequence[Member] | None = None) -> None:
        """Wait until these members (default: all) work for every group, and commits move on in every partition.

        Handling alone says little: a member that is cut off goes on with what it has in hand.
        """
        moment = time.monotonic_ns()
        workers = [member for member in (self.members if by is None else by) if not member.is_to_end]

        def is_working() -> bool:
            return self.ledger.has_progressed(moment) and all(worker.works_since(moment) for worker in workers)

        before = await self.offsets.committed()
        while True:
            await self.until(is_working, "every member and every partition goes on")
            now = await self.offsets.committed()
            if all(
                now[group].get(partition, 0) > before[group].get(partition, 0)
                for group in self.ledger.groups
                for partition in range(PARTITIONS)
            ):
                return
            moment = time.monotonic_ns()  # look again when something of every partition was handled

    @asynccontextmanager
    async def assigned_again(self, *members: Member) -> AsyncIterator[None]:
        """Within, or soon after, each of these members is given partitions anew for every group."""
        expected = {member: member.said[ASSIGNED] + len(self.ledger.groups) for member in members}
        yield
        await self.until(
            lambda: all(member.said[ASSIGNED] >= count for member, count in expected.items()),
            "members that were given up by the group have joined again",
        )

    # --- members -----------------------------------------------------------------------------------------------

    async def start_member(self) -> Member:
        """A new process; it has not joined yet."""
        member = Member(f"member {len(self.members) + 1}", self)
        await member.start(self._command, self._environment)
        self.members.append(member)
        return member

    async def join(self, count: int) -> list[Member]:
        """Start so many, and wait until each has handled something for every group."""
        joined = [await self.start_member() for _ in range(count)]
        await self.until(lambda: all(member.works_since(0) for member in joined), "every member works")
        return joined

    async def kill(self, member: Member) -> None:
        """SIGKILL: what it had not committed is handled again by others."""
        async with self.fault("killed", member):
            member.is_to_end = True
            member.send(signal.SIGKILL)
            await member.ended()

    async def kill_in_turn(self, alive: list[Member], times: int) -> None:
        """So many times one of the members, which another one then replaces in the list, with 3 s in between."""
        for _ in range(times):
            await self.kill(alive.pop(self.random.randrange(len(alive))))
            alive.append(await self.start_member())
            await fault_lasts(3)

    async def guests_come_and_go(self, count: int) -> None:
        """So many more members, one each second; from the third on another one leaves for each, at last all."""
        leaving: list[asyncio.Task[None]] = []

        async def leave(guest: Member) -> None:
            # Before that the interpreter still loads modules, and a signal just ends it.
            await self.until(lambda: guest.said[RUNS] > 0, "the guest runs")
            await self.leave(guest)

        guests: list[Member] = []
        for _ in range(count):
            guests.append(await self.start_member())
            if len(guests) > 2:
                guest = guests.pop(self.random.randrange(len(guests)))
                leaving.append(asyncio.create_task(leave(guest)))
            await fault_lasts(1)
        leaving += [asyncio.create_task(leave(guest)) for guest in guests]
        await asyncio.gather(*leaving)

    async def leave(self, member: Member) -> None:
        """SIGTERM: it drains, ends with status 0 within its deadline, and leaves nothing open."""
        member.is_to_end = True
        began = time.monotonic()
        member.send(signal.SIGTERM)
        status = await member.ended()
        self.end_seconds.append(time.monotonic() - began)
        assert status == 0, f"{member.name} ended with {status}\n{member.log[-4000:]}"
        assert member.left == {"tasks": [], "sockets": []}, f"{member.name} left open: {member.left}"

    def fault(self, name: str, member: Member | None = None) -> _FaultBlock:
        """`async with trial.fault("restart"):` what happens within, and before recovery, may be handled again."""
        return _FaultBlock(self, name, member)

    async def check_commits(self) -> dict[str, dict[int, int]]:
        """Nothing is committed that was not handled or put aside before; returns the committed offsets."""
        committed = await self.offsets.committed()
        if self._may_lose:
            return committed
        await self.until(lambda: self.ledger.covers(committed), f"all below {committed} was handled")
        return committed

    # --- the account -------------------------------------------------------------------------------------------

    async def rate(self) -> float:
        """Messages that the slowest group handles in a second, over a window in which nothing else happens.

        The others wait for it at times, as the writer does: how fast they are depends on how far ahead they were.
        """
        began, first = time.monotonic(), len(self.ledger.lines)
        await fault_lasts(WINDOW)
        counts = Counter(line.group for line in self.ledger.lines[first:])
        return min(counts[group] for group in self.ledger.groups) / (time.monotonic() - began)

    async def compared(self, fault: Callable[[], Awaitable[None]]) -> None:
        """Do this, and in the long form measure the rates before and after it, round after round."""
        for _ in range(ROUNDS):
            before = await self.rate() if IS_CHAOS else 0.0
            await fault()
            await self.recovered()
            await self.check_commits()
            if IS_CHAOS:
                self.ratios.append(await self.rate() / before)

    async def complete(self) -> Offsets:
        """Stop writing, and wait until every group is done with everything; returns where the partitions end."""
        await self.writer.finish()
        assert not self.writer.failures, self.writer.failures[:3]
        ends = await self.offsets.ends()
        assert sum(ends.values()) == self.writer.written == len(self.ledger.acknowledged)
        everything = dict.fromkeys(self.ledger.groups, ends)
        await self.until(lambda: self.ledger.covers(everything), f"everything up to {ends} is done")
        return ends

    async def finish(self) -> None:
        """Everything is handled, members end in order, and the account is right."""
        ends = await self.complete()
        await asyncio.gather(*(self.leave(member) for member in self.members if not member.is_to_end))
        found = problems(self.ledger, fails=self._fails)
        self.report(found=found)
        assert not found, "\n".join([*found, self._account()])
        # A partition in which nothing was written has no committed offset.
        expected = {partition: end for partition, end in ends.items() if end}
        assert await self.offsets.committed() == dict.fromkeys(self.ledger.groups, expected)

    async def count_losses(self) -> None:
        """Instead of `finish`: wait until a last message in each partition is handled, and count what was not."""
        await self.writer.finish()
        while True:
            await asyncio.to_thread(self.writer.write, PARTITIONS)
            ends = await self.offsets.ends()
            last = [self.ledger.acknowledged[partition, end - 1] for partition, end in ends.items()]
            if all(fate(key, number) == "fine" for key, number in last):
                break
        assert not self.writer.failures, self.writer.failures[:3]

        def is_through() -> bool:
            return all(
                self.ledger.reached.get((group, partition), 0) >= end
                for group in self.ledger.groups
                for partition, end in ends.items()
            )

        await self.until(is_through, f"every partition is handled up to {ends}")
        self.report()

    def report(self, *, found: Sequence[str] = ()) -> None:
        """Put this trial into the table."""
        done = {(line.group, line.partition, line.offset) for line in self.ledger.lines}
        done |= {(group, *place) for group, places in self.ledger.letters.items() for place in places}
        lost = [
            fate(key, number)
            for group in self.ledger.groups
            for place, (key, number) in self.ledger.acknowledged.items()
            if (group, *place) not in done
        ]
        reports.append(
            {
                "trial": self.name,
                "seconds": round(time.monotonic() - self._began, 1),
                "faults": len(self.ledger.faults),
                "written": self.writer.written,
                "groups": len(self.ledger.groups),
                "handled": len(self.ledger.lines),
                "lost": len(lost),
                "lost_failing": sum(each != "fine" for each in lost) if self._fails else 0,
                "duplicates": duplicates(self.ledger.lines),
                "put_aside": sum(map(len, self.ledger.letters.values())),
                "end_seconds": round(max(self.end_seconds, default=0.0), 1),
                "ratios": [round(ratio, 3) for ratio in self.ratios],
                "ratio": round(statistics.median(self.ratios), 3) if self.ratios else None,
                "problems": list(found),
            }
        )


class _FaultBlock:
    def __init__(self, trial: Trial, name: str, member: Member | None) -> None:
        self._trial, self._name, self._member = trial, name, member

    async def __aenter__(self) -> Self:
        self._committed = await self._trial.check_commits()
        self._began = time.monotonic_ns()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        member = None if self._member is None else self._member.name
        self._trial.ledger.faults.append(Fault(self._name, self._began, time.monotonic_ns(), member, self._committed))
