"""`lag` by command line, on Kafka."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from deimos_async.brokers.kafka import KafkaBroker, KafkaOptions
from deimos_async.brokers.protocol import ProducerOptions
from deimos_async.message import OutboundRecord

from .conftest import Launch, Launched

APPLICATION = """
import os
from deimos_async import Deimos, Key, Message

app = Deimos()
orders = app.topic("orders", key=Key.plain(), partitions=2)


@app.consumer(orders, group="billing")
async def bill(message: Message) -> None:
    os.write(1, b"handled\\n")


@app.consumer(orders, group="news", start_from="latest")
async def tell(message: Message) -> None: ...
"""


async def test_lag_is_told_without_running_and_its_limits_make_the_exit_status(
    launch: Launch, tmp_path: Path, kafka_bootstrap: str, unique_name: str
) -> None:
    (tmp_path / "shop.py").write_text(APPLICATION)
    environment = {
        "DEIMOS_KAFKA__BOOTSTRAP_SERVERS": kafka_bootstrap,
        "DEIMOS_PRODUCERS__TOPIC_PREFIX": f"{unique_name}.",
    }

    async def command(*arguments: str, status: int = 0) -> Launched:
        ended = await launch(sys.executable, "-m", "deimos_async", *arguments, folder=tmp_path, environment=environment)
        assert await ended.ends() == status, ended.output + ended.errors
        assert "Traceback" not in ended.errors
        return ended

    async def lag(*arguments: str, status: int = 0) -> list[dict[str, Any]]:
        rows = json.loads((await command("lag", "shop:app", "--json", *arguments, status=status)).output)
        assert isinstance(rows, list)
        return rows

    missing = await command("lag", "shop:app", status=1)
    assert f"no topic '{unique_name}.orders'" in missing.errors
    await command("topics", "create", "shop:app")
    broker = KafkaBroker("default", KafkaOptions(bootstrap_servers=kafka_bootstrap))
    producer = broker.producer(ProducerOptions())
    await producer.start()
    topic = f"{unique_name}.orders"
    (first,) = await producer.send([OutboundRecord(topic, value=b"v", partition=0, timestamp=1_700_000_000_000)])
    assert first.offset == 0
    await producer.send([OutboundRecord(topic, value=b"v", partition=0)] * 2)
    await producer.stop()

    rows = await lag()
    assert [(row["group"], row["partition"], row["committed"], row["messages"]) for row in rows] == [
        (f"{unique_name}.billing", 0, None, 3),
        (f"{unique_name}.billing", 1, None, 0),
        (f"{unique_name}.news", 0, None, 0),
        (f"{unique_name}.news", 1, None, 0),
    ]
    assert rows[0]["seconds"] > 3600
    assert [row["seconds"] for row in rows[1:]] == [0, 0, 0]
    above = await lag("--group", "billing", "--max-messages", "2", status=3)
    assert [row["exceeds"] for row in above] == [True, False]
    await lag("--group", "billing", "--max-seconds", "3600", status=3)
    await lag("--group", "billing", "--max-messages", "3")
    await lag("--group", f"{unique_name}.news", "--max-messages", "0", "--max-seconds", "0")
    unknown = await command("lag", "shop:app", "--group", "nobody", status=2)
    assert "no consumer of that group" in unknown.errors

    run = await launch(
        sys.executable, "-m", "deimos_async", "run", "shop:app", folder=tmp_path, environment=environment
    )
    while run.output.count("handled") < 3:
        await run.says_more()
    assert await run.ends(signal.SIGTERM) == 0
    rows = await lag("--max-messages", "0", "--max-seconds", "0")
    assert (rows[0]["committed"], rows[0]["end"], rows[0]["messages"], rows[0]["seconds"]) == (3, 3, 0, 0)
    plain = await command("lag", "shop:app")
    assert "0 messages behind in 4 partitions" in plain.output
