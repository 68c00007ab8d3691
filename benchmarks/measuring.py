"""What every case has in common: the records, the clock, and the way a case is run and tells what it measured.

It needs nothing but Python, so that the environments of other frameworks can import it too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
KAFKA = os.environ.get("DEIMOS_TEST_KAFKA", "localhost:9092")
REGISTRY = os.environ.get("DEIMOS_TEST_REGISTRY", "http://localhost:8081")
SCHEMA = (HERE / "schemas/com/acme/BenchOrder.avsc").read_text()
FRAME = b"\0\0\0\0\1"
"""Five bytes before an Avro payload, as a registry's serializer writes them."""
BODY = b"x" * 181
"""A plain payload, of the size of an Avro one with its frame."""
BATCH_BYTES = 128 * 1024
"""Most bytes in a batch of a producer, ours and theirs."""


def order(number: int) -> dict[str, Any]:
    """A record of about 180 bytes with its frame."""
    return {
        "order_id": number,
        "customer": "Marie Skłodowska-Curie",
        "coupon": None if number % 3 else "SPRING-2026",
        "total": number * 1.25,
        "placed_at": datetime(2026, 1, 1, 12, 30, tzinfo=UTC),
        "address": {"street": "36 Quai de Béthune, third floor on the left", "city": "Paris", "zip": "75004"},
        "tags": ["gift", "express", "fragile goods", "second order"],
        "status": ("NEW", "PAID", "SHIPPED")[number % 3],
    }


def key(number: int) -> str:
    """One of a thousand keys."""
    return str(number % 1000)


def purchases(count: int) -> Iterator[dict[str, Any]]:
    """Records for a table: each tenth has the `order_id` of one of the 2,000 before it, and another `total`.

    The same ones each time; fewer of them are the first of more.
    """
    choice = random.Random(2026)  # the same in every process
    before: deque[int] = deque(maxlen=2000)
    for number in range(count):
        found = order(number)
        if number % 10 == 9:
            found["order_id"] = before[choice.randrange(len(before))]
        before.append(found["order_id"])
        yield found


def outcome(count: int) -> tuple[int, float]:
    """Rows, and the sum of `total`, of a table that was kept from so many `purchases`. Sums are exact in any order."""
    totals = {record["order_id"]: record["total"] for record in purchases(count)}
    return len(totals), sum(totals.values())


class Clock:
    """Wall and CPU time between `start` and `stop`. CPU time is that of the whole process, all its threads."""

    measured: dict[str, float]
    """Seconds: `wall` and `cpu`."""

    def start(self) -> None:
        self._cpu = self._used()
        self._wall = time.perf_counter()

    def stop(self) -> dict[str, float]:
        self.measured = {"wall": time.perf_counter() - self._wall, "cpu": self._used() - self._cpu}
        return self.measured

    @staticmethod
    def _used() -> float:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime


def run_case(cases: Mapping[str, Callable[[str, int], dict[str, float]]]) -> None:
    """The program of a file with cases: `CASE --topic TOPIC --count MESSAGES`.

    Its last line on standard output is what was measured, as JSON.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("case", choices=sorted(cases))
    parser.add_argument("--topic", default="")
    parser.add_argument("--count", type=int, required=True)
    arguments = parser.parse_args()
    measured = cases[arguments.case](arguments.topic, arguments.count)
    print(json.dumps({"count": arguments.count, **measured}))
