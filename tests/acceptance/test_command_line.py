"""Whole programs by the command line: signals, exit status, messages."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from planted import SECRET, VARIABLE, check_hidden

DEADLINE = 60.0

APPLICATION = """
import os
from deimos_async import Deimos, Key, Message, OnError

app = Deimos()
orders = app.topic("orders", key=Key.plain(), partitions=2)
to_orders = app.producer(orders)


@app.consumer(orders, group="g", on_error=OnError(attempts=1, then="stop"))
async def handle(message: Message) -> None:
    os.write(1, b"handled " + message.payload + b"\\n")
    if message.payload == b"poison":
        raise ValueError("poisoned")
"""

# Produces by itself once it runs, as an embedded application has nobody else to write to it.
SELF_FED = """
from deimos_async import Consumer
ticks = app.topic("ticks", key=Key.none())
to_ticks = app.producer(ticks)


@app.consumer(ticks, group="feeder")
async def feed(message: Message) -> None:
    await to_orders.produce(message.payload, key="k")


_running = app.running


def running(**arguments):
    from contextlib import asynccontextmanager

    @asynccontextmanager
    async def fed():
        async with _running(**arguments) as started:
            await to_ticks.produce(os.environ["FEED"])
            yield started

    return fed()


app.running = running
"""


class Command:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.out = ""
        self.err = ""
        self._changed = asyncio.Event()
        self.reading = asyncio.gather(self._read("out", process.stdout), self._read("err", process.stderr))

    async def _read(self, name: str, stream: Any) -> None:
        while line := await stream.readline():
            setattr(self, name, getattr(self, name) + line.decode())
            self._changed.set()
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not condition():
                assert not self.reading.done(), f"ended too early: {self.err}"
                self._changed.clear()
                await self._changed.wait()

    async def ended(self) -> int:
        async with asyncio.timeout(DEADLINE):
            await self.reading
            return await self.process.wait()


@pytest.fixture
async def command(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await command("run", "shop:app", FEED="x")` in a folder with `shop.py`."""
    (tmp_path / "shop.py").write_text(APPLICATION + SELF_FED)
    (tmp_path / "bare.py").write_text(APPLICATION)
    commands: list[Command] = []

    async def started(*arguments: str, **environment: str) -> Command:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "deimos_async",
            *arguments,
            cwd=tmp_path,
            env={name: value for name, value in os.environ.items() if not name.startswith("DEIMOS_")}
            | {VARIABLE: SECRET, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        commands.append(Command(process))
        return commands[-1]

    yield started
    for running in commands:
        if running.process.returncode is None:
            running.process.kill()
        await running.reading
        await running.process.wait()
    for running in commands:
        check_hidden(running.out + running.err, "what a command has printed")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_signal_drains_and_exits_zero(command: Any, number: signal.Signals) -> None:
    run = await command("run", "shop:app", "--embedded", FEED="hello")
    await run.until(lambda: "handled hello" in run.out)
    run.process.send_signal(number)
    assert await run.ended() == 0
    assert "Traceback" not in run.err


async def test_consumer_that_stops_for_an_error_ends_the_process_non_zero(command: Any) -> None:
    run = await command("run", "shop:app", "--embedded", FEED="poison")
    assert await run.ended() == 1
    assert "consumer 'handle' stopped at orders[" in run.err
    assert "ValueError: poisoned" in run.err


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("run", "shop"), "write package.module:attribute"),
        (("run", "nowhere:app"), "there is no module 'nowhere'"),
        (("run", "shop:nothing"), "has no attribute 'nothing'"),
        (("run", "shop:orders"), "is Topic, not a Deimos application"),
        (("run", "shop:app", "--embedded", "--workers", "2"), "exclude each other"),
        (("topics", "list", "nowhere:app"), "there is no module"),
        (("poller", "nowhere:app"), "there is no module"),
        (
            ("poller", "shop:app", "--backfill", "x", "--workers", "2"),
            "--backfill goes with neither --workers nor --web",
        ),
    ],
)
async def test_mistake_is_told_in_one_line_and_exits_two(command: Any, arguments: Any, text: str) -> None:
    run = await command(*arguments)
    assert await run.ended() == 2
    assert text in run.err
    assert "Traceback" not in run.err


async def test_wrong_settings_are_told_together(command: Any) -> None:
    run = await command(
        "run", "bare:app", DEIMOS_KAFKA__BOOTSTRAP_SERVERS="nowhere", DEIMOS_CONSUMERS__SESSION_TIMEOUT="soon"
    )
    assert await run.ended() == 2
    assert "DEIMOS_KAFKA__BOOTSTRAP_SERVERS" in run.err
    assert "DEIMOS_CONSUMERS__SESSION_TIMEOUT" in run.err


async def test_commands_that_do_not_work_yet_do_not_appear(command: Any) -> None:
    run = await command("--help")
    assert await run.ended() == 0
    listed = [line.split()[0] for line in run.out.partition("Commands:")[2].splitlines() if line.strip()]
    assert set(listed) >= {"dead-letters", "lag", "migrate", "outbox", "parked", "poller", "run", "topics"}
    assert not {"doctor", "generate", "schemas", "top"}.intersection(listed)


@pytest.mark.services("kafka")
async def test_topics_are_listed_and_created_with_their_dead_letter_topics(
    command: Any, kafka_bootstrap: str, unique_name: str, tmp_path: Path
) -> None:
    environment = {
        "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": kafka_bootstrap,
        "DEIMOS_PRODUCERS__TOPIC_PREFIX": f"{unique_name}.",
        "DEIMOS_CONSUMERS__GROUP": "g",
    }
    (tmp_path / "letters.py").write_text(APPLICATION.replace(', then="stop"', ""))
    missing = await command("run", "letters:app", **environment)
    assert await missing.ended() == 2
    assert f"topic '{unique_name}.orders' does not exist" in missing.err
    assert f"dead-letter topic '{unique_name}.orders-dlt'" in missing.err
    listing = await command("topics", "list", "letters:app", "--json", **environment)
    assert await listing.ended() == 0
    assert {row["topic"]: row["exists"] for row in json.loads(listing.out)} == {
        f"{unique_name}.orders": False,
        f"{unique_name}.orders-dlt": False,
    }
    create = await command("topics", "create", "letters:app", **environment)
    assert await create.ended() == 0
    assert f"created {unique_name}.orders-dlt" in create.out
    again = await command("topics", "create", "letters:app", "--json", **environment)
    assert await again.ended() == 0
    assert json.loads(again.out) == {"created": []}
    listing = await command("topics", "list", "letters:app", "--json", **environment)
    await listing.ended()
    assert [(row["exists"], row["partitions"]) for row in json.loads(listing.out)] == [(True, 2), (True, 2)]
    run = await command("run", "letters:app", **environment)
    await run.until(lambda: "running producers and consumers" in run.err)
    run.process.send_signal(signal.SIGTERM)
    assert await run.ended() == 0
