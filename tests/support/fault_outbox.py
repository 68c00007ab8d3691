"""One trial of the outbox: a database, a writer, pumps as processes, faults, and at the end the account of it all."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import signal
import statistics
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Self

import fault_written
import sqlalchemy as sa
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, NewTopic, ResourceType
from fault_deliveries import Arrival, Written, duplicates, problems
from fault_kafka import ProxiedKafka
from fault_program import DEADLINE, FAULTS, IS_CHAOS, Program
from fault_proxy import TcpProxy, fault_lasts
from fault_trial import ROUNDS, WINDOW, reports
from fresh_database import fresh_database
from planted import check_hidden
from servers import MariaDB, Postgres, free_port
from servers.ports import HOST
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from deimos_async.database.creation import create_framework_tables

PARTITIONS = 6
SLOTS = 8
MAX_IN_FLIGHT = 300
"""Messages of one pump that a fault may send twice."""
BACKLOG = 4000 if IS_CHAOS else 600
"""How many messages the writer is ahead of Kafka."""
PAUSE = 0.0 if IS_CHAOS else 0.2
"""Seconds between two transactions of each of the writer's tasks: the short form leaves some of the machine to pumps
that start."""
LEASE_TTL = 5.0
REQUEST_TIMEOUT = 4.0
_ANSWER = 60.0
"""Seconds for questions to the broker; it may be restarting."""
_LOOK = 0.2
"""Seconds between two looks at tables that others change."""
_LEASES = "SELECT topic, locked_by FROM kafka_topic_info WHERE topic LIKE 'slot-%' OR topic LIKE 'worker-%'"
_CONNECTIONS = {
    "postgresql": (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    ),
    "mysql": ("SELECT count(*) FROM information_schema.processlist WHERE db = DATABASE() AND id <> CONNECTION_ID()"),
}


class DeliveryReader:
    """Reads topics as they fill, by the other client library, in a thread of its own. Belongs to no group.

    Args:
        arrived: Called in the event loop with what has come, in the order of each partition.
    """

    def __init__(self, bootstrap: str, arrived: Callable[[Sequence[Arrival]], None]) -> None:
        self._arrived = arrived
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._added: queue.SimpleQueue[list[TopicPartition]] = queue.SimpleQueue()
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap,
                "group.id": "fault-deliveries",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 20,
                "reconnect.backoff.max.ms": 500,
                "topic.metadata.refresh.interval.ms": 1000,
            }
        )
        self._thread = threading.Thread(target=self._run, name="fault deliveries", daemon=True)

    def add(self, topic: str, partitions: int) -> None:
        """Read this one too, from its start."""
        self._added.put([TopicPartition(topic, number, 0) for number in range(partitions)])

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.is_set():
            while not self._added.empty():
                # In this thread: it would wait for ever for a call of `consume` that is going on in another one.
                self._consumer.incremental_assign(self._added.get())
            found = [
                _arrival(message) for message in self._consumer.consume(500, timeout=0.1) if message.error() is None
            ]
            if found:
                self._loop.call_soon_threadsafe(self._arrived, found)
        self._consumer.close()

    async def stop(self) -> None:
        self._stop.set()
        await asyncio.to_thread(self._thread.join)


def _arrival(message: Any) -> Arrival:
    number, token, _ = message.value().split(b" ", 2)
    headers = dict(message.headers() or [])
    return Arrival(
        message.topic(),
        message.partition(),
        message.offset(),
        message.key().decode(),
        int(number),
        token.decode(),
        headers.get("deimos-message-id"),
        int(headers["deimos-seq"]),
        time.monotonic(),
    )


class Pump(Program):
    """A process that sends, and its own way to the database."""

    def __init__(self, name: str, changed: Callable[[], None], proxy: TcpProxy) -> None:
        super().__init__(name, changed=changed)
        self.proxy = proxy


class OutboxWriter(Program):
    """The process that writes."""

    def __init__(self, changed: Callable[[], None]) -> None:
        super().__init__("the writer", changed=changed)
        self.acknowledged: list[str] = []
        """Tokens of messages whose commit was acknowledged."""
        self.answers: set[str] = set()
        """What it has said to be done."""

    def heard(self, text: bytes) -> None:
        """See `Program`."""
        match text.decode().split():
            case ["+", *tokens]:
                self.acknowledged += tokens
            case ["?", answer]:
                self.answers.add(answer)


class OutboxTrial:
    """`async with OutboxTrial(...) as trial`: faults are done to its pumps, and `finish` closes the account.

    Args:
        name: What is tried, for the table.
        server: Of the database; it may be restarted.
        prefix: Start of the topic's name, and name of the trial's database.
    """

    def __init__(self, name: str, kafka: ProxiedKafka, broker_proxy: TcpProxy, server: Postgres | MariaDB, prefix: str):
        self.name = name
        self.topic = f"{prefix}.events"
        self.kafka, self.broker_proxy, self.server = kafka, broker_proxy, server
        self.pumps: list[Pump] = []
        self.arrivals: list[Arrival] = []
        self.firsts: dict[str, float] = {}
        """When each message, by its token, was first seen."""
        self.by_key: dict[str, float] = {}
        """When the last new message of each key was seen."""
        self.repeatable = 0
        """How many messages the faults so far may have sent again."""
        self.faults = 0
        self.killed = 0
        self.ratios: list[float] = []
        self.end_seconds: list[float] = []
        self._prefix = prefix
        self._began = time.monotonic()
        self._changed = asyncio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self.url = await stack.enter_async_context(fresh_database(self.server.url, self._prefix[:60]))
            self._engine = create_async_engine(self.url, poolclass=NullPool)
            await self._make_tables(self._engine)
            await asyncio.to_thread(self._make_topics)
            reader = DeliveryReader(self.kafka.direct_address, self._arrived)
            reader.add(self.topic, PARTITIONS)
            reader.add(f"{self.topic}.narrow", 1)
            reader.start()
            stack.push_async_callback(reader.stop)
            self._reader = reader
            self.writer = OutboxWriter(self.changed)
            await self.writer.start(
                [sys.executable, str(FAULTS / "outbox_writer.py")],
                {
                    "DEIMOS_DATABASE__URL": self.url,
                    "OUTBOX_TOPIC": self.topic,
                    "FAULT_BACKLOG": str(BACKLOG),
                    "FAULT_PAUSE": str(PAUSE),
                },
                is_told=True,
            )
            stack.push_async_callback(self.writer.remove)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for pump in self.pumps:
            await pump.remove()
        await self._stack.aclose()
        for program in (*self.pumps, self.writer):
            check_hidden("".join(program.telling), f"the log of {program.name}")

    async def _make_tables(self, engine: AsyncEngine) -> None:
        await create_framework_tables(engine)
        async with engine.begin() as connection:
            await connection.run_sync(fault_written.metadata.create_all)
            await connection.execute(sa.insert(fault_written.numbers), list(fault_written.first_rows()))

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.kafka.direct_address})

    def _make_topics(self) -> None:
        topics = [
            NewTopic(self.topic, PARTITIONS, 1),
            NewTopic(f"{self.topic}.narrow", 1, 1, config={"max.message.bytes": "4000"}),
        ]
        admin = self._admin()
        for made in admin.create_topics(topics).values():
            made.result(_ANSWER)

    async def cure(self) -> None:
        """Make the topic that did not exist, and widen the one that took no large messages."""
        await asyncio.to_thread(self._cure)
        self._reader.add(f"{self.topic}.missing", 1)

    def _cure(self) -> None:
        admin = self._admin()
        for made in admin.create_topics([NewTopic(f"{self.topic}.missing", 1, 1)]).values():
            made.result(_ANSWER)
        entry = ConfigEntry("max.message.bytes", "1000000", incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource(ResourceType.TOPIC, f"{self.topic}.narrow", incremental_configs=[entry])
        for changed in admin.incremental_alter_configs([resource]).values():
            changed.result(_ANSWER)

    # --- what has come -----------------------------------------------------------------------------------------

    def _arrived(self, arrivals: Sequence[Arrival]) -> None:
        self.arrivals += arrivals
        for arrival in arrivals:
            if arrival.token not in self.firsts:
                self.firsts[arrival.token] = self.by_key[arrival.key] = arrival.at
        self.writer.tell(f"delivered {len(self.firsts)}")
        self.changed()

    def changed(self) -> None:
        """Something has arrived, or a program has said something."""
        self._changed.set()

    def arrived_of(self, key: str) -> list[int]:
        """Numbers of a key's messages, as they first arrived."""
        return list(dict.fromkeys(arrival.number for arrival in self.arrivals if arrival.key == key))

    # --- waiting -----------------------------------------------------------------------------------------------

    async def until(self, condition: Callable[[], bool | Awaitable[bool]], what: str) -> None:
        """Wait until the condition holds; it is asked again when something has changed, and now and then.

        Raises:
            AssertionError: A program ended by itself, or the deadline passed; with what is known.
        """
        try:
            async with asyncio.timeout(DEADLINE):
                while True:
                    self._changed.clear()
                    for program in (self.writer, *self.pumps):
                        if program.has_ended and not program.is_to_end:
                            raise AssertionError(f"{program.name} ended by itself\n{await self._account()}")
                    holds = condition()
                    if holds if isinstance(holds, bool) else await holds:
                        return
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(_LOOK):  # tables do not tell when they change
                            await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"not reached: {what}\n{await self._account()}") from None

    async def _account(self) -> str:
        logs = "\n".join(f"--- {program.name}:\n{program.log[-8000:]}" for program in (self.writer, *self.pumps))
        try:
            async with asyncio.timeout(5):
                table = str([tuple(row) for row in await self._rows(_LEASES)])
        except Exception as error:  # the server may be what is broken
            table = type(error).__name__
        late = sorted(self.by_key.items(), key=lambda item: item[1])[:5]
        ago = [(key, round(time.monotonic() - at, 1)) for key, at in late]
        return (
            f"{len(self.writer.acknowledged)} acknowledged, {len(self.firsts)} arrived, longest without news: {ago}\n"
            f"leases: {table}\n{logs}"
        )

    async def progressed(self) -> None:
        """Wait until a new message of every key has arrived: all slots are served."""
        moment = time.monotonic()
        await self.until(
            lambda: all(self.by_key.get(key, 0.0) > moment for key in fault_written.KEYS), "every key goes on"
        )

    async def recovered(self) -> None:
        """Wait until the pumps that are left share all slots fairly, and every key goes on."""
        await self.shared_by(sum(not pump.is_to_end for pump in self.pumps))
        await self.progressed()
        self.check_duplicates()

    def check_duplicates(self) -> None:
        """No more was sent again than the faults so far explain."""
        again = duplicates(self.arrivals)
        assert again <= self.repeatable, f"{again} sent again, {self.repeatable} may have been"

    async def shared_by(self, count: int) -> None:
        """Wait until so many workers own all slots, and no two shares differ by more than one."""

        async def is_shared() -> bool:
            owners = list((await self._owners()).values())
            counts = [owners.count(owner) for owner in set(owners)]
            return (
                len(owners) == SLOTS and None not in owners and len(counts) == count and max(counts) - min(counts) <= 1
            )

        await self.until(is_shared, f"{count} workers share all slots")

    # --- the database ------------------------------------------------------------------------------------------

    async def _rows(self, statement: sa.Select[Any] | str) -> Sequence[Any]:
        async with self._engine.connect() as connection:
            found = await connection.execute(sa.text(statement) if isinstance(statement, str) else statement)
            return found.all()

    async def _owners(self) -> dict[str, str | None]:
        return {topic: owner for topic, owner in await self._rows(_LEASES) if topic.startswith("slot-")}

    async def _workers(self) -> set[str]:
        return {owner for topic, owner in await self._rows(_LEASES) if topic.startswith("worker-")}

    async def left_of(self, suffix: str = "") -> int:
        """Rows of one of the topics that wait."""
        table = sa.table("kafka_messages", sa.column("topic"))
        query = sa.select(sa.func.count()).select_from(table).where(table.c.topic == f"{self.topic}{suffix}")
        return int((await self._rows(query))[0][0])

    async def written(self) -> Written:
        """What the database has committed."""
        return {token: (name, number) for token, name, number in await self._rows(sa.select(fault_written.written))}

    # --- pumps -------------------------------------------------------------------------------------------------

    async def start_pump(self) -> Pump:
        """A new process; it may have no slots yet."""
        proxy = TcpProxy(free_port(), (HOST, self.server.port))
        await self._stack.enter_async_context(proxy)
        pump = Pump(f"pump {len(self.pumps) + 1}", self.changed, proxy)
        url = make_url(self.url).set(port=proxy.port).render_as_string(hide_password=False)
        environment = {
            "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": self.kafka.members_address,
            "DEIMOS_KAFKA__REQUEST_TIMEOUT": str(REQUEST_TIMEOUT),
            "DEIMOS_DATABASE__URL": url,
            "DEIMOS_OUTBOX__MAX_IN_FLIGHT": str(MAX_IN_FLIGHT),
            "DEIMOS_OUTBOX__LEASE_TTL": str(LEASE_TTL),
            "OUTBOX_TOPIC": self.topic,
        }
        await pump.start([sys.executable, str(FAULTS / "outbox_pump.py")], environment)
        self.pumps.append(pump)
        return pump

    async def start_pumps(self, count: int) -> None:
        """So many more, and wait until all share the slots."""
        for _ in range(count):
            await self.start_pump()
        await self.shared_by(len(self.alive))

    @property
    def alive(self) -> list[Pump]:
        """Pumps that were not told to end."""
        return [pump for pump in self.pumps if not pump.is_to_end]

    @asynccontextmanager
    async def fault(self, *befallen: Pump) -> AsyncIterator[None]:
        """What happens within may make each of these pumps (default: all) send again what it has on its way."""
        self.faults += 1
        self.repeatable += MAX_IN_FLIGHT * len(befallen or self.alive)
        yield

    async def kill(self, pump: Pump) -> None:
        """SIGKILL."""
        async with self.fault(pump):
            self.killed += 1
            pump.is_to_end = True
            pump.send(signal.SIGKILL)
            await pump.ended()

    async def leave(self, *pumps: Pump) -> None:
        """SIGTERM: they end with status 0, leave nothing open, and their slots belong to nobody or to others."""

        async def end(pump: Pump) -> None:
            pump.is_to_end = True
            began = time.monotonic()
            pump.send(signal.SIGTERM)
            status = await pump.ended()
            self.end_seconds.append(time.monotonic() - began)
            assert status == 0, f"{pump.name} ended with {status}\n{pump.log[-4000:]}"
            assert pump.left == {"tasks": [], "sockets": []}, f"{pump.name} left open: {pump.left}\n{pump.log[-4000:]}"

        before = await self._workers()
        await asyncio.gather(*(end(pump) for pump in pumps))
        gone = before - await self._workers()
        assert len(gone) >= len(pumps), f"{len(pumps)} pumps have ended, {len(gone)} rows of workers are gone"
        kept = {slot: owner for slot, owner in (await self._owners()).items() if owner in gone}
        assert not kept, f"slots of pumps that have ended: {kept}"

    # --- the account -------------------------------------------------------------------------------------------

    async def rate(self) -> float:
        """New messages that arrive in a second, over a window in which nothing else happens."""
        began, first = time.monotonic(), len(self.firsts)
        await fault_lasts(WINDOW)
        return (len(self.firsts) - first) / (time.monotonic() - began)

    async def compared(self, fault: Callable[[], Awaitable[None]]) -> None:
        """Do this, and in the long form measure the rates before and after it, round after round."""
        for _ in range(ROUNDS):
            before = await self.rate() if IS_CHAOS else 0.0
            await fault()
            await self.recovered()
            if IS_CHAOS:
                self.ratios.append(await self.rate() / before)

    async def ask_writer(self, line: str, answer: str) -> None:
        """Tell the writer to do something, and wait until it says that it is done."""
        self.writer.answers.discard(answer)
        self.writer.tell(line)
        await self.until(lambda: answer in self.writer.answers, f"the writer has said {answer!r}")

    async def finish(self) -> None:
        """All that was committed arrives, pumps end in order, nothing is left, and the account is right."""
        self.writer.is_to_end = True
        self.writer.tell("stop")
        status = await self.writer.ended()
        assert status == 0, f"the writer ended with {status}\n{self.writer.log[-4000:]}"
        written = await self.written()
        await self.until(lambda: written.keys() <= self.firsts.keys(), f"all {len(written)} messages have arrived")

        async def is_empty() -> bool:
            return not (await self._rows("SELECT count(*) FROM kafka_messages"))[0][0]

        await self.until(is_empty, "the outbox is empty")
        await self.leave(*self.alive)
        found = problems(written, self.writer.acknowledged, self.arrivals)
        self.report(written, found)
        assert not found, "\n".join([*found, await self._account()])
        self.check_duplicates()
        assert await is_empty()
        assert not (await self._rows("SELECT count(*) FROM kafka_parked_messages"))[0][0]
        assert await self._owners() == {f"slot-{number}": None for number in range(SLOTS)}
        assert len(await self._workers()) <= self.killed, "workers that ended in order are still in the table"
        for pump in self.pumps:
            await pump.proxy.__aexit__()
        await self.until(self._has_no_connections, "no connection to the database is left")

    async def _has_no_connections(self) -> bool:
        return not (await self._rows(_CONNECTIONS[self._engine.dialect.name.replace("mariadb", "mysql")]))[0][0]

    def report(self, written: Written, found: Sequence[str]) -> None:
        """Put this trial into the table."""
        reports.append(
            {
                "trial": self.name,
                "seconds": round(time.monotonic() - self._began, 1),
                "faults": self.faults,
                "written": len(written),
                "groups": "-",
                "handled": len(self.arrivals),
                "lost": len(written.keys() - self.firsts.keys()),
                "lost_failing": 0,
                "duplicates": duplicates(self.arrivals),
                "put_aside": 0,
                "end_seconds": round(max(self.end_seconds, default=0.0), 1),
                "ratios": [round(ratio, 3) for ratio in self.ratios],
                "ratio": round(statistics.median(self.ratios), 3) if self.ratios else None,
                "problems": list(found),
            }
        )
