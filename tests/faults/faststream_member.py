"""The same member on FastStream as it is without further options: it commits every 5 s what it has fetched so far.

Runs in an environment of its own. What is set beside the addresses makes the trials alike: the session's timeouts, and
that a new group begins at the start of the topic.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))
from faststream import FastStream
from faststream.kafka import KafkaBroker, KafkaMessage
from fault_ledger import fate, format_line

WORK = float(os.environ.get("FAULT_WORK", "0.002"))
PREFIX = os.environ["DEIMOS_PRODUCERS__TOPIC_PREFIX"]

_has_failed: set[int] = set()

broker = KafkaBroker(os.environ["DEIMOS_KAFKA__BOOTSTRAP_SERVERS"])


@broker.subscriber(
    f"{PREFIX}events",
    group_id=f"{PREFIX}partition",
    auto_offset_reset="earliest",
    session_timeout_ms=round(float(os.environ["DEIMOS_CONSUMERS__SESSION_TIMEOUT"]) * 1000),
    heartbeat_interval_ms=round(float(os.environ["DEIMOS_CONSUMERS__HEARTBEAT_INTERVAL"]) * 1000),
)
async def handle(message: KafkaMessage) -> None:
    record = message.raw_message
    key, _, number = record.value.decode().partition(":")
    await asyncio.sleep(WORK)  # the work
    expected = fate(key, int(number))
    if expected == "poison" or (expected == "flaky" and int(number) not in _has_failed):
        _has_failed.add(int(number))
        raise ValueError(f"{key}:{number} fails")
    os.write(1, format_line("partition", record.partition, record.offset, key, int(number)))


if __name__ == "__main__":
    asyncio.run(FastStream(broker).run())
